"""One call of a connector: its messages one by one, its chatter to a log, its end explained."""

import re
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from atlas_dagster.errors import ConnectorFailedError, ConnectorTimeoutError, FailureType
from atlas_dagster.protocol.decoder import MessageDecoder
from atlas_dagster.protocol.messages import Message, Noise, Records, TraceError, Unreadable
from atlas_dagster.protocol.secrets import Masker
from atlas_dagster.runners.base import ConnectorCommand, ExitStatus, Runner
from atlas_dagster.runners.stopping import raise_if_stopped
from atlas_dagster.sync.watchdog import Watchdog

#: Takes a level (DEBUG … FATAL) and a text without secrets.
Log = Callable[[str, str], None]
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
Renew = Callable[[dict[str, Any]], None]

_FAILURE_TYPES: tuple[FailureType, ...] = ("config_error", "transient_error", "system_error")
#: Exit codes of connectors that were ended from outside.
_SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}
#: Lines of stderr kept to explain a crash that says nothing else.
_LAST_WORDS = 5
#: Characters of a text that are logged.
_LONGEST_TEXT = 20_000
#: Bytes of a line of stderr that are kept; it is log text, and memory stays flat.
_LONGEST_STDERR_LINE = 64 * 1024


def readable(text: str, masker: Masker) -> str:
    """``text`` without secrets and a terminal's colours, and not too long.

    Cut last: half a secret at the end of a cut text would not be found.
    """
    masked = masker(_COLOURS.sub("", text))
    left_out = len(masked) - _LONGEST_TEXT
    return masked if left_out <= 0 else f"{masked[:_LONGEST_TEXT]}… ({left_out:,} more)"


