"""The config a connector is given, kept up to date while it runs, and where renewals are kept.

CHECK, DISCOVER and READ of one connection never run at the same time, from whichever door: two of
them could spend the same single-use token.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from atlas_dagster.cancellation import pause
from atlas_dagster.config.form import property_schema
from atlas_dagster.config.masking import Masker, scalars, secret_values
from atlas_dagster.config.renewal import DeclarationHash, Renewal, merged
from atlas_dagster.errors import BrokenError
from atlas_dagster.files import atomic_write

_POLL_SECONDS = 0.5
#: Of one call. Each is stored and masked from then on, so a source must not renew without end.
_MOST_RENEWALS = 1_000


class ConfigStore(ABC):
    """Keeps the renewals of each connection."""

    #: Said to the user after "stored".
    where: str

    @abstractmethod
    def lock(self, connection: str, explain: Callable[[str], None]) -> AbstractContextManager[None]:
        """Hold ``connection`` for one call of its connector; say so when it has to be waited for.

        Ends with the process that holds it, however that dies.
        """

    @abstractmethod
    def load(self, connection: str, declared: Mapping[str, Any]) -> bytes | None:
        """What was saved last. It need not be found where ``declared`` has changed since."""

    @abstractmethod
    def save(self, connection: str, content: bytes, origin: DeclarationHash) -> None:
        """Store ``content`` durably; ``origin`` may be seen by anybody. Raises OSError."""


class FileConfigStore(ConfigStore):
    """A folder with a file per connection, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = f"in {folder} on this machine"

    @contextmanager
    def lock(self, connection: str, explain: Callable[[str], None]) -> Iterator[None]:
        self._create_folder()
        lock = FileLock(self._lock_path(connection), mode=0o600)
        with wait_for(connection, lambda: _acquired(lock), explain):
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
def wait_for(
    connection: str, acquire: Callable[[], bool], explain: Callable[[str], None]
) -> Iterator[None]:
    """Try ``acquire`` until it succeeds; the first failure is explained."""
    if not acquire():
        explain(f"Another run or command is using connection '{connection}'; waiting for its end.")
        while not acquire():
            pause(_POLL_SECONDS)
    yield


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


class RenewableConfig:
    """One connection's config: declared, renewed by the connector, and its secrets masked.

    Args:
        declared: the user's, resolved; holds secrets.
        schema: the SPEC's.
        masker: learns the secrets, those of renewals too.
        connection: its name.
        store: where renewals are kept.
        explain: is told of each renewal, without values.
    """

    def __init__(
        self,
        declared: Mapping[str, Any],
        *,
        schema: Mapping[str, Any],
        masker: Masker,
        connection: str,
        store: ConfigStore,
        explain: Callable[[str], None],
    ) -> None:
        self._declared = declared
        self._schema = schema
        self._masker = masker
        self._connection = connection
        self._store = store
        self._explain = explain
        self._renewals = 0
        stored = self._stored()
        self.value = stored.applied_to(declared)
        self._mask(stored)

    def renew(self, config: Mapping[str, Any]) -> None:
        """Take what the connector sent, and store it before anything else is read from it.

        Raises:
            BrokenError: it cannot be stored.
        """
        value = merged(self.value, config)
        renewal = Renewal.diff(self._declared, value)
        self._mask(renewal)
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
                f"({error.strerror or error}); free space or mend the access. If the source now "
                "refuses the old credentials, enter new ones."
            ) from error
        self.value = value
        names = ", ".join(".".join(renewed.path) for renewed in renewal.values)
        self._explain(
            f"The connector renewed {names} of its config; stored {self._store.where}, for the "
            "next call."
        )

    def _stored(self) -> Renewal:
        content = self._store.load(self._connection, self._declared)
        try:
            return Renewal(salt="") if content is None else Renewal.decode(content)
        except msgspec.MsgspecError as error:
            raise BrokenError(
                f"The stored config renewals of connection '{self._connection}' cannot be read "
                f"({error}); remove them, and enter new credentials if the source asks for them."
            ) from error

    def _mask(self, renewal: Renewal) -> None:
        """Hide what the SPEC calls secret, and what it does not know."""
        for renewed in renewal.values:
            schema: Any = self._schema
            for key in renewed.path:
                schema = property_schema(schema, key)
            self._masker.add(secret_values(renewed.value, schema))
            if not schema:
                self._masker.add(scalars(renewed.value))
        self._masker.add(secret_values(renewal.applied_to(self._declared), self._schema))
