"""The connector of a connection, looked up in the registry or in the user's manifest."""

from functools import cached_property

from msgspec import Struct

from atlas_dagster.errors import ConfigError
from atlas_dagster.registry import ConnectorInfo
from atlas_dagster.registry.connector_info import AUTO
from atlas_dagster.runners.manifest import IMAGE, Cdk, Manifest, choose_cdk
from atlas_dagster.source.connection import Connection


class ConnectorRef(Struct, frozen=True, dict=True):
    """The connector of one connection, looked up once.

    ``info`` is the registry's entry at the pinned version; None for the user's own connector.
    ``manifest`` is the user's own manifest, and ``cdk`` the CDK that runs it.
    """

    connection: Connection
    info: ConnectorInfo | None = None
    manifest: Manifest | None = None
    cdk: Cdk | None = None

    @classmethod
    def resolve(cls, connection: Connection) -> "ConnectorRef":
        """Look up the connector of ``connection``, and read its manifest, if it has one.

        Raises:
            UnknownConnectorError: the registry has no such connector.
            ConfigError: the manifest cannot be read, or its CDK cannot run it.
        """
        if connection.manifest is None:
            return cls(connection, connection.entry())
        manifest = _read_manifest(connection, connection.manifest)
        declared = connection.cdk_version or connection.version
        cdk = choose_cdk(manifest, declared=None if declared == AUTO else declared, published=None)
        return cls(connection, manifest=manifest, cdk=cdk)

    @property
    def name(self) -> str:
        """The connector's name without a registry or path: ``source-faker``."""
        return self.connection.source_name

    @cached_property
    def image(self) -> str:
        """The image reference, also for a manifest; empty for a command."""
        if self.cdk is not None:
            return f"{IMAGE}:{self.cdk.version}"
        return self.connection.image or (self.info.docker_image if self.info else "")

    @property
    def needs_docker(self) -> bool:
        """True if only Docker can run the connector."""
        if self.info is not None:
            return self.info.needs_docker
        return self.connection.image is not None


def _read_manifest(connection: Connection, file: str) -> Manifest:
    path = connection.folder / file
    components = path.with_name("components.py")
    try:
        return Manifest(
            file,
            path.read_bytes(),
            components.read_bytes() if components.exists() else None,
        )
    except OSError as error:
        raise ConfigError(
            f"Connection '{connection.name}': the manifest {path} cannot be read "
            f"({error.strerror}); give its path from the connection's folder."
        ) from error
