"""Find the cause of a connector's failure in its messages.

Connectors report a failure in up to four places: a message for users, which is often generic
("Something went wrong in the connector"), an internal message, a stack trace, and the log. The
functions here pick the text that names the cause, and recognize network failures.
"""

import ast
import re
from collections.abc import Sequence

from atlas_dagster.errors import FailureType

#: Generic messages: the CDKs' defaults, and similar ones.
_GENERIC = re.compile(
    r"""(?:
      (?:oops[!,.]?\s*)?something\s+went\s+wrong(?:\s+in\s+the\s+connector)?
    | (?:an?\s+)?(?:unexpected|unknown|unhandled|internal|uncaught)(?:\s+(?:server|system))?
        \s+(?:error|exception)(?:\s+has)?(?:\s+occurr?ed)?(?:\s+in\s+the\s+connector)?
    | an\s+(?:error|exception)(?:\s+has)?\s+occurr?ed(?:\s+when\s+making\s+the\s+request)?
    | (?:the\s+)?(?:connection\s+|connector\s+)?check\s+failed
    | concurrent\s+read\s+failure
    | (?:[\w.]*\.)?(?:AirbyteTracedException|RuntimeError|Exception|Error)(?::\s*None)?
    | none | null
    )?[\s.!:]*(?:(?:exception|error):\s*(?:[\w.]+\.\w+)?)?[\s.]*""",
    re.IGNORECASE | re.VERBOSE,
)
#: Advice to look into the log, which Atlas replaces by the text in the log.
_SEE_LOGS = re.compile(
    r"[\s,;(-]*(?:please\s+)?\b(?:see|check|review|refer\s+to|look\s+(?:at|into))\s+(?:the\s+|its\s+|your\s+)?"
    r"(?:[a-z]+\s+)?(?:logs?|logged\s+errors)\b(?:\s+output)?"
    r"(?:\s+(?:for|to)\s+(?:more|further|additional|get|see)?[a-z\s]*)?[).]*",
    re.IGNORECASE,
)
#: The CDK puts this before each error of a manifest (CDK ``source_declarative_manifest/_run.py``).
_PREAMBLE = re.compile(
    r"^Error starting the sync\. This could be due to an invalid configuration or catalog\. "
    r"Please contact Support for assistance\. Error: "
)
#: The CDK reports only that a manifest is invalid. The stack trace of jsonschema has the place.
_INVALID_MANIFEST = "declarative_component_schema"
_PLACE = re.compile(r"^On instance(\[.+\]):", re.MULTILINE)
#: Airbyte's file sources write this instead of the cause (CDK ``file_based/find_exceptions.py``).
_ASK_SUPPORT = re.compile(r"\s*Contact Support if you need assistance\.")
#: The name of an exception at the end, without its text (CDK ``concurrent_read_processor.py``).
_BARE_NAME = re.compile(r": (\w+(?:Error|Exception))\.?$")
_TRACEBACK = "Traceback (most recent call last)"
_JAVA_FRAME = re.compile(r"^\s+at [\w.$/<>]+\(", re.MULTILINE)
_JAVA_CAUSE = re.compile(r"^\s*Caused by: (.+)$", re.MULTILINE)
#: Lines of a stack trace without a cause.
_FRAME = re.compile(r"\s+at [\w.$/<>]+\(|  File \"|    |\s+\.\.\. \d+ (?:more|common)|\s*$")
#: ``<urllib3.connection.HTTPSConnection object at 0x7f1addb1f110>: ``
_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>(?:: )?")
#: ``package.module.`` before the name of an exception.
_PACKAGE = re.compile(r"^(?:[\w$]+\.)+(?=(?:[A-Z_]\w*|\w*error)(?::|$))")
_TRACED = re.compile(r"^(?:\w*AirbyteTraced\w*): ")

