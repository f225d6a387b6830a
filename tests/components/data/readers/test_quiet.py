"""Warnings are suppressed while any thread is in the block, and come back when the last one has left."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import numpy as np
import pytest
from PIL import Image

from components.data.readers.images import decode_image
from components.data.readers.quiet import no_warnings

pytestmark = pytest.mark.unit


def _is_heard() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        heard: list[object] = []
        patch.setattr(warnings, "showwarning", lambda *arguments, **further: heard.append(arguments))
        warnings.warn("unusual", UserWarning, stacklevel=1)
    return bool(heard)


@pytest.fixture
def always() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("is_first_to_leave", [True, False])
def test_of_two_threads_the_last_one_to_leave_lets_warnings_be_heard_again(is_first_to_leave: bool) -> None:
    inside, may_leave = Barrier(2), Barrier(2)

    def other() -> None:
        with no_warnings:
            inside.wait(300)
            may_leave.wait(300)

    thread = Thread(target=other)
    with no_warnings:
        thread.start()
        inside.wait(300)
        if not is_first_to_leave:
            may_leave.wait(300)
            thread.join()
        assert not _is_heard()
    if is_first_to_leave:
        assert not _is_heard()
        may_leave.wait(300)
        thread.join()
    assert _is_heard()


@pytest.mark.usefixtures("always")
def test_threads_that_read_images_leave_the_filters_as_they_were() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(stream, "PNG")
    read: Callable[[bytes], object] = decode_image
    before, switched = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, [stream.getvalue()] * 400))
    finally:
        sys.setswitchinterval(switched)
    assert list(warnings.filters) == before


@pytest.mark.usefixtures("always")
def test_an_error_in_the_block_lets_warnings_be_heard_again() -> None:
    with pytest.raises(KeyError), no_warnings:
        raise KeyError
    assert _is_heard()
