"""chaiNNer's loader of networks, an independent implementation of published ones."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Generator

import pytest


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> Generator[types.ModuleType]:
    """The loader, without its torchvision, which two networks that are not ours need."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("no spandrel: .ci/run installs it without torchvision")
    for module in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for part in ("InterpolationMode", "normalize", "rotate"):
        setattr(sys.modules["torchvision.transforms.functional"], part, None)
    yield importlib.import_module("spandrel")
    for name in [name for name in sys.modules if name.partition(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)
