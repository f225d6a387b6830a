"""A reader refuses what is newer than itself, and reads what is older."""

import pytest

from components.formats import NewerFormatError, check_format

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("found", "known"), [({}, 1), ({"format": 1}, 1), ({"format": 1}, 3)])
def test_what_is_as_old_or_older_is_read(found: dict[str, int], known: int) -> None:
    check_format(found, known, "it")


@pytest.mark.parametrize("version", ["3", 4.5, None, [1]])
def test_what_is_no_number_is_refused_by_name(version: object) -> None:
    with pytest.raises(NewerFormatError, match="the file has format"):
        check_format({"format": version}, 3, "the file")


def test_what_is_newer_is_refused_by_name() -> None:
    with pytest.raises(NewerFormatError, match="the file has format 4, and this eqreg reads formats up to 3: use"):
        check_format({"format": 4}, 3, "the file")
