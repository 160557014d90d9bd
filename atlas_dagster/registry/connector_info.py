"""What is known of a connector without running it."""

from enum import StrEnum

import msgspec
from msgspec import Struct

from atlas_dagster.connector_versions import release

#: In place of a version: the newest there is.
LATEST = "latest"
#: In place of a version: the list's own, or the newest that can be installed where that cannot.
AUTO = "auto"


class ConnectorCategory(StrEnum):
    """What a source is used for."""

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
        """As people write it: ``Project management``, ``CRM``."""
        return self.upper() if self in ("crm", "hr") else self.replace("_", " ").capitalize()


#: Categories that people look in for a connector, besides its own.
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
    """What users must know before they go to ``version`` or a later one.

    ``streams`` are those that must be read again; empty where the publisher names none.
    """

    version: str
    message: str
    guide_url: str | None = None
    streams: tuple[str, ...] = ()

    def describe(self) -> str:
        """In a sentence or two: what changed, for which streams, and where the guide is."""
        streams = f" Streams: {', '.join(self.streams)}." if self.streams else ""
        guide = f" Migration guide: {self.guide_url}" if self.guide_url else ""
        return f"{self.version}: {self.message.rstrip('.')}.{streams}{guide}".rstrip()


class ConnectorInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One connector at one version.

    ``tag`` is the version, both of the image and of the package. ``kind`` is what it reads: an
    ``api``, a ``database`` or a ``file``. ``language`` is ``python``, ``java``, ``manifest-only``,
    or empty where the publisher does not say. ``pypi_package`` is None where there is none. From
    ``breaking_changes`` on, only a registry that was refreshed knows (its fields are those of
    ``oss_registry.json``): ``allowed_hosts`` are the hosts it talks to, ``memory_limit`` and
    ``cpu_limit`` what its publisher gives it for a READ, ``max_seconds_between_messages`` how long
    a READ may bring nothing.
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
        """Whether it is a declarative manifest, which the CDK's package runs."""
        return self.language == "manifest-only"

    @property
    def needs_docker(self) -> bool:
        """Whether it is published neither as a Python package nor as a manifest."""
        return self.pypi_package is None and not self.is_manifest_only

    @property
    def categories(self) -> tuple[ConnectorCategory, ...]:
        """Its own category first, then others that people look in."""
        return (self.category, *_OTHER_CATEGORIES.get(self.name, ()))

    def at(self, version: str | None) -> "ConnectorInfo":
        """This connector at the pinned ``version``; at the registry's own when None or ``auto``."""
        return self if version in (None, AUTO) else msgspec.structs.replace(self, tag=version)

    def breaking_changes_between(self, before: str, now: str) -> tuple[BreakingChange, ...]:
        """Those that come with going from version ``before`` to ``now``, oldest first."""
        first, last = release(before), release(now)
        passed = (c for c in self.breaking_changes if first < release(c.version) <= last)
        return tuple(sorted(passed, key=lambda change: release(change.version)))


def image_name(reference: str) -> str:
    """The last part of an image reference, without its tag and digest: ``source-faker``."""
    return reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
