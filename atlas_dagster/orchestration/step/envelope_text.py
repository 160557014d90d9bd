"""How an envelope is written into an event: short ones as they are, long ones compressed.

Events are read whole by the web UI and the daemon, so a state of megabytes is not put into each of
them: an event then only refers to the envelope, which is kept beside the data anyway.
"""

import base64
import zlib
from typing import Any

import msgspec
from msgspec import Raw

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.protocol.nesting import levels

#: Characters up to which an envelope is stored as it is, and compressed.
LONGEST_PLAIN = 64 * 1024
LONGEST_COMPRESSED = 1024 * 1024
_COMPRESSED = "zlib:"
#: Levels of JSON that Dagster's serializer follows, on any stack.
_DEEPEST_SHOWN = 100


def to_text(envelope: Envelope) -> str:
    """The text for an event; :func:`from_text` is its inverse, except for what is too long."""
    bare = envelope.without_files()
    content = bare.encode()
    if len(content) <= LONGEST_PLAIN:
        return content.decode()
    text = _COMPRESSED + base64.b85encode(zlib.compress(content)).decode()
    return text if len(text) <= LONGEST_COMPRESSED else bare.reference().encode().decode()


def from_text(text: str) -> Envelope:
    """Raises :class:`msgspec.MsgspecError` for anything but an envelope."""
    if text.startswith(_COMPRESSED):
        try:
            return Envelope.decode(zlib.decompress(base64.b85decode(text[len(_COMPRESSED) :])))
        except (ValueError, zlib.error) as error:
            raise msgspec.ValidationError(f"a compressed envelope is broken: {error}") from error
    return Envelope.decode(text)


def shown_state(blob: Raw | None, *, longest: int = 4096) -> Any:
    """A state for people: its JSON, its text where nothing can read that, or how large it is."""
    if blob is None:
        return "none"
    content = bytes(blob)
    if len(content) > longest:
        return f"{len(content) / 1024:,.0f} KB, not shown"
    try:
        if levels(content) <= _DEEPEST_SHOWN:
            return msgspec.json.decode(content)
    except msgspec.MsgspecError:  # numbers beyond every parser
        pass
    return content.decode("utf-8", "replace")
