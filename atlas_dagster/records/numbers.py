"""Numbers: whole columns of JSON text into doubles or decimals, none rounded unseen.

Decimals stay text, for a store that reads them digit by digit.
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
#: What needs no closer look.
_PLAIN_DECIMAL = r"^-?[0-9]{1,30}(?:\.[0-9]{1,30})?$"
#: Digits of a decimal on either side of its point: numbers that mean something have fewer, and
#: Postgres has room for 16,383 behind it.
_MOST_DIGITS = 1_000
#: Any decimal of so many digits survives the way into a double and back ...
_EXACT_DIGITS = 15
#: ... unless it is smaller than this, where doubles have fewer digits.
_SMALLEST_EXACT = 1e-290


def parse_numbers(texts: pa.Array) -> tuple[pa.Array, dict[int, IssueKind]]:
    """Doubles from JSON numbers and from numbers inside JSON strings.

    Returns the column and the rows whose values it does not hold as written: NULL where there is
    no double at all, else the nearest one. A number is held as written if printing its double, in
    as few digits as tell it apart, gives the same number back.
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
    """Decimals, as text, from JSON numbers and from numbers inside JSON strings.

    Returns the column and the rows that it holds nothing of: what is no number, and numbers of more
    than :data:`_MOST_DIGITS` before or behind the point.
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
    except InvalidOperation:  # an exponent beyond all measure
        return None, IssueKind.SIZE
    if not number:
        return "0", None
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # the text says no NaN and no infinity
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
    except InvalidOperation:  # an exponent beyond all measure: the double is zero
        return False
