"""Requests and answers of the HTTP door."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from atlas_dagster.registry import ConnectorCategory, ConnectorInfo

#: Rows of an answer that is held in memory as a whole.
PAGE_ROWS = 1_000
MOST_PAGE_ROWS = 100_000
#: Levels of objects and lists in a field; more would exhaust Python's stack further in.
_DEEPEST = 100
Format = Literal["json", "ndjson", "arrow"]
#: Texts that clients compare.
READ: Literal["success"] = "success"
CONNECTED = "Connection successful"
DOCKER_IS_READY = "Docker is ready for Airbyte connector execution"


class Health(BaseModel):
    """``status`` is ``healthy``, or ``degraded`` where no connector can run in Docker."""

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
    categories: list[ConnectorCategory] = Field(description="All it is in, its own first.")
    docker_image: str
    version: str
    kind: str = Field(description="What it reads: api, database or file.")
    language: str
    support_level: str
    documentation_url: str

    @classmethod
    def of(cls, info: ConnectorInfo) -> "Connector":
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
    """The best first in a search, else by name."""

    connectors: list[Connector]
    total_connectors: int
    message: str | None = Field(
        description="In a search: that no connector has this name, and what is nearest."
    )


class Category(BaseModel):
    id: ConnectorCategory
    name: str
    count: int


class Categories(BaseModel):
    """A connector may be in several; ``total_connectors`` counts it once."""

    categories: list[Category]
    total_connectors: int


class SpecAnswer(BaseModel):
    """What config the connector takes: a JSON schema."""

    connector_name: str
    docker_image: str
    documentationUrl: str | None  # noqa: N815 - the protocol's name
    connectionSpecification: dict[str, Any]  # noqa: N815


class PullAnswer(BaseModel):
    """``message`` has the digest of the image."""

    status: Literal["succeeded"]
    connector_name: str
    docker_image: str
    message: str


class ConnectorRequest(BaseModel):
    """A connector with its config, which is neither kept nor repeated."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"connector_name": "source-faker", "config": {"count": 100}}]
        },
    )

    connector_name: str = Field(
        description="A name of the registry, with a version if need be: source-faker:7.2.1."
    )
    config: dict[str, Any] = Field(default={}, description="What the connector's SPEC asks for.")
    validate_config: bool = Field(
        default=True,
        alias="validate",
        description="Whether the config must fit the SPEC; else it goes on as it is sent.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_json(cls, value: Any) -> Any:
        """Refuse what Python's parser takes and other JSON parsers do not."""
        _require_json(value)
        return value


class CheckAnswer(BaseModel):
    """A connector that answers FAILED has answered: so has this request, with status 200."""

    status: Literal["succeeded", "failed"]
    message: str
    connector_name: str
    success: bool
    warnings: list[str] = Field(default=[], description="What is odd about the config.")


class DiscoveredStream(BaseModel):
    name: str
    namespace: str | None
    supported_sync_modes: list[str]
    source_defined_cursor: bool
    default_cursor_field: list[str]
    primary_key: list[list[str]]
    json_schema: dict[str, Any]


class DiscoverAnswer(BaseModel):
    connector_name: str
    streams: list[DiscoveredStream]
    total_streams: int
    warnings: list[str] = Field(default=[], description="What is odd about the config.")


class ReadRequest(ConnectorRequest):
    """What to read of one stream, and from where."""

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
        description="One of the streams; namespace.name where it is in several namespaces."
    )
    incremental: bool = Field(
        default=False, description="Only what is new since state, by the stream's cursor."
    )
    cursor_field: str | None = Field(
        default=None, description="The cursor, where the source leaves the choice."
    )
    state: dict[str, Any] | list[dict[str, Any]] | None = Field(
        default=None,
        description="What an earlier answer returned. A bare object is taken for the state of "
        "this stream.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description=f"At most so many rows; in a JSON answer {PAGE_ROWS:,} unless given, and "
        f"{MOST_PAGE_ROWS:,} at most.",
    )
    format: Format | None = Field(
        default=None, description="Takes precedence over the header Accept; json by default."
    )
    metadata_columns: bool = Field(
        default=False,
        description="Airbyte's own columns, too; _airbyte_extra has what fits no other.",
    )

    @field_validator("cursor_field")
    @classmethod
    def _is_named(cls, field: str | None) -> str | None:
        if field == "":
            raise ValueError("it names no field; leave it out, or name one")
        return field


class ReadAnswer(BaseModel):
    """``data`` has an object for each row, with the keys ``columns``.

    ``state`` sent back brings the rows after these. ``has_more``: the source was not read to its
    end.
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
    notes: list[str] = Field(description="What to know: how to get more, and what is not shown.")
    warnings: list[str] = Field(default=[], description="What is odd about the config.")


def _require_json(value: Any) -> None:
    """Raises ValueError for deep nesting, half surrogate pairs, NaN and infinite numbers."""
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
                raise ValueError("it holds a number that JSON does not have (NaN, or infinite)")
        level = below
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, which is not valid Unicode") from None
