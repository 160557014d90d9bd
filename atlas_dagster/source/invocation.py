"""One call of a connector: its messages, its log, and the reason of a failure."""

import re
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from atlas_dagster.cancellation import raise_if_stopped
from atlas_dagster.config.masking import Masker
from atlas_dagster.errors import ConnectorFailedError, ConnectorTimeoutError
from atlas_dagster.listener import Listener
from atlas_dagster.protocol.causes import failure_type, find_cause, find_exceptions, is_frame
from atlas_dagster.protocol.decoder import MessageDecoder
from atlas_dagster.protocol.messages import (
    Message,
    Noise,
    Records,
    StreamDescriptor,
    TraceError,
    Unreadable,
)
from atlas_dagster.runners.base import ConnectorCommand, ExitStatus, Runner
from atlas_dagster.source.watchdog import Watchdog

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
Renew = Callable[[dict[str, Any]], None]

#: Exit codes of processes that were killed by a signal.
_SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}
#: Last lines outside of messages, such as stderr. Their exception, or else the last few of them,
#: explain a crash without a TRACE.
_KEPT_LINES = 30
_SHOWN_LINES = 5
_NO_REASON = "it gave no reason"
#: Errors that are kept whole, and streams whose first error is kept.
_WHOLE_ERRORS = 20
_MOST_BROKEN = 20_000
_SHORT_MESSAGE = 500
#: Most characters of a logged text.
_LONGEST_TEXT = 20_000
#: Most bytes kept of a line of stderr, so that memory stays flat.
_LONGEST_STDERR_LINE = 64 * 1024


def readable(text: str, masker: Masker) -> str:
    """Return ``text`` without secrets and terminal colours, and not too long.

    It is masked before it is cut, because the masker does not recognize half a secret.
    """
    masked = masker(_COLOURS.sub("", text))
    left_out = len(masked) - _LONGEST_TEXT
    return masked if left_out <= 0 else f"{masked[:_LONGEST_TEXT]}… ({left_out:,} more)"


