"""Questions for a config, one for each field of the connector's SPEC."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from atlas_dagster.config.form import Field, Option
from atlas_dagster.interfaces.cli.output import console, print_refusal

_SHOWN_OPTIONAL = 30


class Questions:
    """Prompts for a config. For each secret, the config gets a variable, and ``secrets`` its value.

    Args:
        prefix: the beginning of the variables' names.
        environ: variables that exist already; the user may keep their values.
    """

    def __init__(self, prefix: str, environ: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._environ = environ
        self.secrets: dict[str, str] = {}

    def ask(
        self, fields: Sequence[Field], before: Mapping[str, Any], path: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return a config of ``fields``. The values of ``before`` are the defaults."""
        required = [field for field in fields if field.required]
        optional = [field for field in fields if not field.required]
        answers = {
            f.name: self._ask_field(f, before.get(f.name), (*path, f.name)) for f in required
        }
        for field in self._choose_optional(optional, before, path):
            answers[field.name] = self._ask_field(
                field, before.get(field.name), (*path, field.name)
            )
        return answers

    def _choose_optional(
        self, optional: Sequence[Field], before: Mapping[str, Any], path: tuple[str, ...]
    ) -> list[Field]:
        if not optional:
            return []
        where = f" of {'.'.join(path)}" if path else ""
        names = {field.name: field for field in optional}
        console.print(f"\n[bold]Optional fields{where}[/]")
        for field in optional[:_SHOWN_OPTIONAL]:
            default = (
                "" if field.default in (None, "") else f" (default: {_format_value(field.default)})"
            )
            line = f"  {field.name}{default}  {_summarize(field)}"
            console.print(line, markup=False, overflow="ellipsis", no_wrap=True)
        chosen = ",".join(name for name in names if name in before)
        while True:
            text = click.prompt(
                "Which of them? Names, separated by commas; Enter for none",
                default=chosen,
                show_default=bool(chosen),
            )
            wanted = [word for word in re.split(r"[\s,]+", text) if word]
            unknown = [name for name in wanted if name not in names]
            if not unknown:
                return [names[name] for name in dict.fromkeys(wanted)]
            print_refusal(f"There is no field {', '.join(unknown)}.")

    def _ask_field(self, field: Field, before: Any, path: tuple[str, ...]) -> Any:
        console.print(f"\n[bold]{field.title}[/]" + ("" if field.required else " (optional)"))
        if field.description:
            console.print(field.description, markup=False, style="dim")
        if field.options:
            return self._ask_choice(field, before, path)
        if field.kind == "object" and field.fields:
            return self.ask(field.fields, before if isinstance(before, Mapping) else {}, path)
        if field.secret:
            return self._ask_secret(field, path)
        return self._ask_value(field, before)

    def _ask_choice(self, field: Field, before: Any, path: tuple[str, ...]) -> dict[str, Any]:
        before = before if isinstance(before, Mapping) else {}
        for number, option in enumerate(field.options, 1):
            about = f"  {option.description}" if option.description else ""
            console.print(f"  {number}. {option.title}", markup=False, end="")
            console.print(about, markup=False, style="dim", overflow="ellipsis", no_wrap=True)
        preset = next((n for n, o in enumerate(field.options, 1) if _matches(o, before)), 1)
        numbers = click.IntRange(1, len(field.options))
        option = field.options[click.prompt("Which", default=preset, type=numbers) - 1]
        return option.constants | self.ask(option.fields, before, path)

    def _ask_secret(self, field: Field, path: tuple[str, ...]) -> str:
        variable = re.sub(r"\W+", "_", "_".join((self._prefix, *path))).upper()
        known = variable in self.secrets or variable in self._environ
        hint = "hidden; @file reads it from a file"
        keep = f"; Enter keeps ${variable}" if known else ""
        while True:
            text = click.prompt(
                f"{field.name} ({hint}{keep})",
                hide_input=True,
                default="" if known else None,
                show_default=False,
            )
            if text.startswith("@"):
                try:
                    text = Path(text[1:]).expanduser().read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError):
                    print_refusal(f"{text[1:]} cannot be read.")
                    continue
            if text:
                self.secrets[variable] = text
            return f"{{{{ env.{variable} }}}}"

    def _ask_value(self, field: Field, before: Any) -> Any:
        default = field.default if before is None else before
        if field.values:
            console.print(f"One of: {', '.join(map(str, field.values))}", markup=False)
        elif field.examples:
            console.print(f"Example: {_format_value(field.examples[0])}", markup=False)
        hint = {
            "array": " (separated by commas)" if field.item != "object" else " (a JSON list)",
            "object": " (JSON)",
            "boolean": " (true or false)",
        }.get(field.kind, "")
        while True:
            text = click.prompt(
                f"{field.name}{hint}", default=None if default is None else _format_value(default)
            )
            try:
                return parse_answer(field, text)
            except ValueError as error:
                print_refusal(str(error))


def parse_answer(field: Field, text: str) -> Any:
    """Return ``text`` as a value of ``field``. Raises ValueError with the expected form."""
    text = text.strip()
    if field.kind == "array" and field.item != "object" and not text.startswith("["):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        items = [_parse_scalar(field.item, part, field.name) for part in parts]
        for item in items:
            _require_allowed(field, item)
        return items
    if field.kind in ("array", "object"):
        wanted = list if field.kind == "array" else dict
        try:
            value = json.loads(text)
        except ValueError:
            raise ValueError(f"{field.name} must be JSON.") from None
        if not isinstance(value, wanted):
            raise ValueError(f"{field.name} must be a JSON {field.kind}.")
        return value
    value = _parse_scalar(field.kind, text, field.name)
    _require_allowed(field, value)
    return value


def _parse_scalar(kind: str, text: str, name: str) -> Any:
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number.") from None
    if kind == "boolean":
        if text.lower() not in ("true", "false", "yes", "no"):
            raise ValueError(f"{name} must be true or false.")
        return text.lower() in ("true", "yes")
    return text


def _require_allowed(field: Field, value: Any) -> None:
    if field.values and value not in field.values:
        raise ValueError(f"{field.name} must be one of {', '.join(map(str, field.values))}.")


def add_defaults(fields: Sequence[Field], answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``answers`` with the SPEC's default values for the other fields.

    Airbyte's platform sends them, too, and some connectors crash without them.
    """
    plain = (f for f in fields if not (f.options or f.fields or f.secret))
    return {f.name: f.default for f in plain if f.default not in (None, "", [], {})} | dict(answers)


def _matches(option: Option, answers: Mapping[str, Any]) -> bool:
    return bool(answers) and all(answers.get(k) == v for k, v in option.constants.items())


def _format_value(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _summarize(field: Field) -> str:
    return field.description or field.title
