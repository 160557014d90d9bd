"""Facts about a connector that are known without running it."""

from enum import StrEnum

import msgspec
from msgspec import Struct

from atlas_dagster.connector_versions import release

#: Instead of a version: the newest version.
LATEST = "latest"
#: Instead of a version: the version in the list, or else the newest that can be installed.
AUTO = "auto"


class ConnectorCategory(StrEnum):
    """The purpose of a source."""

    ANALYTICS = "analytics"
    COMMUNICATION = "communication"
    CRM = "crm"
    DATABASE = "database"
    DEVELOPMENT = "development"
    ECOMMERCE = "ecommerce"
    EVENTS = "events"
    FINANCE = "finance"
    HR = "hr"
    MARKETING = "marketing"
    OTHER = "other"
    PRODUCTIVITY = "productivity"
    PROJECT_MANAGEMENT = "project_management"
    STORAGE = "storage"
    SUPPORT = "support"

    @property
    def label(self) -> str:
        """The name for people: ``Project management``, ``CRM``."""
        return self.upper() if self in ("crm", "hr") else self.replace("_", " ").capitalize()


#: Further categories in which people search for a connector.
_OTHER_CATEGORIES: dict[str, tuple[ConnectorCategory, ...]] = {
    **dict.fromkeys(
        (
            "source-braintree",
            "source-chargebee",
            "source-klarna",
            "source-paypal-transaction",
            "source-recurly",
            "source-square",
            "source-stripe",
        ),
        (ConnectorCategory.ECOMMERCE,),
    ),
    **dict.fromkeys(
        (
            "source-jira",
            "source-linear",
            "source-pivotal-tracker",
            "source-shortcut",
        ),
        (ConnectorCategory.DEVELOPMENT,),
    ),
    **dict.fromkeys(
        (
            "source-freshdesk",
            "source-intercom",
            "source-zendesk-support",
        ),
        (ConnectorCategory.CRM,),
    ),
}


class BreakingChange(Struct, frozen=True, omit_defaults=True):
    """A change that users must know before they upgrade to ``version`` or a later version.

    ``streams`` must be read again after the upgrade; empty if the publisher names none.
    """

    version: str
    message: str
    guide_url: str | None = None
    streams: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the change, its streams and its migration guide in one or two sentences."""
        streams = f" Streams: {', '.join(self.streams)}." if self.streams else ""
        guide = f" Migration guide: {self.guide_url}" if self.guide_url else ""
        return f"{self.version}: {self.message.rstrip('.')}.{streams}{guide}".rstrip()


class ConnectorInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One connector at one version.

    ``tag`` is the version of both the image and the package. ``kind`` is ``api``, ``database`` or
    ``file``. ``language`` is ``python``, ``java``, ``manifest-only``, or empty if unknown.
    ``pypi_package`` is None if there is none.

    The fields from ``breaking_changes`` on exist only in a fetched list, with the names of
    ``oss_registry.json``: ``allowed_hosts`` are the hosts that the connector contacts,
    ``memory_limit`` and ``cpu_limit`` are the publisher's limits for a READ, and
    ``max_seconds_between_messages`` is the longest silence of a READ.
    """

    name: str
    title: str
    image: str
    tag: str
    category: ConnectorCategory
    kind: str
    support_level: str
    docs_url: str
    definition_id: str
    language: str = ""
    pypi_package: str | None = None
    breaking_changes: tuple[BreakingChange, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    memory_limit: str | None = None
    cpu_limit: float | None = None
    max_seconds_between_messages: float | None = None

    @property
    def docker_image(self) -> str:
        """The image reference, such as ``airbyte/source-faker:7.2.1``."""
        return f"{self.image}:{self.tag}"

    @property
    def is_manifest_only(self) -> bool:
        """True if the connector is a declarative manifest, which the CDK's package runs."""
        return self.language == "manifest-only"

    @property
    def needs_docker(self) -> bool:
        """True if the connector is published neither as a Python package nor as a manifest."""
        return self.pypi_package is None and not self.is_manifest_only

    @property
    def categories(self) -> tuple[ConnectorCategory, ...]:
        """The connector's own category, then others in which people search for it."""
        return (self.category, *_OTHER_CATEGORIES.get(self.name, ()))

    def at(self, version: str | None) -> "ConnectorInfo":
        """Return this connector at ``version``; unchanged for None or ``auto``."""
        return self if version in (None, AUTO) else msgspec.structs.replace(self, tag=version)

    def breaking_changes_between(self, before: str, now: str) -> tuple[BreakingChange, ...]:
        """Return the changes between the versions ``before`` and ``now``, oldest first."""
        first, last = release(before), release(now)
        passed = (c for c in self.breaking_changes if first < release(c.version) <= last)
        return tuple(sorted(passed, key=lambda change: release(change.version)))


def image_name(reference: str) -> str:
    """Return the last part of an image reference, without tag and digest: ``source-faker``."""
    return reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
