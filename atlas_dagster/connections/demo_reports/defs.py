"""Assets of your own stand in folders like this one; an argument is the table of a stream."""

import dagster as dg
import pandas as pd


@dg.asset(
    group_name="demo",
    ins={"users": dg.AssetIn(["demo", "users"], metadata={"columns": ["gender", "age"]})},
)
def age_by_gender(users: pd.DataFrame) -> pd.DataFrame:
    """Mean age of the demo's users."""
    return users.groupby("gender", as_index=False).mean()
