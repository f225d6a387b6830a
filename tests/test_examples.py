"""What people import has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import torch

pytestmark = pytest.mark.unit


def exported(package: str) -> Iterator[tuple[str, str]]:
    """(module, name) of the classes and functions in a package's or module's ``__all__``, else of those it defines."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == package and name[0] != "_"
    ]
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield package, name


def degradations() -> Iterator[tuple[str, str]]:
    """The same of every module of ``components.degradations``, and of what its package ``ct`` exports."""
    package = importlib.import_module("components.degradations")
    for module in pkgutil.iter_modules(package.__path__):
        yield from exported(f"components.degradations.{module.name}")


EXPORTED = [
    *exported("components.equivariance"),
    *exported("components.networks"),
    *degradations(),
    *exported("components.evaluation.metrics"),
]


@pytest.mark.parametrize(("module", "name"), EXPORTED)
def test_what_is_exported_has_an_example_that_runs(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    home = importlib.import_module(value.__module__)
    tests = [
        test
        for test in doctest.DocTestFinder().find(value, name, module=home, globs=vars(home).copy())
        if test.examples
    ]
    assert tests, f"{module}.{name} has no example"
    state = torch.random.get_rng_state()
    told: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    torch.random.set_rng_state(state)
    assert not told, "".join(told)
