"""The config of a running connector, which may renew it, and the store of renewals.

A lock keeps CHECK, DISCOVER and READ of one connection from running at the same time: two of them
could use the same single-use token.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from atlas_dagster.cancellation import pause
from atlas_dagster.config.form import find_property
from atlas_dagster.config.masking import Masker, find_scalars, secret_values
from atlas_dagster.config.renewal import DeclarationHash, Renewal, merge
from atlas_dagster.errors import BrokenError
from atlas_dagster.files import atomic_write
from atlas_dagster.listener import Listener

_POLL_SECONDS = 0.5
#: The limit of renewals in one call, because Atlas stores each one and masks its values.
_MOST_RENEWALS = 1_000


class ConfigStore(ABC):
    """Stores the renewals of each connection."""

    #: The place, for messages: "stored ...".
    where: str

    @abstractmethod
    def lock(self, connection: str, listener: Listener) -> AbstractContextManager[None]:
        """Lock ``connection`` for one call of its connector. ``listener`` gets a message of a wait.

        The lock ends with the process that holds it, even if the process is killed.
        """

    @abstractmethod
    def load(self, connection: str, declared: Mapping[str, Any]) -> bytes | None:
        """Return the last saved content. May return None if ``declared`` has changed since."""

    @abstractmethod
    def save(self, connection: str, content: bytes, origin: DeclarationHash) -> None:
        """Store ``content`` durably. ``origin`` is not secret. Raises OSError."""


class FileConfigStore(ConfigStore):
    """Stores renewals in a folder, in one private file per connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = f"in {folder} on this machine"

    @contextmanager
    def lock(self, connection: str, listener: Listener) -> Iterator[None]:
        self._create_folder()
        lock = FileLock(self._lock_path(connection), mode=0o600)
        with wait_for(connection, lambda: _try_acquire(lock), listener):
            try:
                yield
            finally:
                lock.release()

    def load(self, connection: str, _declared: Mapping[str, Any]) -> bytes | None:
        try:
            return self._path(connection).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, connection: str, content: bytes, _origin: DeclarationHash) -> None:
        self._create_folder()
        atomic_write(self._path(connection), content)

    def _create_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _lock_path(self, connection: str) -> Path:
        return self._folder / f"{connection}.lock"

    def _path(self, connection: str) -> Path:
        return self._folder / f"{connection}.json"


@contextmanager
def wait_for(connection: str, acquire: Callable[[], bool], listener: Listener) -> Iterator[None]:
    """Call ``acquire`` until it succeeds. ``listener`` gets a message after the first failure."""
    if not acquire():
        listener.info(
            f"Another run or command uses connection '{connection}'; waiting until it ends."
        )
        while not acquire():
            pause(_POLL_SECONDS)
    yield


def _try_acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


class RenewableConfig:
    """The config of one connection, as declared and then renewed by the connector.

    Args:
        declared: the user's config, resolved, with secrets.
        schema: the SPEC's.
        masker: receives all secrets, including those of renewals.
        connection: the connection's name.
        store: stores the renewals.
        listener: gets a message for each renewal, without values.
    """

    def __init__(
        self,
        declared: Mapping[str, Any],
        *,
        schema: Mapping[str, Any],
        masker: Masker,
        connection: str,
        store: ConfigStore,
        listener: Listener,
    ) -> None:
        self._declared = declared
        self._schema = schema
        self._masker = masker
        self._connection = connection
        self._store = store
        self._listener = listener
        self._renewals = 0
        stored = self._load_stored()
        self.value = stored.apply_to(declared)
        self._mask_secrets(stored)

    def renew(self, config: Mapping[str, Any]) -> None:
        """Store a config that the connector sent, before further output is read.

        Raises:
            BrokenError: the config cannot be stored.
        """
        value = merge(self.value, config)
        renewal = Renewal.diff(self._declared, value)
        self._mask_secrets(renewal)
        if not Renewal.diff(self.value, value).values:
            return
        self._renewals += 1
        if self._renewals > _MOST_RENEWALS:
            raise BrokenError(
                f"The connector of connection '{self._connection}' renewed its config more than "
                f"{_MOST_RENEWALS:,} times in one call; report it to the connector's maintainers."
            )
        try:
            origin = DeclarationHash.of(renewal, self._declared)
            self._store.save(self._connection, renewal.encode(), origin)
        except OSError as error:
            raise BrokenError(
                f"The renewed config of connection '{self._connection}' could not be stored "
                f"({error.strerror or error}); free space or correct the permissions. If the "
                "source now refuses the old credentials, enter new ones."
            ) from error
        self.value = value
        names = ", ".join(".".join(renewed.path) for renewed in renewal.values)
        self._listener.info(
            f"The connector renewed {names} in its config; the next call uses it. It is stored "
            f"{self._store.where}."
        )

    def _load_stored(self) -> Renewal:
        content = self._store.load(self._connection, self._declared)
        try:
            return Renewal(salt="") if content is None else Renewal.decode(content)
        except msgspec.MsgspecError as error:
            raise BrokenError(
                f"The stored config renewals of connection '{self._connection}' cannot be read "
                f"({error}); remove them, and enter new credentials if the source asks for them."
            ) from error

    def _mask_secrets(self, renewal: Renewal) -> None:
        """Mask renewed values that the SPEC marks as secret or does not describe."""
        for renewed in renewal.values:
            schema: Any = self._schema
            for key in renewed.path:
                schema = find_property(schema, key)
            self._masker.add(secret_values(renewed.value, schema))
            if not schema:
                self._masker.add(find_scalars(renewed.value))
        self._masker.add(secret_values(renewal.apply_to(self._declared), self._schema))
