"""One connector: SPEC, CHECK, DISCOVER, and the command of READ."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TypeVar

import msgspec

from atlas_dagster.config.masking import Masker
from atlas_dagster.config.renewable_config import RenewableConfig
from atlas_dagster.errors import CheckFailedError, ConnectorFailedError, FailureType
from atlas_dagster.listener import SILENT, Listener
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.causes import is_code_failure, is_network_failure
from atlas_dagster.protocol.messages import ConnectionStatus, Message, Spec, Unreadable
from atlas_dagster.runners.base import ConnectorCommand, Runner, Verb
from atlas_dagster.source.invocation import Invocation, readable
from atlas_dagster.source.localhost import advise

_Answer = TypeVar("_Answer")
#: Characters of an unreadable message in an error.
_SHOWN_CHARACTERS = 300


class Connector:
    """One connector with its config resolved.

    Args:
        runner: starts its processes.
        name: its name, for messages.
        config: with secrets; None for SPEC, which needs no config.
        masker: hides the secrets.
        labels: the labels of its processes, for cleanup.
        listener: takes the connector's own log lines, masked.
        known_spec: its SPEC, if known.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        name: str,
        config: RenewableConfig | None = None,
        masker: Masker | None = None,
        labels: Mapping[str, str] | None = None,
        listener: Listener = SILENT,
        known_spec: Spec | None = None,
    ) -> None:
        self.runner = runner
        self.name = name
        self.listener = listener
        self.known_spec = known_spec
        self._config = config
        self._masker = masker or Masker()
        self._labels = labels or {}

    def log(self, level: str, text: str) -> None:
        self.listener.connector(level, self.mask(text))

    def mask(self, text: str) -> str:
        """Return ``text`` without secret values."""
        return readable(text, self._masker)

    def reason(self, message: Unreadable) -> str:
        """Return the error in ``message``, or its beginning, without secrets."""
        text = self.mask(message.why or message.text)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

    def spec(self) -> Spec:
        """Ask for the SPEC.

        Raises:
            ConnectorFailedError: the connector gave no SPEC.
        """
        spec, _ = self._ask("spec", lambda message: message.spec)
        return spec

    def check(self) -> None:
        """Check that the connector can reach its source.

        Raises:
            CheckFailedError: it cannot; the message has the reason.
            ConnectorFailedError: the connector crashed instead of answering.
        """
        self._check()

    def status(self) -> ConnectionStatus:
        """Return the answer to CHECK, without secrets; FAILED always has a message.

        Raises:
            ConnectorFailedError: the connector crashed instead of answering.
        """
        try:
            return self._check()
        except CheckFailedError as error:
            return ConnectionStatus("FAILED", error.reason)

    def _check(self) -> ConnectionStatus:
        status, invocation = self._ask("check", lambda message: message.connectionStatus)
        if status.status == "SUCCEEDED":
            return status
        answer = self._masker(status.message or "").strip()
        reason = invocation.explain(answer)
        if is_code_failure(reason):
            reason = invocation.with_note(reason)
        kind: FailureType = "transient_error" if is_network_failure(reason) else "config_error"
        if len(answer) > len(reason):
            self.log("ERROR", answer)
        if hint := self._advice_on_localhost():
            reason, kind = f"{reason.rstrip('.')}; {hint}.", "config_error"
        raise CheckFailedError(
            f"CHECK of {self.name} failed: {reason}",
            reason=reason,
            detail=answer if len(answer) > len(reason) else None,
            failure_type=kind,
        )

    def discover(self) -> Catalog:
        """Ask for the streams of the source.

        Raises:
            ConnectorFailedError: the connector gave no catalog.
        """
        catalog, _ = self._ask("discover", lambda message: message.catalog)
        found = Catalog.from_message(catalog)
        for stream in found.streams:
            if not stream.has_fields:
                self.log(
                    "WARN",
                    f"The schema of stream '{stream.descriptor}' is not an object, so its table "
                    "has no columns for fields: records are stored as JSON in _airbyte_extra. "
                    "Report it to the connector's maintainers.",
                )
        return found

    def invoke(self) -> Invocation:
        return Invocation(
            self.runner,
            name=self.name,
            listener=self.listener,
            masker=self._masker,
            renew=None if self._config is None else self._config.renew,
        )

    def command(self, verb: Verb, files: Mapping[str, bytes] | None = None) -> ConnectorCommand:
        """Return the command, with the config and ``files`` as its files."""
        config = {}
        if self._config is not None:
            config["config"] = msgspec.json.encode(self._config.value)
        labels = {**self._labels, "atlas.verb": verb}
        return ConnectorCommand(verb, {**config, **(files or {})}, labels)

    def _advice_on_localhost(self) -> str | None:
        engine = self.runner.engine_place
        if engine is None or self._config is None:
            return None
        network = self.runner.executor.network
        return advise(self._config.value, network=network, engine=engine)

    def _ask(
        self, verb: Verb, wanted: Callable[[Message], _Answer | None]
    ) -> tuple[_Answer, Invocation]:
        """Run ``verb`` and return its last answer.

        Answers of another kind are ignored.
        """
        invocation = self.invoke()
        answer: _Answer | None = None
        with closing(invocation.messages(self.command(verb))) as messages:
            for message in messages:
                found = wanted(message) if isinstance(message, Message) else None
                if found is None:
                    continue
                if answer not in (None, found):
                    self.log("WARN", f"{self.name} gave two answers; Atlas uses the last one.")
                answer = found
        # FAILED has exit code 0. A crash gives no answer, or another exit code.
        if answer is None or (invocation.failed and not _is_failed(answer)):
            if answer is None and invocation.unreadable and not invocation.failed:
                message = invocation.unreadable
                raise ConnectorFailedError(
                    f"{self.name} answered {verb} with a {message.kind} message that cannot be "
                    f"read ({self.reason(message)}); report it to the connector's maintainers."
                )
            if answer is None and not invocation.failed:
                raise ConnectorFailedError(
                    f"{self.name} ended {verb} without an answer; check that "
                    f"{self.runner.reference} is an Airbyte source.{invocation.last_output()}"
                )
            raise invocation.failure()
        return answer, invocation


def _is_failed(answer: object) -> bool:
    return isinstance(answer, ConnectionStatus) and answer.status != "SUCCEEDED"
