"""Damage inside image files that decoders read on over: libjpeg only warns, which Pillow drops; libtiff skips sums.

A JPEG has no sum. But each of its segments of Huffman codes, between two markers, holds a known number of blocks: a
decoder that has them all before the segment ends, or lacks some at its end, has read damaged codes.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, JpegImagePlugin

_SPARE = 16
"""Bytes that may follow the last code of a segment; some cameras write a few."""

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_CODE_BYTE = re.compile(rb"\xff\x00|.", re.DOTALL)  # FF is written as FF 00
_SOS, _EOI, _TEM = 0xDA, 0xD9, 0x01
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; the others are lossless or arithmetic

# No code is all ones, so these bytes end nothing. A decoder takes up to eight of them when it needs a bit.
_FILLER = b"\xff\x00"
_BUFFERED = 8
_STEPS = 3

_CHUNK = 1 << 20


def check_jpeg(content: bytes) -> None:
    """Refuses a JPEG file, one that Pillow reads, whose Huffman codes are damaged.

    Damage after which the number of blocks is right again is not seen; libjpeg does not see it either.

    Raises:
        ValueError: they are.
    """
    # Only what is private of Pillow gives bytes to a decoder one by one: `Image._getdecoder`, as its own Parser does.
    segments = _segments(content)
    if not segments:
        return
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        image.draft(None, (1, 1))  # an eighth of the size: all codes are read, and few pixels computed
        image.load_prepare()
        ((codec, extents, _, arguments),) = image.tile
        decoder = Image._getdecoder(image.mode, codec, arguments, image.decoderconfig)
        try:
            decoder.setimage(image.im, extents)
            if _is_damaged(_Feeder(decoder), content, segments):
                raise ValueError("its middle is damaged: codes of pixels are missing, or too many")
        finally:
            decoder.cleanup()


def check_deflated(content: bytes, places: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuses the deflated strips or tiles of a TIFF file whose sums (Adler-32) do not agree.

    Args:
        content: of the file.
        places, sizes: of each strip in the file, in bytes.

    Raises:
        ValueError: the first that does not.
    """
    for place, size in zip(places, sizes, strict=True):
        stream, packed = zlib.decompressobj(), content[place : place + size]
        try:
            while packed and not stream.eof:
                stream.decompress(packed, _CHUNK)
                packed = stream.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"its middle is damaged: {error}") from error


def _segments(content: bytes) -> list[tuple[int, int]]:
    """Where Huffman codes begin and end, at a marker; none if the file has other codes.

    Raises:
        ValueError: restart markers, which are numbered from 0 to 7 again and again, are lost.
    """
    found: list[tuple[int, int]] = []
    place, restarts = 2, 0
    while marker := _MARKER.search(content, place):
        kind, place = content[marker.start() + 1], marker.end()
        if kind == _EOI:
            break
        if kind in _FRAMES - _HUFFMAN:
            return []
        if kind == _TEM or (kind in _RESTARTS and not found):
            continue
        if kind in _RESTARTS:
            if kind != _RESTARTS[restarts % 8]:
                raise ValueError("its middle is damaged: restart markers are missing")
            restarts += 1
        else:
            place += int.from_bytes(content[place : place + 2])
            restarts = 0
        if kind == _SOS or kind in _RESTARTS:
            following = _MARKER.search(content, place)
            stop = following.start() if following else len(content)
            found.append((place, stop))
            place = stop
    return found


def _is_damaged(feeder: _Feeder, content: bytes, segments: Sequence[tuple[int, int]]) -> bool:
    fed = 0
    for start, stop in segments:
        end = start + len(content[start:stop].rstrip(b"\xff\x00"))  # fill bytes
        early = end - _SPARE
        if early > start:
            feeder.feed(content[fed:early])
            steps = _CODE_BYTE.findall(content, early, end)[:_STEPS]
            if feeder.has_finished(steps):
                return True
            fed = early + sum(map(len, steps))
        feeder.feed(content[fed:stop])
        fed = stop
        feeder.feed(_FILLER * _BUFFERED)
        if not feeder.has_finished([_FILLER] * _STEPS):
            return True
    return False


class _Feeder:
    """Gives bytes to a decoder of Pillow's, as they come.

    A decoder that lacks blocks takes bytes when it needs bits: several at once, and then none for a while. One that
    has all blocks of a segment seeks a marker, and takes each byte as it comes.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._left = b""
        self._is_done = False

    def feed(self, data: bytes) -> bool:
        """Whether no byte is left.

        Raises:
            ValueError: the decoder refuses the file.
        """
        if self._is_done:
            return True
        self._left += data
        taken, error = self._decoder.decode(self._left)
        if taken < 0 and error < 0:
            raise ValueError("its middle is damaged: a marker where none belongs")
        self._is_done = taken < 0  # it has all rows of the image
        self._left = b"" if self._is_done else self._left[taken:]
        return not self._left

    def has_finished(self, steps: Sequence[bytes]) -> bool:
        """Whether the decoder has all blocks of the segment, found by giving it the next bytes one by one."""
        taken = [self.feed(step) for step in steps]  # all of them, whatever the first did
        return all(taken)
