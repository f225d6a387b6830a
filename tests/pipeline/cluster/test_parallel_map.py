"""Work is spread over Ray's processes in order, and what goes wrong there is told in one or two lines."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from pipeline.cluster.parallel_map import FEW, parallel_map
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.ray

LOCAL = load_params(ROOT / "params.yaml").cluster


def _squared(number: int) -> int:
    return number**2


def _refusing(number: int) -> int:
    if number == 3:
        raise UserError("piece 3 is wrong: mend it")
    return number


def _dying(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def test_a_few_pieces_are_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setattr("pipeline.cluster.parallel_map.ray_session", None)  # would fail
    assert parallel_map(_squared, range(FEW), LOCAL, heard.append) == [0, 1, 4, 9] == heard
    with pytest.raises(UserError, match="piece 3 is wrong"):
        parallel_map(_refusing, range(FEW), LOCAL, heard.append)


@pytest.mark.usefixtures("shared_ray")
def test_many_pieces_come_back_in_their_order_from_other_processes() -> None:
    heard: list[int] = []
    results = parallel_map(_squared, range(20), LOCAL, heard.append)
    assert results == [number**2 for number in range(20)]
    assert sorted(heard) == results


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("function", "message"),
    [(_refusing, "^piece 3 is wrong: mend it$"), (_dying, "piece 4 of 8 was lost with its process")],
)
def test_an_error_there_is_an_error_here(function: Callable[[int], int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parallel_map(function, range(8), LOCAL, lambda result: None)
    assert len(str(error.value).splitlines()) <= 2
