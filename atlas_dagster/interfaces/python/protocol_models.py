"""Conversion of Atlas's messages to the official models of the Airbyte protocol, and back."""

import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, TypeVar

import msgspec
from airbyte_protocol.models import (
    AirbyteCatalog,
    AirbyteConnectionStatus,
    AirbyteMessage,
    AirbyteRecordMessage,
    AirbyteRecordMessageMeta,
    AirbyteStateMessage,
    ConfiguredAirbyteCatalog,
    ConnectorSpecification,
    Type,
)
from msgspec import Raw, Struct
from pydantic import BaseModel, ValidationError

from atlas_dagster.errors import ConfigError, ProtocolError
from atlas_dagster.protocol.catalog import Catalog, configured_catalog_json
from atlas_dagster.protocol.messages import (
    ConnectionStatus,
    Message,
    Record,
    Records,
    Spec,
    Unreadable,
    present,
)
from atlas_dagster.protocol.nesting import split_fields
from atlas_dagster.reading.ad_hoc_source import configure_read


class _Text(StrEnum):
    """A str that also equals a member of the protocol's own enum, which is not a str."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other.value if isinstance(other, Enum) else other)

    __hash__ = str.__hash__


class _Status(_Text):
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class _ConnectionStatus(AirbyteConnectionStatus):
    status: _Status  # type: ignore[assignment]


Model = TypeVar("Model", bound=BaseModel)
#: A configured catalog, or the answer of DISCOVER, to read all of every stream.
GivenCatalog = AirbyteCatalog | ConfiguredAirbyteCatalog | Mapping[str, Any]
GivenState = Sequence[AirbyteStateMessage | Mapping[str, Any]]


def specification(spec: Spec) -> ConnectorSpecification:
    return _make_model(ConnectorSpecification, _remove_unset(spec))


def connection_status(status: ConnectionStatus) -> AirbyteConnectionStatus:
    """Return the model. Its ``status`` equals the text (``"SUCCEEDED"``) and ``Status``."""
    return _make_model(_ConnectionStatus, _remove_unset(status))


def catalog(found: Catalog) -> AirbyteCatalog:
    """Return the model. A missing or empty ``supported_sync_modes`` means full refresh."""
    streams = [
        raw | {"supported_sync_modes": list(stream.supported_sync_modes)}
        for raw, stream in zip(found.to_json(), found.streams, strict=True)
    ]
    return _make_model(AirbyteCatalog, {"streams": streams})


def messages(found: Message | Records | Unreadable) -> Iterator[AirbyteMessage]:
    """Convert decoded messages. Raises ProtocolError for an unreadable message."""
    if isinstance(found, Records):
        yield from map(_record, found.records)
    elif isinstance(found, Unreadable):
        raise ProtocolError(
            f"A {found.kind} of the connector cannot be read ({found.why or found.text[:300]}); "
            "report it to the connector's maintainers."
        )
    else:
        content = _remove_unset(found)
        if "trace" in content:
            content["trace"].setdefault("emitted_at", time.time() * 1000)
        yield _make_model(AirbyteMessage, content)


def catalog_file(value: GivenCatalog) -> bytes:
    """Return the ``--catalog`` file. Raises ConfigError if ``value`` is not a catalog."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        streams = list(value["streams"])
        if all("stream" in each for each in streams):
            # Newer connectors require these fields.
            defaults = {"generation_id": 0, "minimum_generation_id": 0, "sync_id": 0}
            return msgspec.json.encode({**value, "streams": [defaults | each for each in streams]})
        offered = Catalog.from_json(streams)
    except (KeyError, TypeError, ProtocolError) as error:
        raise ConfigError(
            f"The catalog is not valid ({error}); pass the answer of discover, or a "
            "ConfiguredAirbyteCatalog."
        ) from error
    configured = [configure_read(stream, incremental=False) for stream in offered.streams]
    return configured_catalog_json(configured, sync_id=0)


def state_file(value: GivenState) -> bytes:
    """Return the ``--state`` file."""
    states = [
        each.model_dump(mode="json", by_alias=True, exclude_none=True)
        if isinstance(each, BaseModel)
        else each
        for each in value
    ]
    return msgspec.json.encode(states)


def _record(record: Record) -> AirbyteMessage:
    # Not validated: the decoder has checked the envelope, and the data may be anything.
    meta = present(record.meta)
    content = AirbyteRecordMessage.model_construct(
        stream=record.stream,
        namespace=record.namespace,
        data=_decode(record.data),
        emitted_at=time.time() * 1000 if record.emitted_at is None else record.emitted_at,
        meta=None if meta is None else _make_model(AirbyteRecordMessageMeta, _decode(meta)),
    )
    return AirbyteMessage.model_construct(type=Type.RECORD, record=content)


def _make_model(model: type[Model], content: Mapping[str, Any]) -> Model:
    """Return the model, unvalidated if the connector broke the protocol."""
    try:
        return model.model_validate(content)
    except ValidationError:
        return model.model_construct(**content)


def _remove_unset(value: Any) -> Any:
    """Return the JSON of a struct without the fields that were not sent."""
    if isinstance(value, Struct):
        fields = msgspec.structs.fields(value)
        found = ((field.encode_name, _remove_unset(getattr(value, field.name))) for field in fields)
        return {name: inner for name, inner in found if inner is not None}
    if isinstance(value, Raw):
        return None if present(value) is None else _decode(value)
    if isinstance(value, list):
        return [_remove_unset(inner) for inner in value]
    return value


def _decode(value: Raw) -> Any:
    """Decode JSON. Values that cannot be parsed (huge numbers, deep nesting) stay text."""
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        fields = split_fields(value)
    except ValueError:
        return bytes(value).decode("utf-8", "replace")
    return {name: _decode(inner) for name, (inner, _) in fields.items()}
