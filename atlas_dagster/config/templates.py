"""Templates in declarations: ``{{ env.X }}``."""

import re
from collections.abc import Mapping
from typing import Any

TEMPLATE = re.compile(r"\{\{\s*env\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


def variables(value: Any) -> set[str]:
    """Return the names of environment variables that ``value`` refers to."""
    if isinstance(value, str):
        return set(TEMPLATE.findall(value))
    if isinstance(value, Mapping):
        return set().union(*(variables(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(variables(item) for item in value))
    return set()
