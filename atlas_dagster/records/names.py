"""Valid, unique and stable names for tables, columns and asset keys.

A name made of ``[A-Za-z0-9_]`` stays as it is; in any other one the bad characters become ``_``, as
in Airbyte's own destinations. Where that would meet another name (case does not count), a hash of
the original is added. Plain names choose first, so a strange one never displaces them; names given
out earlier are passed in and never change.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

_BAD = re.compile(r"[^A-Za-z0-9_]")
#: Longest name every reader copes with (Postgres cuts at 63 bytes).
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
        known: mapping made earlier; what it holds never changes.
        reserved: valid names that must not be given out.
    """
    assigned = dict(known or {})
    taken = {valid.lower() for valid in assigned.values()} | {name.lower() for name in reserved}
    fresh = set(names) - set(assigned)
    plain = {name.lower() for name in fresh if _PLAIN.fullmatch(name)}
    if len(plain) == len(fresh) and plain.isdisjoint(taken):
        return assigned | {name: name for name in fresh}  # as nearly always, and ten times faster
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
