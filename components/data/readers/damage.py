"""Detection of damage inside image files that decoders ignore.

libjpeg only warns about damage, and Pillow drops the warning. libtiff does not verify checksums. A JPEG file has no
checksum. However, each segment of Huffman codes between two markers holds a known number of blocks. If a decoder has
all blocks before the segment ends, or lacks blocks at its end, the codes are damaged.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, JpegImagePlugin

_SPARE = 16
"""Number of bytes that may follow the last code of a segment; some cameras write a few bytes there."""

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_CODE_BYTE = re.compile(rb"\xff\x00|.", re.DOTALL)  # the byte FF is written as FF 00
_SOS, _EOI, _TEM = 0xDA, 0xD9, 0x01
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; the others are lossless or arithmetic

# No code consists of ones only, so these bytes complete no code. A decoder reads up to eight bytes when it needs a bit.
_FILLER = b"\xff\x00"
_BUFFERED = 8
_STEPS = 3

_CHUNK = 1 << 20


def check_jpeg(content: bytes) -> None:
    """Check that the Huffman codes of a JPEG file, which Pillow can read, are not damaged.

    Damage after which the number of blocks is correct again is not detected. libjpeg does not detect it either.

    Raises:
        ValueError: the codes are damaged.
    """
    # Only private functions of Pillow can pass single bytes to a decoder: `Image._getdecoder`, as Pillow's Parser does.
    segments = _segments(content)
    if not segments:
        return
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        image.draft(None, (1, 1))  # an eighth of the size: all codes are read, but few pixels are computed
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
    """Check the Adler-32 checksums of the deflated strips or tiles of a TIFF file.

    Args:
        content: bytes of the file.
        places: position of each strip or tile in the file, in bytes.
        sizes: size of each strip or tile in bytes.

    Raises:
        ValueError: a checksum does not match; the message describes the first such strip.
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
    """Find the start and end of each segment of Huffman codes; a segment ends at a marker.

    Returns an empty list if the file uses other codes.

    Raises:
        ValueError: restart markers, which are numbered cyclically from 0 to 7, are missing.
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
    """Passes bytes to a decoder of Pillow.

    A decoder that lacks blocks reads bytes when it needs bits: several at once, then none for some time. A decoder that
    has all blocks of a segment searches for a marker and reads each byte immediately.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._left = b""
        self._is_done = False

    def feed(self, data: bytes) -> bool:
        """Pass bytes to the decoder; return whether it has read all bytes.

        Raises:
            ValueError: the decoder rejects the file.
        """
        if self._is_done:
            return True
        self._left += data
        taken, error = self._decoder.decode(self._left)
        if taken < 0 and error < 0:
            raise ValueError("its middle is damaged: a marker where none belongs")
        self._is_done = taken < 0  # the decoder has all rows of the image
        self._left = b"" if self._is_done else self._left[taken:]
        return not self._left

    def has_finished(self, steps: Sequence[bytes]) -> bool:
        """Return whether the decoder has all blocks of the segment; to test this, pass the next bytes one by one."""
        taken = [self.feed(step) for step in steps]  # a list, so that every step is passed
        return all(taken)
