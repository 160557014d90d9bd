"""Decoder of Docker's attach stream, without I/O.

Each frame has a header of eight bytes: channel, three zeros, payload length as big-endian uint32
(Docker Engine API, "Attach to a container"). The socket may cut frames anywhere.
"""

from collections.abc import Iterator
from typing import Literal

_HEADER = 8
_CHANNELS: dict[int, Literal["stdout", "stderr"]] = {0: "stdout", 1: "stdout", 2: "stderr"}


class FrameDecoder:
    """Turns blocks of the socket into pieces of (channel, payload) as early as possible."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0
        self._channel: Literal["stdout", "stderr"] = "stdout"

    @property
    def is_between_frames(self) -> bool:
        """True if the last frame is complete."""
        return not self._header and self._left == 0

    def feed(self, data: memoryview) -> Iterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """Yield the pieces of ``data``. Consecutive frames of one channel become one piece."""
        position, end = 0, len(data)
        pieces: list[memoryview] = []
        channel: Literal["stdout", "stderr"] = self._channel
        while position < end:
            if self._left == 0:
                wanted = _HEADER - len(self._header)
                self._header += bytes(data[position : position + wanted])
                position += wanted
                if len(self._header) < _HEADER:
                    break
                self._channel = _CHANNELS.get(self._header[0], "stderr")
                self._left = int.from_bytes(self._header[4:], "big")
                self._header = b""
                continue
            if pieces and channel != self._channel:
                yield channel, b"".join(pieces)
                pieces.clear()
            channel = self._channel
            pieces.append(data[position : position + self._left])
            position += len(pieces[-1])
            self._left -= len(pieces[-1])
        if pieces:
            yield channel, b"".join(pieces)
