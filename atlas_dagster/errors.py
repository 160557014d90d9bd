"""The errors that Atlas raises on purpose.

::

    AtlasError
    ├── ConfigError            the user's declaration or environment; a retry cannot help
    │   ├── UnknownConnectorError
    │   ├── UnknownStreamError
    │   ├── MissingVariableError
    │   ├── InvalidConfigError a config is not valid for the connector's SPEC
    │   ├── CheckFailedError   the connector's CHECK answered FAILED
    │   └── BreakingChangeError
    ├── TransientError         a retry may help
    │   └── RunnerUnavailableError   an engine, image or package is not available now
    ├── ConnectorFailedError   the connector crashed or reported an error; of the family it reports
    │   ├── ConnectorTimeoutError    it exceeded one of its time limits and was stopped
    │   └── ReadFailedError          one or more streams did not complete
    ├── MaintenanceFailedError   the maintenance of some tables failed; of the family of the first
    ├── StoppedError           the caller cancelled the work or closed the adapter
    └── BrokenError            the connector's output or a table is broken
        ├── ProtocolError            the output cannot be understood
        └── DestinationError         a table does not match its state

The families ConfigError, TransientError and BrokenError are Airbyte's own failure types
(``config_error``, ``transient_error``, ``system_error``), so each failure of a connector belongs to
one of them. A message is one sentence that names the thing and the fix. It never contains secrets.
"""

from collections.abc import Sequence
from typing import Literal

FailureType = Literal["config_error", "transient_error", "system_error"]


class AtlasError(Exception):
    """Base of all errors that Atlas raises on purpose. ``str(error)`` is a message for users."""

    failure_type: FailureType = "system_error"
    #: A heading of ``docs/troubleshooting.md`` with more explanation.
    topic: str | None = None


class ConfigError(AtlasError):
    """The declaration or the environment is wrong; the message says what to change."""

    failure_type: FailureType = "config_error"


class UnknownConnectorError(ConfigError):
    """The registry does not have the connector."""


class UnknownStreamError(ConfigError):
    """The connector's catalog does not have a declared stream."""


class MissingVariableError(ConfigError):
    """A variable in ``{{ env.X }}`` is not set where the step runs."""

    topic = "a-variable-is-not-set"


class InvalidConfigError(ConfigError):
    """A config is not valid for the connector's SPEC.

    ``field`` is the path of the first invalid field, joined by dots. ``faults`` lists all faults as
    (field, sentence).
    """

    def __init__(
        self, message: str, field: str, faults: Sequence[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.faults = [(field, message)] if faults is None else list(faults)


class CheckFailedError(ConfigError):
    """The connector's CHECK answered FAILED.

    ``reason`` is the cause from the connector's message. ``detail`` is the full message if it is
    longer, such as a stack trace. ``failure_type`` is ``transient_error`` if a network or a server
    did not answer.
    """

    topic = "check-failed"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        detail: str | None = None,
        failure_type: FailureType = "config_error",
    ) -> None:
        super().__init__(message)
        self.reason = reason or message
        self.detail = detail
        self.failure_type = failure_type


class BreakingChangeError(ConfigError):
    """The source changed in a way that requires a refresh.

    ``stream``: the name of the changed stream.
    """

    topic = "breaking-change"

    def __init__(self, message: str, *, stream: str | None = None) -> None:
        super().__init__(message)
        self.stream = stream


class TransientError(AtlasError):
    """A failure that may pass by itself; a retry may help."""

    failure_type = "transient_error"


class RunnerUnavailableError(TransientError):
    """The engine, image or package of the connector is not available now.

    ``reason`` is the message without the advice, for cases where Atlas can use another runner.
    """

    topic = "no-engine-image-or-package"

    def __init__(self, reason: str, advice: str | None = None) -> None:
        super().__init__(f"{reason}; {advice}." if advice else reason)
        self.reason = reason


class BrokenError(AtlasError):
    """Something is broken. Neither another declaration nor a retry can help."""

    failure_type = "system_error"


class ConnectorFailedError(AtlasError):
    """The connector crashed or reported an error, with its own message and failure type."""

    topic = "the-connector-failed"

    def __init__(
        self,
        message: str,
        *,
        failure_type: FailureType = "system_error",
        stack_trace: str | None = None,
    ) -> None:
        super().__init__(message)
        self.failure_type = failure_type
        self.stack_trace = stack_trace


class ConnectorTimeoutError(ConnectorFailedError):
    """The connector exceeded one of its time limits and was stopped."""


class StoppedError(AtlasError):
    """The work was stopped, because the caller cancelled it or closed the adapter."""


class MaintenanceFailedError(AtlasError):
    """The maintenance of some tables failed. The other tables are done."""

    def __init__(self, failed: Sequence[AtlasError], tables: int) -> None:
        why = " ".join(map(str, failed))
        super().__init__(f"Maintenance failed for {len(failed)} of {tables} tables. {why}")
        self.failure_type = failed[0].failure_type


class ProtocolError(BrokenError):
    """The connector's output cannot be understood."""

    topic = "output-that-cannot-be-read"


class ReadFailedError(ConnectorFailedError):
    """A READ ended with an incomplete stream. The rows of complete streams stay."""


class DestinationError(BrokenError):
    """A table or its commit records do not match the stored state."""

    topic = "a-table-is-not-what-its-state-says"
