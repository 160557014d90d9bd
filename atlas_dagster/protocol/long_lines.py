"""Lines of output that are too long for the memory, searched while they pass by."""

import re
from collections.abc import Iterable
from typing import Literal

#: Bytes of the longest line that is decoded. Rows and states are far shorter.
LONGEST_LINE = 64 * 1024 * 1024
#: Bytes at the beginning of a longer line that are kept.
_HEAD = 64 * 1024
_KIND = re.compile(rb'"type"\s*:\s*"(RECORD|STATE)"', re.IGNORECASE)
#: Bytes of a piece that are searched again with the next one. Matches are shorter.
_OVERLAP = 256


class LongLine:
    """Facts about a line whose pieces are not kept."""

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self.head = b""
        self.size = 0
        #: The kind of the first RECORD or STATE in it, and how many there are.
        self.kind: Literal["RECORD", "STATE"] | None = None
        self.messages = 0
        self._seam = b""
        for piece in pieces:
            self.add(piece)

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.head += piece[: _HEAD - len(self.head)]
        seen = self._seam + piece
        for found in _KIND.finditer(seen):
            if found.end() > len(self._seam):
                self.messages += 1
                self.kind = self.kind or ("RECORD" if found[1].upper() == b"RECORD" else "STATE")
        self._seam = seen[-_OVERLAP:]
