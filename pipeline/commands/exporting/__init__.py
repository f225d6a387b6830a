"""The formats of ``eqreg export``: name -> place of a ``pipeline.commands.exporting.form.Form``.

To add a format, write its module and one line in ``FORMATS``.
"""

from __future__ import annotations

from components.registry import Registry

FORMATS: Registry = {
    "onnx": "pipeline.commands.exporting.onnx:ONNX",
    "pt2": "pipeline.commands.exporting.program:PT2",
    "aoti": "pipeline.commands.exporting.aoti:AOTI",
    "chainner": "pipeline.commands.exporting.chainner:CHAINNER",
}

__all__ = ["FORMATS"]
