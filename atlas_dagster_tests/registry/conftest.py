from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dagster.registry.catalogue import clear_cache
from atlas_dagster_tests.registry.live_registry import LiveRegistry, serving


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, with no refreshed list in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clear_cache()
    yield tmp_path / "cache" / "atlas-dagster"
    clear_cache()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveRegistry]:
    with serving(LiveRegistry()) as registry:
        monkeypatch.setenv("ATLAS_REGISTRY_URL", f"{registry.url}/")
        yield registry
