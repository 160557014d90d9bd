"""Numbers: convert columns of JSON text into doubles or decimals, and report rounded ones.

Decimals stay text, for a store that reads all digits.
"""

import re
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

from atlas_dagster.records.issues import IssueKind

_QUOTED = r'^"(.*)"$'
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ZERO = r"^[+-]?[0.]+([eE][+-]?\d+)?$"
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: Decimals that need no further check.
_PLAIN_DECIMAL = r"^-?[0-9]{1,30}(?:\.[0-9]{1,30})?$"
#: Digits of a decimal on each side of its point. Real numbers have fewer; Postgres allows 16,383
#: behind the point.
_MOST_DIGITS = 1_000
#: A decimal of so many digits survives the conversion into a double and back ...
_EXACT_DIGITS = 15
#: ... unless it is smaller than this: then doubles have fewer digits.
_SMALLEST_EXACT = 1e-290


def parse_numbers(texts: pa.Array) -> tuple[pa.Array, dict[int, IssueKind]]:
    """Parse JSON numbers, and numbers inside JSON strings, as doubles.

    Returns the column, and the rows whose values are not exact: NULL if there is no double at all,
    else the nearest one. A number is exact if its double, printed in the fewest digits that
    identify it, is the same number.
    """
    misfits: dict[int, IssueKind] = {}
    try:
        column = pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        texts = pc.replace_substring_regex(texts, _QUOTED, r"\1")
        fits = pc.match_substring_regex(texts, _NUMBER)
        misfits = dict.fromkeys(pc.indices_nonzero(pc.invert(fits)).to_pylist(), IssueKind.TYPE)
        texts = pc.if_else(fits, texts, pa.scalar(None, pa.string()))
        column = pc.cast(texts, pa.float64())
    infinite = pc.is_inf(column)
    doubtful = pc.or_(
        pc.or_(infinite, pc.greater(pc.binary_length(texts), _EXACT_DIGITS)),
        pc.less(pc.abs(column), _SMALLEST_EXACT),
    )
    if pc.any(doubtful, min_count=0).as_py():
        misfits |= _inexact(texts, column, pc.indices_nonzero(doubtful))
        column = pc.if_else(infinite, pa.scalar(None, pa.float64()), column)
    return column, misfits


def parse_decimals(texts: pa.Array) -> tuple[pa.Array, dict[int, IssueKind]]:
    """Parse JSON numbers, and numbers inside JSON strings, as decimals in text.

    Returns the column, and the rows that are NULL: values that are not numbers, and numbers with
    more than :data:`_MOST_DIGITS` on one side of the point.
    """
    plain = pc.fill_null(pc.match_substring_regex(texts, _PLAIN_DECIMAL), True)
    if pc.all(plain, min_count=0).as_py():
        return texts, {}
    rows = pc.indices_nonzero(pc.invert(plain))
    misfits: dict[int, IssueKind] = {}
    values: list[str | None] = []
    for row, text in zip(rows.to_pylist(), texts.take(rows).to_pylist(), strict=True):
        value, why = _decimal(text[1:-1] if text.startswith('"') else text)
        values.append(value)
        if why is not None:
            misfits[row] = why
    return pc.replace_with_mask(texts, pc.invert(plain), pa.array(values, pa.string())), misfits


def _decimal(text: str) -> tuple[str | None, IssueKind | None]:
    if not _DECIMAL.fullmatch(text):
        return None, IssueKind.TYPE
    try:
        number = Decimal(text)
    except InvalidOperation:  # the exponent is too large
        return None, IssueKind.SIZE
    if not number:
        return "0", None
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # neither NaN nor infinity matches
    if number.adjusted() >= _MOST_DIGITS or -exponent > _MOST_DIGITS:
        return None, IssueKind.SIZE
    return text, None


def _inexact(texts: pa.Array, column: pa.Array, rows: pa.Array) -> dict[int, IssueKind]:
    written, doubles = texts.take(rows), column.take(rows)
    same = pc.or_(
        pc.equal(written, pc.cast(doubles, pa.string())),
        pc.match_substring_regex(written, _ZERO),
    )
    differ = pc.indices_nonzero(pc.invert(same))
    found = {}
    for row, text, double in zip(
        rows.take(differ).to_pylist(),
        written.take(differ).to_pylist(),
        doubles.take(differ).to_pylist(),
        strict=True,
    ):
        if double in (float("inf"), float("-inf")):
            found[row] = IssueKind.SIZE
        elif not _holds(double, text):
            found[row] = IssueKind.ROUNDED
    return found


def _holds(double: float, text: str) -> bool:
    try:
        return Decimal(text) == Decimal(repr(double))
    except InvalidOperation:  # the exponent is too large; the double is zero
        return False
