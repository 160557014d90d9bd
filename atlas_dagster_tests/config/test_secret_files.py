"""Files as variables."""

import os
from pathlib import Path

import pytest

from atlas_dagster.config.secret_files import load_secret_files
from atlas_dagster.errors import ConfigError


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test leaves there is gone after it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_files_become_variables_unless_they_are_set(tmp_path: Path) -> None:
    before = os.environ | {"ATLAS_SECRETS": str(tmp_path), "SHOP_USER": "from the shell"}
    os.environ |= before
    (tmp_path / "SHOP_PASSWORD").write_text("two\nlines\n")
    (tmp_path / "SHOP_USER").write_text("from the file")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "folder").mkdir()
    load_secret_files()
    assert os.environ == before | {"SHOP_PASSWORD": "two\nlines"}


def test_without_a_folder_nothing_happens() -> None:
    before = dict(os.environ)
    load_secret_files()
    assert os.environ == before


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.environ["ATLAS_SECRETS"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"/nowhere \(ATLAS_SECRETS\)"):
        load_secret_files()
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    os.environ["ATLAS_SECRETS"] = str(tmp_path)
    with pytest.raises(ConfigError, match="a folder of text files"):
        load_secret_files()
