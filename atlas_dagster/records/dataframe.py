"""Arrow into pandas."""

import pandas as pd
import pyarrow as pa

#: A NULL turns neither an integer into a float nor a boolean into an object.
_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def to_pandas(rows: pa.RecordBatchReader | pa.Table) -> pd.DataFrame:
    """Integers and booleans become nullable types; the rest is as in ``pandas.read_parquet``."""
    table = rows if isinstance(rows, pa.Table) else rows.read_all()
    frame: pd.DataFrame = table.to_pandas(types_mapper=_NULLABLE.get)
    return frame
