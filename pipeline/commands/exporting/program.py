"""``pt2``: a program of ``torch.export``, with free batch, height and width, for one device."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass

from pipeline.commands.exporting.form import KEY, Form, Run, no_check, quiet
from pipeline.commands.exporting.source import Source


def export_program(source: Source, device: str) -> ExportedProgram:
    """Exports a network, which may itself be a program, and moves it to a device."""
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with quiet(), torch.no_grad():
        program = torch.export.export(source.network, (source.example(),), dynamic_shapes=(free,))
        return program if device == "cpu" else move_to_device_pass(program, device)


def describe(path: Path, text: str) -> None:
    """Adds the description to a PT2 archive, which is a ZIP file, in its folder of extra files."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{root}/extra/{KEY}"), text)  # without the present time


def on_device(run: Run, device: str) -> Run:
    """The function with its input and output on the CPU."""
    return lambda images: run(images.to(device)).cpu()


def _write(source: Source, path: Path, device: str) -> None:
    archive = BytesIO()  # torch ends the process where it cannot write into a file
    with quiet():
        torch.export.save(export_program(source, device), archive)
    path.write_bytes(archive.getbuffer())


def _read(path: Path, source: Source, device: str) -> Run:
    return on_device(torch.export.load(path).module(), device)


PT2 = Form(suffix=".pt2", has_device=True, check=no_check, write=_write, describe=describe, read=_read)
