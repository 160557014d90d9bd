"""Lines of output that are too long to keep in memory, searched piece by piece."""

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
        #: The kind of the first RECORD or STATE in the line, and the number of such messages.
        self.kind: Literal["RECORD", "STATE"] | None = None
        self.messages = 0
        self._overlap = b""
        for piece in pieces:
            self.add(piece)

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.head += piece[: _HEAD - len(self.head)]
        searched = self._overlap + piece
        for found in _KIND.finditer(searched):
            if found.end() > len(self._overlap):
                self.messages += 1
                self.kind = self.kind or ("RECORD" if found[1].upper() == b"RECORD" else "STATE")
        self._overlap = searched[-_OVERLAP:]
