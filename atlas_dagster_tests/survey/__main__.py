"""Runs SPEC, CHECK and DISCOVER of many real connectors, and prints all that Atlas says.

    make connectors

Each connector gets a dummy config that fits its SPEC, so most CHECKs fail, as they should: what
matters is that the sentence says why. The exit code is 1 where one says nothing of use. It needs
PyPI or a mirror; environments are deleted as soon as their connector has answered.

``ARGS="source-faker wheel:source-klaviyo"`` for some: a plain name is a connector of the registry
from its Python package, ``wheel:NAME`` the declarative manifest inside the newest package of that
name, run as a manifest of one's own.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import check_output

from uv import find_uv_bin

from atlas_dagster.errors import AtlasError
from atlas_dagster.reading.ad_hoc import AdHocConnection, adhoc_connection, adhoc_context
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.registry import list_connectors
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.packages import environments_folder, open_bare_package
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.survey.dummy_config import dummy_config

#: What tells a reader nothing.
GENERIC = re.compile(
    r"something went wrong|see the logs|exited with 1\b|reported no error|gave no reason"
    r"|an (unexpected|unhandled) error|unknown error",
    re.IGNORECASE,
)
_MANIFEST = "wheel:"
_SECONDS = {"timeout_seconds": 120, "check_timeout_seconds": 120, "discover_timeout_seconds": 120}
#: Packages that hold a whole manifest, with its SPEC; some need the components.py beside it.
_MANIFESTS = (
    *("aha", "airtable", "bamboo-hr", "braze", "coingecko-coins", "confluence", "dixa"),
    *("freshdesk", "greenhouse", "harvest", "lemlist", "nasa", "omnisend"),
    *("open-exchange-rates", "paystack", "pokeapi", "recurly", "square"),
    *("tvmaze-schedule", "twilio-taskrouter", "typeform", "vitally", "wikipedia-pageviews"),
)


def survey(name: str) -> Iterator[tuple[str, str]]:
    """Each verb with what came of it. A verb that failed ends it, but for CHECK."""
    with _connection(name) as connection:
        log: list[str] = []
        caller = adhoc_context(CallbackListener(log.append))
        source = AdHocSource(connection, caller)
        try:
            spec = source.spec()
        except AtlasError as error:
            yield "spec", str(error)
            return
        yield "spec", log[0]
        config = dummy_config(spec.connectionSpecification)
        source = AdHocSource(connection.model_copy(update={"config": config}), caller)
        yield "check", _answered(lambda: source.status().message or "SUCCEEDED")
        yield "discover", _answered(lambda: f"{len(source.discover().streams)} streams")


def _answered(call: Callable[[], str]) -> str:
    try:
        return call()
    except AtlasError as error:
        return f"{type(error).__name__} ({error.failure_type}): {error}"


@contextmanager
def _connection(name: str) -> Iterator[AdHocConnection]:
    executor = ExecutorConfig(**_SECONDS)
    if not name.startswith(_MANIFEST):
        yield adhoc_connection(name, {}, "python").model_copy(update={"executor": executor})
        return
    with tempfile.TemporaryDirectory() as folder:
        source = name.removeprefix(_MANIFEST)
        with open_bare_package(f"airbyte-{source}", Path(folder)) as found:
            for file in found.files or ():
                if file.name in ("manifest.yaml", "components.py") and len(file.parts) == 2:
                    text = Path(str(found.locate_file(file))).read_text()
                    # As Airbyte did where it made one of a Python connector.
                    module = f"{source.replace('-', '_')}.components"
                    text = text.replace(module, "source_declarative_manifest.components")
                    (Path(folder) / file.name).write_text(text)
        yield AdHocConnection(
            name="survey",
            manifest="manifest.yaml",
            folder=Path(folder),
            runner="python",
            executor=executor,
        )


@contextmanager
def _own_cache() -> Iterator[Path]:
    """The folder of environments, apart from the user's; uv's own cache is shared."""
    uv_cache = check_output([find_uv_bin(), "cache", "dir"], text=True)
    os.environ.setdefault("UV_CACHE_DIR", uv_cache.strip())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield environments_folder()


def _remove_connectors(environments: Path) -> None:
    """They are big. The CDKs stay, for the next manifest."""
    for environment in environments.glob("airbyte-source-*"):
        if environment.is_dir():
            shutil.rmtree(environment)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("connectors", nargs="*", help="all that are on PyPI, and manifests")
    chosen = parser.parse_args(arguments).connectors or [
        *(info.name for info in list_connectors() if info.pypi_package),
        *(f"{_MANIFEST}source-{name}" for name in _MANIFESTS),
    ]
    generic = 0
    with _own_cache() as environments:
        for name in chosen:
            began = time.monotonic()
            for verb, said in survey(name):
                is_generic = bool(GENERIC.search(said))
                generic += is_generic
                mark = "GENERIC" if is_generic else ""
                print(f"{name:32} {verb:9}{mark:8} {said}", flush=True)
            print(f"{name:32} {time.monotonic() - began:.0f} s", flush=True)
            _remove_connectors(environments)
    print(f"{len(chosen)} connectors, {generic} generic sentences")
    return 1 if generic else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
