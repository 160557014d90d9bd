"""All texts that users may see, kept in one file, so that a change of them is read as text."""

import difflib

from atlas_dagster_tests.texts.collect import MESSAGES, collect


def test_the_texts_are_those_on_file() -> None:
    kept, now = MESSAGES.read_text(), collect()
    changes = difflib.unified_diff(kept.splitlines(), now.splitlines(), "on file", "now", n=0)
    assert kept == now, "\n".join(["run `make texts` and read the changes:", *changes])
