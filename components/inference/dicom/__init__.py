"""A DICOM CT slice in and out: read into Hounsfield units, and written as a derived image of the same series of slices.

No message of these modules, and no representation of their objects, holds a value of a file's elements that could name
a patient. Messages of pydicom can quote such values, so they are replaced and its warnings are silenced.

Legend: H rows, W columns.
"""
