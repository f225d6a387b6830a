"""``onnx``: a graph that onnxruntime and others run, with free batch, height and width."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from pipeline.commands.exporting.form import KEY, Form, Run, quiet
from pipeline.commands.exporting.source import Source
from pipeline.errors import UserError

INPUT, OUTPUT = "images", "output"
"""Names of the graph's input and output."""

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def _check() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}: in the project's folder, "
            ".venv/bin/python -m pip install -e '.[export]'"
        )


def _write(source: Source, path: Path, device: str) -> None:
    import onnx

    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            source.network,
            (source.example(),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)
    onnx.checker.check_model(path, full_check=True)


def _describe(path: Path, text: str) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)


def _read(path: Path, source: Source, device: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run


ONNX = Form(suffix=".onnx", has_device=False, check=_check, write=_write, describe=_describe, read=_read)
