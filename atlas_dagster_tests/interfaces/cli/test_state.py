"""``atlas refresh``, ``clear`` and ``state``, over a connector that is a program of its own."""

import json
import re

import pexpect
import pytest
from deltalake import DeltaTable

from atlas_dagster_tests.commands import BIN
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.interfaces.cli.command import atlas, succeed

pytestmark = pytest.mark.slow


def ids(numbers: Project) -> list[int]:
    found = DeltaTable(str(numbers.root / "lake/numbers/events")).to_pyarrow_table()
    return sorted(found.column("id").to_pylist())


def test_a_users_day_with_state(numbers: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed("discover", "numbers")
    assert succeed("state", "reset", "numbers").startswith("Nothing to do: ")
    assert "It was never synced." in atlas("state", "show", "numbers").stderr
    succeed("sync", "numbers")

    shown = atlas("state", "show", "numbers", "--stream", "events")
    assert json.loads(shown.stdout)[0]["stream"]["stream_state"] == {"at": 3}
    assert re.search(r"events +sync +20\d\d-\d\d-\d\d .* 0 +\d+", shown.stderr)

    (numbers.root / "state.json").write_text(shown.stdout.replace("3", "2"))
    assert succeed("state", "set", "numbers", "state.json").startswith("events: ")
    succeed("sync", "numbers")
    assert ids(numbers) == [1, 2, 3, 3]
    succeed("state", "set", "numbers", "-", "--stream", "events", stdin='{"at": 1}')
    succeed("sync", "numbers")
    assert ids(numbers) == [1, 2, 2, 3, 3, 3]

    succeed("refresh", "numbers")
    assert ids(numbers) == [1, 2, 3]
    succeed("refresh", "numbers", "--keep-rows")
    assert ids(numbers) == [1, 1, 2, 2, 3, 3]
    assert "rows stay" in succeed("state", "reset", "numbers")
    assert "cleared" in succeed("clear", "numbers", "--yes")
    assert ids(numbers) == []

    history = succeed("state", "show", "numbers", "--history", "20")
    acts = re.findall(r"^ events +(\w+)", history, re.MULTILINE)
    assert acts[:4] == ["clear", "reset", "sync", "refresh"]
    assert acts[4:] == ["sync", "refresh", "sync", "set", "sync", "set", "sync"]

    monkeypatch.setenv("ATLAS_DEPLOYMENT", "dev")
    refused = atlas("sync", "numbers")
    assert refused.exit_code == 3
    assert "'atlas_dagster'" in refused.stderr
    assert "'dev'" in refused.stderr
    assert atlas("clear", "numbers", "--yes").exit_code == 3
    assert "'dev'" in succeed("state", "adopt", "numbers")
    succeed("sync", "numbers")
    assert succeed("state", "accept", "numbers").startswith("Nothing to do: ")
    DeltaTable(str(numbers.root / "lake/numbers/events")).delete("id = 2")
    assert "accepted" in succeed("state", "accept", "numbers")
    succeed("sync", "numbers")
    assert ids(numbers) == [1, 3]


@pytest.mark.parametrize(
    ("content", "options", "word"),
    [
        ("{}", [], "--stream"),
        ("[1]", [], "Expected `object`"),
        ("nonsense", [], "JSON is malformed"),
        ("nonsense", ["--stream", "events"], "JSON is malformed"),
        ("{}", ["--stream", "evnts"], "'evnts'"),
        ("[]", [], "'numbers'"),
    ],
)
def test_a_state_that_cannot_be_set(
    numbers: Project, content: str, options: list[str], word: str
) -> None:
    succeed("discover", "numbers")
    result = atlas("state", "set", "numbers", "-", *options, stdin=content)
    assert (result.exit_code, result.stdout) == (3, "")
    assert word in result.stderr


@pytest.mark.parametrize(
    "command", [["clear", "--yes"], ["refresh"], ["state", "show"], ["state", "adopt"]]
)
def test_streams_must_be_known(numbers: Project, command: list[str]) -> None:
    result = atlas(*command, "numbers")
    assert result.exit_code == 3
    assert "atlas discover numbers" in result.stderr


def test_clear_asks_before_it_removes(numbers: Project) -> None:
    succeed("discover", "numbers")
    succeed("sync", "numbers")

    refused = atlas("clear", "numbers", stdin="")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr

    terminal = pexpect.spawn(str(BIN / "atlas"), ["clear", "numbers"], timeout=60)
    terminal.expect_exact("Permanently remove all rows of all streams of numbers? [y/N]: ")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    assert terminal.before.decode().splitlines()[-1] == "Nothing was removed."
    terminal.close()
    assert terminal.exitstatus == 130
    assert ids(numbers) == [1, 2, 3]
