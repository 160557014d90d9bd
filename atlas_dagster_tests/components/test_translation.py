"""``translation``: how streams look in Dagster, as its own components have it; tables stay."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing.test_cases import TestTranslation as Cases

from atlas_dagster_tests.components.connections_project import Project, importable

pytestmark = pytest.mark.dagster

DECLARED = ("connector: source-faker", "config: {count: 1}")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with importable(tmp_path, monkeypatch) as project:
        yield project


def streams(project: Project, *attributes: str) -> dict[str, dg.AssetSpec]:
    """The specs of the streams, by name of the stream."""
    project.declare("shop", *DECLARED, *attributes)
    project.discover("shop", {"count": 1})
    specs = project.definitions().resolve_all_asset_specs()
    return {str(s.metadata["atlas/stream"]): s for s in specs if "atlas/stream" in s.metadata}


class TestTranslation(Cases):
    """The cases that Dagster has for every integration."""

    def test_translation(
        self,
        attributes: dict[str, Any],
        assertion: Any,
        key_modifier: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        project = Project(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        lines = yaml.safe_dump({"translation": attributes}, width=1000).splitlines()

        (users,) = [s for name, s in streams(project, *lines).items() if name == "users"]

        assert assertion(users), users
        expected = dg.AssetKey(["shop", "users"])
        assert users.key == (key_modifier(expected) if key_modifier else expected)


def test_templates_know_the_stream_and_its_spec(project: Project) -> None:
    specs = streams(
        project,
        "translation:",
        '  key: "raw/{{ props.connection_name }}_{{ props.stream_name }}"',
        '  description: "{{ spec.description }} Mind {{ props.table_name }}."',
        "  owners: ['team:{{ props.connection_name }}']",
        "  kinds: [mine]",
    )

    users = specs["users"]
    assert users.key == dg.AssetKey(["raw", "shop_users"])
    assert users.description == (
        "Stream `users` of source-faker, full_refresh | overwrite. Mind shop.users."
    )
    assert users.owners == ["team:shop"]
    assert users.kinds == {"mine"}


def test_another_key_is_another_name_and_no_other_table(project: Project) -> None:
    specs = streams(project, "translation: {key_prefix: raw}")

    users = specs["users"]
    assert users.key == dg.AssetKey(["raw", "shop", "users"])
    assert users.metadata["atlas/table"] == "shop/users"
    assert users.metadata["dagster/table_name"] == "shop.users"
    assert [dep.asset_key for dep in users.deps] == [dg.AssetKey(["shop", "source_faker"])]


def test_what_translation_does_not_say_stays(project: Project) -> None:
    specs = streams(project, "translation: {tags: {tier: gold}}")

    assert specs["users"].tags == {
        "tier": "gold",
        "dagster/kind/airbyte": "",
        "dagster/kind/faker": "",
        "dagster/kind/deltalake": "",
    }
    assert specs["users"].group_name == "shop"


def test_the_schedule_gives_a_freshness_policy(project: Project) -> None:
    users = streams(project, 'schedule: "@daily"')["users"]

    assert users.freshness_policy == dg.FreshnessPolicy.time_window(
        warn_window=dt.timedelta(hours=36), fail_window=dt.timedelta(hours=60)
    )


def test_no_schedule_no_freshness_policy(project: Project) -> None:
    assert streams(project)["users"].freshness_policy is None


def test_translation_can_take_the_freshness_policy_away(project: Project) -> None:
    specs = streams(project, 'schedule: "@daily"', "translation: {freshness_policy: null}")

    assert specs["users"].freshness_policy is None


def test_two_streams_cannot_be_one_asset(project: Project) -> None:
    project.declare("shop", *DECLARED, "translation: {key: raw/users}")
    project.discover("shop", {"count": 1})

    described = project.descriptions()

    assert described["shop/broken"] == (
        "This connection could not be loaded. Connection 'shop': its translation gives stream "
        "'users' and stream 'orders' the same asset key, raw/users; make the keys different, as in "
        'key: "raw/{{ props.table_name }}".'
    )


def test_a_template_that_is_wrong_is_one_sentence(project: Project) -> None:
    project.declare("shop", *DECLARED, 'translation: {description: "{{ propz.stream_name }}"}')
    project.discover("shop", {"count": 1})

    said = project.descriptions()["shop/broken"]

    assert "shop/defs.yaml" in said
    assert "propz" in said
    assert "\n" not in said


# In Python

SUBCLASS = """
from collections.abc import Iterator

import dagster as dg
from atlas_dagster import AirbyteConnection


class Mine(AirbyteConnection):
    def get_asset_spec(self, props):
        spec = super().get_asset_spec(props)
        return spec.replace_attributes(description=f"Mine: {props.stream_name}")

    def execute(self, context, atlas, config) -> Iterator[dg.MaterializeResult]:
        for key in sorted(context.selected_asset_keys):
            yield dg.MaterializeResult(key, metadata={"by": "me", "refresh": str(config.refresh)})
"""


def test_a_subclass_changes_how_streams_look_and_what_a_step_does(project: Project) -> None:
    (project.root / project.package / "mine.py").write_text(SUBCLASS)
    lines = [f"type: {project.package}.mine.Mine", "attributes:", "  connector: source-faker"]
    lines += ["  config: {count: 1}", "  translation: {tags: {a: b}}"]
    project.write("shop", "\n".join(lines))
    project.discover("shop", {"count": 1})

    defs = project.definitions()
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(["shop", "orders"])],
        instance=dg.DagsterInstance.ephemeral(),
    )

    assert specs["shop/users"].description == "Mine: users"
    assert specs["shop/users"].tags["a"] == "b"
    (done,) = result.get_asset_materialization_events()
    assert done.materialization.metadata["by"].value == "me"
