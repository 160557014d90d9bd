"""Secrets that `atlas init` writes into .env: read back as they were, by their owner alone."""

import os
from pathlib import Path

import pytest
from dagster._core.secrets.env_file import get_env_var_dict
from dotenv import dotenv_values, load_dotenv
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from atlas_dagster.components.scaffolding import write_secrets
from atlas_dagster.errors import ConfigError

_TEXT = st.text(
    st.one_of(
        st.sampled_from("${}:-'\"\\#=\n\r\t `%nrH"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_TEXT)
@example(value="${HOME}")
@example(value="$${HOME}${HOME:-x}$HOME$(pwd)`pwd`")
@example(value="${")
@example(value="a\\")
@example(value="it's \"quoted\" \\' # no comment")
@example(value="-----BEGIN KEY-----\r\nabc\n\n-----END KEY-----\n")
@example(value="  spaces ")
@example(value="")
@example(value="pässwörd 😀\u2028\x85")
def test_a_secret_is_read_back_as_it_was(tmp_path: Path, value: str) -> None:
    file = tmp_path / ".env"
    file.write_text("BEFORE=1\n")
    write_secrets(file, {"SECRET": "the first", "OTHER": "x"})
    write_secrets(file, {"SECRET": value})
    expected = {"BEFORE": "1", "SECRET": value, "OTHER": "x"}
    assert dotenv_values(file) == get_env_var_dict(str(tmp_path)) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SECRET", raising=False)
        load_dotenv(file)
        assert os.environ["SECRET"] == value
        for name in expected:
            os.environ.pop(name)


@pytest.mark.parametrize("mode", [None, 0o644, 0o660, 0o600, 0o400])
def test_nobody_else_may_read_it(tmp_path: Path, mode: int | None) -> None:
    file = tmp_path / ".env"
    if mode is not None:
        file.write_text("# mine\nexport A=1  # one\n\nB='2'")
        file.chmod(mode)
    write_secrets(file, {"SECRET": "x"})
    assert file.stat().st_mode & 0o777 == 0o600
    before = "" if mode is None else "# mine\nexport A=1  # one\n\nB='2'\n"
    assert file.read_text() == f"{before}SECRET='x'\n"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("A=1\n")
    (tmp_path / ".env").symlink_to("elsewhere")
    write_secrets(tmp_path / ".env", {"SECRET": "x"})
    assert (tmp_path / ".env").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "A=1\nSECRET='x'\n"
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o600


def test_what_no_variable_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SECRET .* NUL"):
        write_secrets(tmp_path / ".env", {"SECRET": "a\0b"})
    assert not (tmp_path / ".env").exists()
