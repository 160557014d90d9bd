"""Code that a manifest brings along."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airbyte_cdk.sources.declarative.transformations import RecordTransformation


@dataclass
class Greet(RecordTransformation):
    def transform(self, record: dict[str, Any], **_: Mapping[str, Any]) -> None:
        record["greeting"] = f"Hello, {record['name']}"
