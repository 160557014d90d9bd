"""Valid, unique and stable names for tables, columns and asset keys.

A name of ``[A-Za-z0-9_]`` stays as it is. In others, invalid characters become ``_``, as in
Airbyte's own destinations. If two names collide (case does not count), one gets a hash of the
original. Valid names are assigned first, so an invalid one never displaces them. The caller passes
names that were assigned earlier; these never change.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

_BAD = re.compile(r"[^A-Za-z0-9_]")
#: The longest name that all readers support (Postgres cuts at 63 bytes).
_LONGEST = 63
#: Names that stay as they are.
_PLAIN = re.compile(rf"(?=.{{1,{_LONGEST}}}\Z)_*[A-Za-z][A-Za-z0-9_]*")
_HASH_LENGTH = 6


def assign(
    names: Iterable[str],
    *,
    known: Mapping[str, str] | None = None,
    reserved: Iterable[str] = (),
) -> dict[str, str]:
    """Map each of ``names`` to its valid name.

    Args:
        names: the originals, in any order.
        known: the earlier mapping, which never changes.
        reserved: valid names that are not available.
    """
    assigned = dict(known or {})
    taken = {valid.lower() for valid in assigned.values()} | {name.lower() for name in reserved}
    fresh = set(names) - set(assigned)
    plain = {name.lower() for name in fresh if _PLAIN.fullmatch(name)}
    if len(plain) == len(fresh) and plain.isdisjoint(taken):
        return assigned | {name: name for name in fresh}  # the usual case, ten times faster
    for name in sorted(
        fresh, key=lambda name: (_cleaned(name) != name, name != name.lower(), name)
    ):
        valid = _cleaned(name)
        salt = ""
        while not valid.strip("_") or valid.lower() in taken:
            valid = _hashed(name, salt)
            salt += "+"
        assigned[name] = valid
        taken.add(valid.lower())
    return assigned


def _cleaned(name: str) -> str:
    cleaned = _BAD.sub("_", name)
    if cleaned[:1].isdigit():
        cleaned = f"_{cleaned}"
    return cleaned if len(cleaned) <= _LONGEST else _hashed(name)


def _hashed(name: str, salt: str = "") -> str:
    base = _BAD.sub("_", name)
    if not base or base[0].isdigit():
        base = f"_{base}"
    original = (name + salt).encode("utf-8", "surrogatepass")
    digest = hashlib.sha1(original, usedforsecurity=False).hexdigest()
    return f"{base[: _LONGEST - _HASH_LENGTH - 1]}_{digest[:_HASH_LENGTH]}"
