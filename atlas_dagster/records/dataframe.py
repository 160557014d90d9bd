"""Convert Arrow to pandas."""

import pandas as pd
import pyarrow as pa

#: Nullable types, so that a NULL does not turn integers into floats or booleans into objects.
_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def to_pandas(rows: pa.RecordBatchReader | pa.Table) -> pd.DataFrame:
    """Convert rows; integers and booleans become nullable, others as in ``pandas.read_parquet``."""
    table = rows if isinstance(rows, pa.Table) else rows.read_all()
    frame: pd.DataFrame = table.to_pandas(types_mapper=_NULLABLE.get)
    return frame