_NETWORK = re.compile(
    r"""
      name\s+or\s+service\s+not\s+known | temporary\s+failure\s+in\s+name\s+resolution
    | nodename\s+nor\s+servname | getaddrinfo | NameResolutionError | UnknownHost
    | no\s+address\s+associated\s+with\s+hostname | could\s+not\s+(?:resolve|translate)\s+host
    | failed\s+to\s+resolve | \bENOTFOUND\b | \bEAI_AGAIN\b | \bDNS\b
    | connection\s+(?:was\s+|has\s+been\s+)?(?:refused|reset|aborted|closed|broken|timed\s+out)
    | connection\s+attempt\s+(?:failed|timed\s+out)
    | connect(?:ion)?\s*(?:Refused|Reset|Aborted)Error
    | \b(?:ECONN\w+|ETIMEDOUT|EHOSTUNREACH)\b
    | RemoteDisconnected | remote\s+end\s+closed\s+connection | broken\s+pipe | NewConnectionError
    | (?:network|host)\s+is\s+unreachable | no\s+route\s+to\s+host
    | max\s+retries\s+exceeded | timed\s+out | (?:Read|Connect|Socket|Connection)Timeout
    | SSL(?:EOF|Zero\w+|CertVerification|Handshake\w*)?Error | SSLHandshakeException
    | CERTIFICATE_VERIFY_FAILED | TLS\s+handshake | ProxyError
    | (?:HTTP|status)(?:\s+(?:error|status))?(?:[\s_]?code)?[\s:=]*5\d\d\b
    | \b5\d\d\s+Server\s+Error
    | \b50[0234][\s:,-]+(?:Internal|Bad\s+Gateway|Service|Gateway)
    | bad\s+gateway | service\s+(?:is\s+)?(?:temporarily\s+)?unavailable | gateway\s+time-?out
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Python's messages about code that does not match the code it calls.
_CODE = re.compile(
    r"""
      \bhas\s+no\s+attribute\b | \bunexpected\s+keyword\s+argument\b | \bis\s+not\s+defined\b
    | \bmissing\s+\d+\s+required\s+(?:positional|keyword) | \bpositional\s+arguments?\s+but\b
    | \bcannot\s+import\s+name\b | \bNo\s+module\s+named\b | \babstract\s+(?:class|method)
    | \bis\s+not\s+(?:callable|subscriptable)\b
    | \b(?:Attribute|Import|ModuleNotFound|Name|NotImplemented|Type)Error\b
    """,
    re.VERBOSE,
)
#: Failures that only the user can fix, even if the text also matches another kind.
_CREDENTIALS = re.compile(
    r"""
      \b40[13]\b | unauthori[sz]ed | \bforbidden\b | invalid_(?:grant|client|token)
    | (?:invalid|incorrect|wrong|bad|expired|missing)\s+(?:\w+\s+)?
        (?:api[\s_-]?key|token|credentials?|password|secret|username|login)
    | (?:authentication|authorization|login)\s+(?:has\s+)?failed | access\s+denied
    | permission\s+denied
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FAILURE_TYPES: tuple[FailureType, ...] = ("config_error", "transient_error", "system_error")
#: Limits of a shown text. The log has the full text.
_MOST_LINES = 8
_JOINED_LINES = 4
_MOST_CHARACTERS = 1_500


def find_cause(message: str | None, details: Sequence[str | None] = ()) -> str:
    """Return the text that names the cause (see :func:`_find_named`); empty if there is none.

    The innermost exception replaces advice to contact support.
    """
    named = _find_named(message, details)
    advice = _ASK_SUPPORT.search(named)
    if advice is None:
        return named
    chains = (find_exceptions(_unquote(text)) for text in (message, *details) if text)
    first = next((chain[0] for chain in chains if chain and not is_generic(chain[0])), None)
    plain = f"{named[: advice.start()]}{named[advice.end() :]}".strip()
    return plain if first is None or first in plain else _cut(f"{plain.rstrip('.')}: {first}")


def _find_named(message: str | None, details: Sequence[str | None]) -> str:
    """Return the text that names the cause: ``message``, or one of ``details`` if that is generic.

    ``details`` are internal message, stack trace and log lines, the best first. Of a stack trace,
    only the exception is used.
    """
    reported = _shorten(_PREAMBLE.sub("", _unquote(message or "").strip()))
    if _INVALID_MANIFEST in reported and (place := _PLACE.search("\n".join(filter(None, details)))):
        return _cut(f"its manifest is not valid for the CDK that runs it, at {place[1]}")
    reported = _complete_name(reported, details)
    plain = _SEE_LOGS.sub("", reported).strip()
    if plain and plain == reported and not is_generic(plain):
        return _cut(reported)
    detail = _choose_detail(details)
    if is_generic(plain):
        return _cut(detail)
    if not detail or detail in plain or plain in detail:
        return _cut(max(detail, plain, key=len))
    return _cut(f"{plain.rstrip('.: ')}: {detail}")


def is_generic(text: str) -> bool:
    """Return whether ``text`` names no cause, because it is empty or generic."""
    return _GENERIC.fullmatch(_SEE_LOGS.sub("", text).strip()) is not None


def failure_type(declared: str | None, message: str | None, causes: Sequence[str]) -> FailureType:
    """Return the ``declared`` failure type, or ``transient_error`` for network failures.

    A ``config_error`` whose ``message`` names a cause stays a ``config_error``.
    """
    own = next((kind for kind in _FAILURE_TYPES if kind == declared), None)
    if own == "transient_error" or (own == "config_error" and not is_generic(message or "")):
        return own
    return "transient_error" if is_network_failure(*causes) else own or "system_error"


def is_network_failure(*texts: str) -> bool:
    """Return whether ``texts`` are about a network or server that does not answer."""
    text = "\n".join(texts)
    return bool(_NETWORK.search(text)) and not _CREDENTIALS.search(text)


def is_code_failure(text: str) -> bool:
    """Return whether ``text`` is about failing code, as with another version of a library."""
    return _CODE.search(text) is not None


def find_exceptions(text: str) -> list[str]:
    """Return the exceptions of stack traces in ``text``, the outermost last, without modules."""
    if _TRACEBACK in text:
        pieces = _restore_lines(text).split(_TRACEBACK)[1:]
        found = [_find_raised(piece) for piece in pieces]
    elif _JAVA_FRAME.search(text) or _JAVA_CAUSE.search(text):
        first = next((line for line in text.splitlines() if line.strip()), "")
        # The innermost exception names the cause. The outer exceptions repeat it or are vaguer.
        found = [first, *_JAVA_CAUSE.findall(text)]
    else:
        return []
    named = [_TRACED.sub("", _PACKAGE.sub("", each.strip())) for each in found]
    return [each for each in named if each]


def is_frame(line: str) -> bool:
    """Return whether ``line`` is a line of a stack trace without a cause."""
    return _FRAME.match(line) is not None


def _complete_name(reported: str, details: Sequence[str | None]) -> str:
    """Return ``reported`` with the exception's text, if it ends with the exception's bare name."""
    bare = _BARE_NAME.search(reported)
    if bare is None:
        return reported
    raised = (each for detail in filter(None, details) for each in find_exceptions(detail))
    full = next((each for each in raised if each.startswith(f"{bare[1]}: ")), bare[1])
    return f"{reported[: bare.start(1)]}{full}"


def _choose_detail(details: Sequence[str | None]) -> str:
    found: list[str] = []
    for detail in filter(None, details):
        raised = [each for each in find_exceptions(detail) if not is_generic(each)]
        plain = _join_plain(detail)
        if raised:
            found.append(raised[-1])
        elif _TRACEBACK not in detail and not is_generic(plain):
            found.append(plain)
    if not found:
        return ""
    # ``'count'`` is the internal message of a KeyError. Its stack trace also has the name.
    return next((more for more in found[1:] if more.endswith(f": {found[0]}")), found[0])


def _join_plain(text: str) -> str:
    """Return a text without a stack trace on one line: all lines if few, else the last one."""
    lines = [line.strip() for line in _SEE_LOGS.sub("", _unquote(text.strip())).splitlines()]
    lines = [line for line in lines if line]
    joined = " ".join(lines) if len(lines) <= _JOINED_LINES else lines[-1]
    return _TRACED.sub("", _PACKAGE.sub("", joined))


def _shorten(text: str) -> str:
    """Return ``text`` with the exception in place of a stack trace."""
    raised = find_exceptions(text)
    if not raised:
        return text
    last = next((each for each in reversed(raised) if not is_generic(each)), raised[-1])
    if _TRACEBACK not in text:
        return last
    before = _restore_lines(text).partition(_TRACEBACK)[0].strip(" \t\r\n:-.'\"")
    return last if is_generic(before) or last in before else f"{before}: {last}"


def _find_raised(piece: str) -> str:
    """Return the exception of a traceback; ``piece`` starts after the first line."""
    lines = piece.splitlines()[1:]
    at = next((n for n, line in enumerate(lines) if line[:1].strip()), None)
    if at is None:
        return ""
    message = [lines[at].strip()]
    for line in lines[at + 1 : at + _JOINED_LINES]:
        if not line.strip() or line.startswith(("During handling of", "The above exception")):
            break
        message.append(line.strip())
    return " ".join(message)


def _restore_lines(text: str) -> str:
    """Return ``text`` with real line ends, if it is the ``repr`` of a traceback."""
    return text if "\n" in text else text.replace("\\n", "\n").replace("\\'", "'")


def _unquote(text: str) -> str:
    """Return ``text`` without the quotes or the list that ``repr`` in the CDK's CHECK added."""
    if len(text) > 2 and ((text[0] == text[-1] and text[0] in "'\"") or text[:2] in ("['", '["')):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            return "\n".join(value)
        return value if isinstance(value, str) and " " in value else text
    return text


def _cut(text: str) -> str:
    lines = _OBJECT.sub("", text).strip().splitlines()
    short = "\n".join(lines[:_MOST_LINES])[:_MOST_CHARACTERS]
    return short if len(short) == len("\n".join(lines)) else f"{short.rstrip()} … (all in the log)"
