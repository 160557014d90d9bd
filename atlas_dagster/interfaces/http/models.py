"""Requests and answers in JSON."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from atlas_dagster.protocol.catalog import Stream
from atlas_dagster.registry import ConnectorCategory, ConnectorInfo

#: Rows of a JSON answer: the default and the maximum.
PAGE_ROWS = 1_000
MOST_PAGE_ROWS = 100_000
#: The most levels of objects and lists in a field. Code that handles it uses recursion.
_DEEPEST = 100
Format = Literal["json", "ndjson", "arrow"]
#: Clients compare these texts, so they must not change.
READ: Literal["success"] = "success"
CONNECTED = "Connection successful"
DOCKER_IS_READY = "Docker is ready for Airbyte connector execution"


class Health(BaseModel):
    """The health of the server. ``status`` is ``degraded`` if Docker is not available."""

    docker_available: bool
    status: Literal["healthy", "degraded"]
    message: str
    total_connectors: int
    execution_mode: str = Field(description="Where connectors run: docker, python or auto.")


class Connector(BaseModel):
    """One connector of the registry."""

    name: str
    display_name: str
    category: ConnectorCategory
    categories: list[ConnectorCategory] = Field(description="All categories, the main one first.")
    docker_image: str
    version: str
    kind: str = Field(description="The kind of source: api, database or file.")
    language: str
    support_level: str
    documentation_url: str

    @classmethod
    def of(cls, info: ConnectorInfo) -> "Connector":
        """Return the entry for ``info``."""
        return cls(
            name=info.name,
            display_name=info.title,
            category=info.category,
            categories=list(info.categories),
            docker_image=info.docker_image,
            version=info.tag,
            kind=info.kind,
            language=info.language,
            support_level=info.support_level,
            documentation_url=info.docs_url,
        )


class Connectors(BaseModel):
    """Connectors, sorted by name; in a search, the best match comes first."""

    connectors: list[Connector]
    total_connectors: int
    message: str | None = Field(description="In a search: a note if no connector has this name.")


class Category(BaseModel):
    """One category, with the number of its connectors."""

    id: ConnectorCategory
    name: str
    count: int


class Categories(BaseModel):
    """All categories. ``total_connectors`` counts a connector of several categories once."""

    categories: list[Category]
    total_connectors: int


class SpecAnswer(BaseModel):
    """The JSON schema of the connector's config."""

    connector_name: str
    docker_image: str
    documentationUrl: str | None  # noqa: N815 - the protocol's name
    connectionSpecification: dict[str, Any]  # noqa: N815


class PullAnswer(BaseModel):
    """A pulled image; ``message`` has its digest."""

    status: Literal["succeeded"]
    connector_name: str
    docker_image: str
    message: str


class ConnectorRequest(BaseModel):
    """A connector with its config, which the server neither stores nor returns."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"connector_name": "source-faker", "config": {"count": 100}}]
        },
    )

    connector_name: str = Field(
        description="A name of the registry, optionally with a version: source-faker:7.2.1."
    )
    config: dict[str, Any] = Field(default={}, description="The config, as the SPEC describes it.")
    validate_config: bool = Field(
        default=True,
        alias="validate",
        description="Check the config against the SPEC.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_json(cls, value: Any) -> Any:
        """Refuse values that Python's JSON parser accepts and others do not."""
        _require_json(value)
        return value


class CheckAnswer(BaseModel):
    """The answer of CHECK. The status is 200 even if the check failed."""

    status: Literal["succeeded", "failed"]
    message: str
    connector_name: str
    success: bool
    warnings: list[str] = Field(default=[], description="Warnings about the config.")


class DiscoveredStream(BaseModel):
    """One stream of the catalog."""

    name: str
    namespace: str | None
    supported_sync_modes: list[str]
    source_defined_cursor: bool
    default_cursor_field: list[str]
    primary_key: list[list[str]]
    json_schema: dict[str, Any]

    @classmethod
    def of(cls, stream: Stream) -> "DiscoveredStream":
        """Return the entry for ``stream``."""
        return cls(
            name=stream.descriptor.name,
            namespace=stream.descriptor.namespace,
            supported_sync_modes=list(stream.supported_sync_modes),
            source_defined_cursor=stream.source_defined_cursor,
            default_cursor_field=list(stream.default_cursor_field),
            primary_key=[list(path) for path in stream.source_defined_primary_key],
            json_schema=stream.json_schema,
        )


class DiscoverAnswer(BaseModel):
    """The catalog of a source."""

    connector_name: str
    streams: list[DiscoveredStream]
    total_streams: int
    warnings: list[str] = Field(default=[], description="Warnings about the config.")


class ReadRequest(ConnectorRequest):
    """A stream to read, and the state to continue from."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "connector_name": "source-faker",
                    "config": {"count": 100},
                    "stream_name": "users",
                    "incremental": True,
                    "limit": 10,
                }
            ]
        },
    )

    stream_name: str = Field(
        description="The stream; namespace.name if several namespaces have it."
    )
    incremental: bool = Field(
        default=False, description="Read only records that are new since state, by cursor."
    )
    cursor_field: str | None = Field(
        default=None, description="The cursor, if the source does not define it."
    )
    state: dict[str, Any] | list[dict[str, Any]] | None = Field(
        default=None,
        description="The state of an earlier answer. An object that is not a message is the "
        "state of this stream.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description=f"The maximum number of rows; in a JSON answer {PAGE_ROWS:,} by default and "
        f"at most {MOST_PAGE_ROWS:,}.",
    )
    format: Format | None = Field(
        default=None, description="Overrides the header Accept; json by default."
    )
    metadata_columns: bool = Field(
        default=False,
        description="Include Airbyte's own columns; _airbyte_extra has values without a column.",
    )

    @field_validator("cursor_field")
    @classmethod
    def _is_named(cls, field: str | None) -> str | None:
        if field == "":
            raise ValueError("it is empty; leave it out, or name a field")
        return field


class ReadAnswer(BaseModel):
    """Rows of a stream. ``data`` has an object for each row, with the keys ``columns``.

    Send ``state`` back to get the following rows. ``has_more`` is true if the source has more rows.
    """

    status: Literal["success"]
    connector_name: str
    stream_name: str
    records_count: int
    columns: list[str]
    data: list[dict[str, Any]]
    state: list[dict[str, Any]] | None
    has_more: bool
    message: str
    notes: list[str] = Field(description="Hints to rows and values that are not in the answer.")
    warnings: list[str] = Field(default=[], description="Warnings about the config.")


def _require_json(value: Any) -> None:
    """Raise ValueError for deep nesting, half surrogate pairs, NaN and infinity."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        if not level:
            return
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += (*each, *each.values())
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str) and not each.isascii():
                _require_unicode(each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError("it has NaN or an infinite number, which JSON does not have")
        level = below
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half a surrogate pair, which is not valid Unicode") from None
