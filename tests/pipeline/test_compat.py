"""Each private part of a library is there, and what misses one is told which version has it."""

from __future__ import annotations

import pytest

from pipeline import compat
from pipeline.errors import UserError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", compat.PARTS)
def test_every_private_part_is_there(name: str) -> None:
    assert getattr(compat, name) is not None


def test_a_part_that_this_ray_lacks_names_the_ray_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compat.PARTS, "gone", compat.Part("ray.train", "_no_such_part", "for this test"))
    with pytest.raises(UserError, match=r"has no ray\.train\._no_such_part, which Ray 2\.60 has: install the versions"):
        compat.gone  # noqa: B018


def test_what_is_no_part_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        compat.no_such_name  # noqa: B018
