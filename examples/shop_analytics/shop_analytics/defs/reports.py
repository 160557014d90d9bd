"""Assets downstream of the shop's streams, whose tables they take as arguments."""

import dagster as dg
import pandas as pd


@dg.asset(
    ins={
        "products": dg.AssetIn(["raw", "shop", "products"], metadata={"columns": ["id", "make"]}),
        "purchases": dg.AssetIn(["raw", "shop", "purchases"], metadata={"columns": ["product_id"]}),
    },
    io_manager_key="atlas_io",  # what it returns becomes a table of the same lake
    automation_condition=dg.AutomationCondition.eager(),
)
def sales_by_make(products: pd.DataFrame, purchases: pd.DataFrame) -> pd.DataFrame:
    """How often each make was bought."""
    sold = purchases.merge(products, left_on="product_id", right_on="id")
    return sold.groupby("make", as_index=False).size().rename(columns={"size": "sold"})
