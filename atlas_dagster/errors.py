"""Every error Atlas raises on purpose.

::

    AtlasError
    ├── ConfigError            the user's declaration or environment; retrying cannot help
    │   ├── UnknownConnectorError
    │   ├── UnknownStreamError
    │   ├── MissingVariableError
    │   ├── InvalidConfigError a config does not fit the connector's SPEC
    │   ├── CheckFailedError   the connector's CHECK said FAILED
    │   └── BreakingChangeError
    ├── TransientError         may pass by itself; a retry is reasonable
    │   └── RunnerUnavailableError   no Docker engine, image or package to be had now
    ├── ConnectorFailedError   the connector crashed or reported an error; the family it says
    │   ├── ConnectorTimeoutError    it exceeded one of its time limits and was stopped
    │   └── ReadFailedError          one or more streams did not complete
    ├── MaintenanceFailedError   the maintenance of some tables failed; the family of the first
    ├── StoppedError           whoever asked for it wants it no longer
    └── BrokenError            something is broken: the connector's output, a table
        ├── ProtocolError            output that cannot be understood
        └── DestinationError         a table is not what its state says

The families ConfigError, TransientError and BrokenError are Airbyte's own failure types
(``config_error``, ``transient_error``, ``system_error``), so a connector's verdict maps onto ours
one to one. A message is one sentence that names the thing and the fix. Messages never hold secret
values.
"""

from collections.abc import Sequence
from typing import Literal

FailureType = Literal["config_error", "transient_error", "system_error"]


class AtlasError(Exception):
    """Base of all errors Atlas raises on purpose. ``str(error)`` is fit to show to a user."""

    failure_type: FailureType = "system_error"
    #: The part of ``docs/troubleshooting.md`` that says more, where a sentence is not enough.
    topic: str | None = None


class ConfigError(AtlasError):
    """The declaration or the environment is wrong; the message says what to change."""

    failure_type: FailureType = "config_error"


class UnknownConnectorError(ConfigError):
    """No such connector in the registry."""


class UnknownStreamError(ConfigError):
    """A declared stream is not in the connector's catalog."""


class MissingVariableError(ConfigError):
    """``{{ env.X }}`` names a variable that is not set where the step runs."""

    topic = "a-variable-is-not-set"


class InvalidConfigError(ConfigError):
    """A config does not fit the connector's SPEC.

    ``field`` says where, dots between its keys; ``faults`` are all of them, each with its field and
    a sentence.
    """

    def __init__(
        self, message: str, field: str, faults: Sequence[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.faults = [(field, message)] if faults is None else list(faults)


class CheckFailedError(ConfigError):
    """The connector's CHECK answered FAILED.

    ``reason`` is the cause in the connector's own words, and ``detail`` all that it answered where
    that is more, such as a stack trace. ``failure_type`` is ``transient_error`` where a network
    or a server did not answer.
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
    """The source changed in a way that only a refresh can follow.

    ``stream``: the one whose fields or key did, by its name.
    """

    topic = "breaking-change"

    def __init__(self, message: str, *, stream: str | None = None) -> None:
        super().__init__(message)
        self.stream = stream


class TransientError(AtlasError):
    """Likely to pass by itself; a retry is reasonable."""

    failure_type = "transient_error"


class RunnerUnavailableError(TransientError):
    """There is no engine, image or package to run the connector with at the moment.

    ``reason`` is the message without the advice, for where Atlas itself finds another way.
    """

    topic = "no-engine-image-or-package"

    def __init__(self, reason: str, advice: str | None = None) -> None:
        super().__init__(f"{reason}; {advice}." if advice else reason)
        self.reason = reason


class BrokenError(AtlasError):
    """Something is broken that neither the declaration nor waiting can mend."""

    failure_type = "system_error"


class ConnectorFailedError(AtlasError):
    """The connector crashed or reported an error; carries its own message and failure type."""

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
    """Whoever had asked for it wants it no longer: a caller that left, an adapter that closed."""


class MaintenanceFailedError(AtlasError):
    """The maintenance of some tables failed; that of the others is done."""

    def __init__(self, failed: Sequence[AtlasError], tables: int) -> None:
        why = " ".join(map(str, failed))
        super().__init__(f"Maintenance failed for {len(failed)} of {tables} tables. {why}")
        self.failure_type = failed[0].failure_type


class ProtocolError(BrokenError):
    """The connector's output cannot be understood."""

    topic = "output-that-cannot-be-read"


class ReadFailedError(ConnectorFailedError):
    """A READ ended with at least one stream not complete. Rows of finished streams are kept."""


class DestinationError(BrokenError):
    """A table or its bookkeeping is not what the stored state says it is."""

    topic = "a-table-is-not-what-its-state-says"