class Conversation:
    """Runs one command and keeps what its end is judged by.

    Args:
        runner: where the connector runs.
        name: the connector's name, for messages.
        log: receives the connector's own log lines, masked.
        masker: hides secret values in everything that leaves here.
        renew: takes a config that the connector wants to be given from now on (CONTROL).
    """

    def __init__(
        self, runner: Runner, *, name: str, log: Log, masker: Masker, renew: Renew | None = None
    ) -> None:
        self.runner = runner
        self.name = name
        self.errors: list[TraceError] = []
        self.exit: ExitStatus | None = None
        self._log = log
        self._masker = masker
        self._renew = renew
        self._last_words: list[str] = []
        self._stderr = b""
        self._stopped: str | None = None

    def messages(
        self, command: ConnectorCommand
    ) -> Generator[Message | Records | Unreadable | None, None, None]:
        """Yield what the connector answers; None when all that came so far is dealt with.

        LOG, TRACE ERROR, CONTROL and text are dealt with here. The connector is stopped when the
        iteration ends, whichever way, and when it exceeds a limit of its runner's executor: the
        iteration then just ends, and :meth:`failure` says why.

        Raises:
            RunnerUnavailableError: the connector cannot be started, or was lost.
            StoppedError: whoever asked for it wants it no longer.
        """
        decoder = MessageDecoder()
        with self.runner.start(command) as process:
            # Only now: a start may wait for an image, a package or the engine's queue.
            self._watchdog = watchdog = Watchdog(command.verb, self.runner.executor)
            for channel, piece in process.output():
                raise_if_stopped()
                watchdog.waited(output=channel != "idle")
                if channel == "stdout":
                    for decoded in decoder.feed(piece):
                        if not self._overheard(decoded):
                            yield decoded  # type: ignore[misc]
                    yield None
                elif channel == "stderr":
                    self._hear_stderr(piece)
                else:
                    yield None
                self._stopped = watchdog.verdict
                if self._stopped is not None:
                    return
                watchdog.back()
            for decoded in decoder.flush():
                if not self._overheard(decoded):
                    yield decoded  # type: ignore[misc]
            self._hear_stderr(b"\n")
            self.exit = process.wait()

    @property
    def failed(self) -> bool:
        return bool(self.errors) or self.exit is None or self.exit.code != 0

    def failure(self) -> ConnectorFailedError:
        """Why the connector failed, in its own words where it said any.

        A limit that was exceeded comes first, for it is why the rest is missing. Of several errors
        the first counts: the CDK's last one is always an aggregate ("Concurrent read failure",
        ``config_error``) that hides the cause.
        """
        before = f" Before, it said: {self.errors[0].message}" if self.errors else ""
        if self._stopped is not None:
            return ConnectorTimeoutError(
                f"{self.name} {self._stopped}{before}", failure_type="transient_error"
            )
        if self.exit is not None and self.exit.oom_killed:
            limit = self.runner.executor.memory_limit
            return ConnectorFailedError(
                f"{self.name} ran out of memory: its limit is {limit}; raise executor.memory_limit "
                f"of the connection, or sync fewer streams at once.{before}"
            )
        if self.errors:
            first = self.errors[0]
            kind = first.failure_type
            return ConnectorFailedError(
                f"{self.name}: {first.message}",
                failure_type=next((k for k in _FAILURE_TYPES if k == kind), "system_error"),
                stack_trace=first.stack_trace,
            )
        code = None if self.exit is None else self.exit.code
        said = f" Its last words: {' / '.join(self._last_words)}" if self._last_words else ""
        if code in _SIGNALS:
            return ConnectorFailedError(
                f"{self.name} was ended by {_SIGNALS[code]} (exit code {code}), which Atlas did "
                f"not send: somebody stopped it, or the machine ran out of memory.{said}",
                failure_type="transient_error",
            )
        return ConnectorFailedError(
            f"{self.name} ended with exit code {code} and reported no error; "
            f"see its log in the run's output.{said}"
        )

    def log(self, level: str, text: str) -> None:
        self._log(level, self._mask(text))

    def _mask(self, text: str) -> str:
        return readable(text, self._masker)

    def _overheard(self, decoded: Message | Records | Noise | Unreadable) -> bool:
        """Whether the message was for the log only."""
        if isinstance(decoded, Records) or (
            isinstance(decoded, Message) and decoded.state is not None
        ):
            self._watchdog.data()
            return False
        if isinstance(decoded, Noise):
            self.log("INFO", decoded.text)
            return True
        if not isinstance(decoded, Message):
            return False
        if decoded.log is not None:
            text = decoded.log.message or ""
            self.log(decoded.log.level or "INFO", _lines(text, decoded.log.stack_trace))
            if decoded.log.level == "FATAL":
                self._remember(text)
            return True
        if decoded.control is not None:
            if decoded.control.connectorConfig is not None and self._renew is not None:
                self._renew(decoded.control.connectorConfig.config)
            return True
        if decoded.trace is not None and decoded.trace.stream_status is not None:
            self._watchdog.heard(decoded.trace.stream_status)
        if decoded.trace is not None and decoded.trace.error is not None:
            error = self._masked(decoded.trace.error)
            self.errors.append(error)
            said = (error.message, error.internal_message, error.stack_trace)
            self._log("ERROR", _lines(*said))
            return True
        return False

    def _masked(self, error: TraceError) -> TraceError:
        internal = error.internal_message if error.message else None
        text = error.message or error.internal_message or "it gave no reason"
        return msgspec.structs.replace(
            error,
            message=self._mask(text),
            internal_message=self._mask(internal) if internal else None,
            stack_trace=self._mask(error.stack_trace) if error.stack_trace else None,
        )

    def _hear_stderr(self, piece: bytes) -> None:
        *lines, self._stderr = (self._stderr + piece).split(b"\n")
        # Longer than what is logged of it, so that no half of a secret is.
        self._stderr = self._stderr[:_LONGEST_STDERR_LINE]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self.log("WARN", text)
                self._remember(text)

    def _remember(self, text: str) -> None:
        self._last_words = [*self._last_words, self._mask(text)[:500]][-_LAST_WORDS:]


def _lines(*texts: str | None) -> str:
    return "\n".join(text.rstrip() for text in texts if text)
