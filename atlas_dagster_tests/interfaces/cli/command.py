"""The ``atlas`` command, called in this process or in one of its own."""

import json
import sys
from typing import Any

from click.testing import CliRunner, Result

from atlas_dagster.interfaces.cli import main

ATLAS = [sys.executable, "-c", "from atlas_dagster.interfaces.cli import main; main()"]


def atlas(*arguments: str, config: Any = None, stdin: str | None = None) -> Result:
    """Call the command; ``config`` goes to ``--config`` as JSON."""
    given = [] if config is None else ["--config", json.dumps(config)]
    return CliRunner().invoke(main, [*arguments, *given], input=stdin)


def succeed(*arguments: str, stdin: str | None = None) -> str:
    """Call the command, and return what it prints to stdout."""
    result = atlas(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def words(text: str) -> str:
    """Return the text without line breaks, which depend on the width of the terminal."""
    return " ".join(text.split())
