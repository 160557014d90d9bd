"""Collect the texts of Atlas that users may see: messages, help, descriptions, log lines.

A text is any string of the source that has two words or more: whether a string becomes part of a
message is often decided far from where it is written. Docstrings count where users see them, as
help of a command or as description of an endpoint.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "atlas_dagster"
MESSAGES = Path(__file__).parent / "messages.txt"
#: Decorators whose function's docstring is shown.
_SHOWN = {"command", "group", "get", "post", "put", "delete", "exception_handler"}
#: SQL, patterns, and types in quotes: no user reads them.
_CODE = re.compile(
    r"^\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|COPY|MERGE|WITH|SET|LOCK|FROM|WHERE|AND|"
    r"ON|ANALYZE|TRUNCATE|\w+ \| None$)\b|\b(IS (NOT )?NULL|COALESCE|IN \(SELECT|SELECT|ADD COLUMN|"
    r"FOR UPDATE|SAVEPOINT|DISTINCT|OVER|COLLATE|NULLS LAST|jsonb_\w+|double precision)\b|"
    r"count\(\*\)|\b(time zone|\w+::text)\b|\{staged\}|::text|TIME ZONE|CASE WHEN|\\s|\[0-9|\(\?"
)
_TWO_WORDS = re.compile(r"[A-Za-z]{2,}[,.:;!?')`]* (?:\S+ )*[`'(]*[A-Za-z]{2,}")


def collect() -> str:
    """Return all texts, module by module, in the order of the source."""
    blocks = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE.parent)
        if "connections" in name.parts or "migrations" in name.parts:
            continue
        if texts := list(dict.fromkeys(_texts(ast.parse(path.read_text())))):
            blocks.append("\n".join([f"# {name}", *texts]))
    return "\n\n".join(blocks) + "\n"


def _texts(tree: ast.Module) -> Iterator[str]:
    docstrings = {_docstring(node): node for node in ast.walk(tree) if _docstring(node)}
    for node in _in_order(tree):
        if node in docstrings:
            if _is_shown(docstrings[node]):
                assert isinstance(node, ast.Constant)
                yield _one_line(str(node.value))
        elif (text := _template(node)) and _TWO_WORDS.search(text) and not _CODE.search(text):
            yield _one_line(text)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Each node below in the order of the source, but nothing inside of strings."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.JoinedStr):
            yield from _in_order(child)


def _template(node: ast.AST) -> str | None:
    """Return the text of a string, with its values as they are in the source."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(each) for each in node.values)
    return None


def _part(value: ast.expr) -> str:
    if isinstance(value, ast.FormattedValue):
        return "{" + ast.unparse(value.value) + "}"
    assert isinstance(value, ast.Constant)
    return str(value.value)


def _docstring(node: ast.AST) -> ast.AST | None:
    body = getattr(node, "body", None)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            return first.value
    return None


def _is_shown(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    names = {ast.unparse(each).partition("(")[0].rpartition(".")[2] for each in decorators}
    return bool(names & _SHOWN)


def _one_line(text: str) -> str:
    text = re.sub(r"\n[ \t]*", "\n", text.strip("\n"))
    return text.replace("\n\n", " ¶ ").replace("\n", " ").strip()
