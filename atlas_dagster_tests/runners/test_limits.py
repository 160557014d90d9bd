"""Limits, as users write them."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from atlas_dagster.runners.limits import ExecutorConfig, parse_memory


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2g", 2 * 1024**3),
        ("512m", 512 * 1024**2),
        ("1.5g", 1536 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("256 MB", 256 * 1024**2),
        ("1048576k", 1024**3),
        ("8388608", 8 * 1024**2),
    ],
)
def test_memory_is_written_as_for_docker(text: str, size: int) -> None:
    assert parse_memory(text) == size
    assert ExecutorConfig(memory_limit=text).memory_bytes == size


@pytest.mark.parametrize("text", ["", "2 giraffes", "-1g", "5m", "0", "2", "g", "1e9"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not a valid amount of memory"):
        ExecutorConfig(memory_limit=text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpu_limit": 0},
        {"cpu_limit": 0.005},
        {"cpu_limit": float("nan")},
        {"pids_limit": 0},
        {"network": ""},
        {"pull": "sometimes"},
        {"timeout_seconds": -1},
        {"heartbeat_seconds": float("inf")},
        {"memory": "2g"},
    ],
)
def test_wrong_limits_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExecutorConfig.model_validate(wrong)


def test_a_connection_overrides_only_what_it_says() -> None:
    defaults = ExecutorConfig(memory_limit="4g", network="bridge")
    merged = defaults.overridden_by(ExecutorConfig(network="host"))
    assert (merged.memory_limit, merged.network) == ("4g", "host")
    assert defaults.overridden_by(None) is defaults


def test_the_docs_show_each_limit_and_its_default() -> None:
    """An optional limit has an example there: its default is None."""
    page = Path(__file__).parents[2] / "docs" / "running.md"
    limits = page.read_text().partition("## Limits")[2]
    block = limits.partition("```yaml")[2].partition("```")[0]
    shown = ExecutorConfig.model_validate(yaml.safe_load(block)["executor"])
    defaults = ExecutorConfig().model_dump()
    assert shown.model_fields_set == set(defaults)
    changed = {name for name, value in shown if value != defaults[name]}
    assert changed <= {name for name, value in defaults.items() if value is None}
