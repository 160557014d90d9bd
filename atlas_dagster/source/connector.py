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
from atlas_dagster.source.localhost import advice

_Answer = TypeVar("_Answer")
#: Of a message that cannot be read.
_SHOWN_CHARACTERS = 300


class Connector:
    """One connector with its config resolved.

    Args:
        runner: where it runs.
        name: its name, for messages.
        config: with secrets; None for SPEC, which needs none.
        masker: hides the secrets.
        labels: of its processes, for cleanup.
        listener: takes the connector's own log lines, masked.
        known_spec: its SPEC, if that is known.
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
        """Return what is wrong with ``message``, or its beginning; without secrets."""
        text = self.mask(message.why or message.text)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

    def spec(self) -> Spec:
        """Ask for the SPEC.

        Raises:
            ConnectorFailedError: it gave no SPEC.
        """
        spec, _ = self._ask("spec", lambda message: message.spec)
        return spec

    def check(self) -> None:
        """Check that the connector can reach its source.

        Raises:
            CheckFailedError: it cannot; the message says why.
            ConnectorFailedError: it crashed instead of answering.
        """
        self._passed()

    def status(self) -> ConnectionStatus:
        """Return the answer to CHECK, without secrets; FAILED always has a message.

        Raises:
            ConnectorFailedError: the connector crashed instead of answering.
        """
        try:
            return self._passed()
        except CheckFailedError as error:
            return ConnectionStatus("FAILED", error.reason)

    def _passed(self) -> ConnectionStatus:
        status, conversation = self._ask("check", lambda message: message.connectionStatus)
        if status.status == "SUCCEEDED":
            return status
        answer = self._masker(status.message or "").strip()
        reason = conversation.explain(answer)
        if is_code_failure(reason):
            reason = conversation.with_note(reason)
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
            ConnectorFailedError: it gave no catalog.
        """
        catalog, _ = self._ask("discover", lambda message: message.catalog)
        found = Catalog.from_message(catalog)
        for stream in found.streams:
            if not stream.has_fields:
                self.log(
                    "WARN",
                    f"The schema of stream '{stream.descriptor}' is not an object, so the stream "
                    "gets no columns of its own: its records land as JSON in _airbyte_extra. "
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
        return advice(self._config.value, network=network, engine=engine)

    def _ask(
        self, verb: Verb, wanted: Callable[[Message], _Answer | None]
    ) -> tuple[_Answer, Invocation]:
        """Run ``verb`` and return its answer; of several answers, the last one.

        Answers of another kind are ignored.
        """
        conversation = self.invoke()
        answer: _Answer | None = None
        with closing(conversation.messages(self.command(verb))) as messages:
            for message in messages:
                found = wanted(message) if isinstance(message, Message) else None
                if found is None:
                    continue
                if answer not in (None, found):
                    self.log("WARN", f"{self.name} gave two answers; the last one counts.")
                answer = found
        # FAILED has exit code 0. A crash gives no answer, or another exit code.
        if answer is None or (conversation.failed and not _says_failed(answer)):
            if answer is None and conversation.unreadable and not conversation.failed:
                message = conversation.unreadable
                raise ConnectorFailedError(
                    f"{self.name} answered {verb} with a {message.kind} message that cannot be "
                    f"read ({self.reason(message)}); report it to the connector's maintainers."
                )
            if answer is None and not conversation.failed:
                raise ConnectorFailedError(
                    f"{self.name} ended {verb} without an answer; check that "
                    f"{self.runner.reference} is an Airbyte source.{conversation.last_words()}"
                )
            raise conversation.failure()
        return answer, conversation


def _says_failed(answer: object) -> bool:
    return isinstance(answer, ConnectionStatus) and answer.status != "SUCCEEDED"
