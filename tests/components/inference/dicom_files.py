"""DICOM CT slices made with pydicom, with the elements that scanners write, and a patient whose name must not leak."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SECRET = "Secret^Patient"


def ct_dataset(stored: np.ndarray, *, slope: str = "1", intercept: str = "-1024", **changes: Any) -> pydicom.Dataset:
    """One slice; ``stored`` (H, W) are its pixel values, signed or not by their dtype; None takes an element away."""
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.9"
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", SECRET, f"{SECRET}-17"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientPosition = "19500101", "O", "HFS"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260101", "120000", ""
    dataset.ReferringPhysicianName, dataset.StudyID = "", ""
    dataset.Manufacturer, dataset.KVP, dataset.AcquisitionNumber = "Maker", "120", "1"
    dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = "Thorax 1.0", "4", "17"
    dataset.InstanceCreationDate = "20260101"
    dataset.PixelSpacing, dataset.SliceThickness = ["0.70", "0.70"], "1.5"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = (
        ["-180", "-170.5", "33.25"],
        ["1", "0", "0", "0", "1", "0"],
    )
    dataset.PositionReferenceIndicator, dataset.SliceLocation = "", "33.25"
    dataset.WindowCenter, dataset.WindowWidth = ["40", "-600"], ["400", "1500"]
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "HU"
    block = dataset.private_block(0x0029, "MAKER PRIVATE", create=True)
    block.add_new(0x10, "LO", f"private {SECRET}")
    block.add_new(0x11, "OB", bytes(range(16)))
    dataset.add_new("PixelData", "OW", stored.astype(f"<{stored.dtype.kind}2").tobytes())
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def ct_bytes(
    stored: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    *,
    slope: str = "1",
    intercept: str = "-1024",
    **changes: Any,
) -> bytes:
    """The file of `ct_dataset`; compressed by pydicom if the syntax says so."""
    dataset = ct_dataset(stored, slope=slope, intercept=intercept, **changes)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3.4")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if pydicom.uid.UID(syntax).is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file = BytesIO()
    is_implicit, is_little = syntax == ImplicitVRLittleEndian, syntax != pydicom.uid.ExplicitVRBigEndian
    dataset.save_as(file, enforce_file_format=True, implicit_vr=is_implicit, little_endian=is_little)
    return file.getvalue()


def read(data: bytes) -> pydicom.Dataset:
    """Reads a file with pydicom alone."""
    return pydicom.dcmread(BytesIO(data))


def hounsfield(data: bytes) -> np.ndarray:
    """``(H, W)`` float64, by pydicom's own rescaling."""
    dataset = read(data)
    return np.asarray(pydicom.pixels.apply_rescale(dataset.pixel_array, dataset))