class Invocation:
    """Runs one command, and keeps its errors, its last lines and its exit code.

    Args:
        runner: where the connector runs.
        name: the connector's name, for messages.
        listener: takes the connector's own log lines, masked.
        masker: hides secret values in all texts.
        renew: takes the config of a CONTROL message, for the next calls.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        name: str,
        listener: Listener,
        masker: Masker,
        renew: Renew | None = None,
    ) -> None:
        self.runner = runner
        self.name = name
        self.errors: list[TraceError] = []
        #: The streams of these errors; None for the whole connection.
        self._broken: set[StreamDescriptor | None] = set()
        self.exit: ExitStatus | None = None
        #: The last unreadable answer.
        self.unreadable: Unreadable | None = None
        self._log = listener.connector
        self._masker = masker
        self._renew = renew
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._last_error = ""
        self._stderr = b""
        self._stopped: str | None = None

    def messages(
        self, command: ConnectorCommand
    ) -> Generator[Message | Records | Unreadable | None, None, None]:
        """Yield the connector's answers, and None whenever there is no more output yet.

        LOG, TRACE ERROR, CONTROL and text are not yielded. The end of the iteration stops the
        connector. If the connector exceeds a limit of its runner, the iteration ends, and
        :meth:`failure` returns the reason.

        Raises:
            RunnerUnavailableError: the connector cannot be started, or was lost.
            StoppedError: the call was cancelled.
        """
        decoder = MessageDecoder()
        with self.runner.start(command) as process:
            # Created after the start, which may wait for an image, a package or the engine's queue.
            self._watchdog = watchdog = Watchdog(command.verb, self.runner.executor)
            for channel, piece in process.output():
                raise_if_stopped()
                watchdog.add_wait(output=channel != "idle")
                if channel == "stdout":
                    for decoded in decoder.feed(piece):
                        if not self._consume_log_message(decoded):
                            yield decoded  # type: ignore[misc]
                    yield None
                elif channel == "stderr":
                    self._read_stderr(piece)
                else:
                    yield None
                self._stopped = watchdog.timeout_message
                if self._stopped is not None:
                    return
                watchdog.resume()
            for decoded in decoder.flush():
                if not self._consume_log_message(decoded):
                    yield decoded  # type: ignore[misc]
            self._read_stderr(b"\n")
            self.exit = process.wait()

    @property
    def failed(self) -> bool:
        return bool(self.errors) or self.exit is None or self.exit.code != 0

    @property
    def cut_off(self) -> bool:
        """True if the end of the connector's output is missing."""
        return self.exit is not None and self.exit.cut_off

    def failure(self) -> ConnectorFailedError:
        """Return the connector's error, with its own message if there is one.

        An exceeded limit takes precedence, because it causes the other errors. Of several errors,
        the first one is used: the CDK's last one is an aggregate ("Concurrent read failure",
        ``config_error``) that hides the cause.
        """
        before = f" Its error before that: {self.errors[0].message}" if self.errors else ""
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
            return ConnectorFailedError(
                f"{self.name}: {first.message}",
                failure_type=failure_type(first.failure_type, first.message, ()),
                stack_trace=first.stack_trace,
            )
        code = None if self.exit is None else self.exit.code
        reason, output = self.explain(None), self.last_output()
        if code in _SIGNALS:
            return ConnectorFailedError(
                f"{self.name} was ended by {_SIGNALS[code]} (exit code {code}), which Atlas did "
                f"not send: a user stopped it, or the machine ran out of memory.{output}",
                failure_type="transient_error",
            )
        if reason != _NO_REASON:
            return ConnectorFailedError(
                f"{self.name} ended with exit code {code}: {self.with_note(reason)}",
                failure_type=failure_type(None, None, (reason,)),
            )
        return ConnectorFailedError(
            f"{self.name} ended with exit code {code} and reported no error; "
            f"see its log in the run's output.{output}",
            failure_type=failure_type(None, None, (output,)),
        )

    def explain(self, message: str | None) -> str:
        """Return the cause in ``message``, or else in the connector's other output.

        This is an earlier error, the exception in its last lines, or its last ERROR.
        """
        lines = "\n".join(self._last_lines)
        crash = lines if find_exceptions(lines) else None
        known = [error.message for error in self.errors if error.message != _NO_REASON]
        found = find_cause(message, (*known[:1], crash, self._last_error))
        return self._mask(found) or _NO_REASON

    def last_output(self) -> str:
        """Return the last lines of the connector's output as a sentence, or an empty text."""
        lines = list(self._last_lines)[-_SHOWN_LINES:]
        return f" Its last output: {' / '.join(lines)}" if lines else ""

    def log(self, level: str, text: str) -> None:
        self._log(level, self._mask(text))

    def _mask(self, text: str) -> str:
        return readable(text, self._masker)

    def _consume_log_message(self, decoded: Message | Records | Noise | Unreadable) -> bool:
        """Handle a message that is only for Atlas; return whether the caller must not get it."""
        if isinstance(decoded, Records) or (
            isinstance(decoded, Message) and decoded.state is not None
        ):
            self._watchdog.on_data()
            return False
        if isinstance(decoded, Noise):
            self._log_line("INFO", decoded.text)
            return True
        if isinstance(decoded, Unreadable):
            if not decoded.is_data:
                self._log_unreadable(decoded)
            return not decoded.is_data
        if decoded.log is not None:
            level = decoded.log.level or "INFO"
            text = self._mask(_join_lines(decoded.log.message or "", decoded.log.stack_trace))
            self._log(level, text)
            if level in ("ERROR", "FATAL") and text:
                self._last_error = text
            return True
        if decoded.control is not None:
            if decoded.control.connectorConfig is not None and self._renew is not None:
                self._renew(decoded.control.connectorConfig.config)
            return True
        if decoded.trace is not None and decoded.trace.stream_status is not None:
            self._watchdog.on_status(decoded.trace.stream_status)
        if decoded.trace is not None and decoded.trace.error is not None:
            self._keep_error(decoded.trace.error)
            return True
        return False

    def _log_unreadable(self, message: Unreadable) -> None:
        if message.kind == "CONTROL":  # any part of it may be secret
            self._log("ERROR", "A CONTROL message cannot be read; its new config is lost.")
        else:
            self.log("ERROR", f"Unreadable {message.kind}: {message.text}")
            self.unreadable = message

    def _keep_error(self, error: TraceError) -> None:
        """Log the error, and keep it with its cause as the message, masked.

        The first errors are kept whole. After them, only each stream's first error is kept, with
        its message only, because a source may repeat its errors without end.
        """
        texts = (error.message, error.internal_message, error.stack_trace)
        message, internal, trace = (self._mask(text) if text else None for text in texts)
        self._log("ERROR", _join_lines(message, internal, trace) or _NO_REASON)
        is_kept_whole = len(self.errors) < _WHOLE_ERRORS
        stream = error.stream_descriptor
        if not is_kept_whole and (stream in self._broken or len(self._broken) >= _MOST_BROKEN):
            return
        text = self._mask(find_cause(message, (internal, trace))) or self.explain(None)
        causes = (text, *find_exceptions(trace or ""))
        kind = failure_type(error.failure_type, message, causes)
        if kind == "system_error":
            text = self.with_note(text)
        kept = TraceError(
            message=text if is_kept_whole else text[:_SHORT_MESSAGE],
            internal_message=internal if is_kept_whole else None,
            stack_trace=trace if is_kept_whole else None,
            failure_type=kind,
            stream_descriptor=stream,
        )
        self.errors.append(kept)
        self._broken.add(stream)

    def with_note(self, reason: str) -> str:
        """Return ``reason`` with the CDK that ran the connector, if that may be the cause."""
        note = self.runner.code_note
        return f"{reason.rstrip('.')} ({note})" if note and reason != _NO_REASON else reason

    def _read_stderr(self, piece: bytes) -> None:
        *lines, self._stderr = (self._stderr + piece).split(b"\n")
        # Longer than a logged text, so that a secret is never logged in part.
        self._stderr = self._stderr[:_LONGEST_STDERR_LINE]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._log_line("WARN", text)

    def _log_line(self, level: str, text: str) -> None:
        masked = self._mask(text)
        self._log(level, masked)
        if not is_frame(masked):
            self._last_lines.append(masked[:500])


def _join_lines(*texts: str | None) -> str:
    return "\n".join(text.rstrip() for text in texts if text)
