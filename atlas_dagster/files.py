"""Files and folders that appear only when they are complete, and private files."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_dir

PRIVATE = 0o600


def cache_folder() -> Path:
    """Return the folder for files that can be fetched or created again."""
    return Path(user_cache_dir("atlas-dagster"))


def atomic_write(path: Path, content: bytes, *, mode: int = PRIVATE, durable: bool = True) -> None:
    """Write or replace the file ``path``, completely or not at all. See :class:`AtomicFile`."""
    with AtomicFile(path, mode=mode) as unfinished:
        unfinished.file.write(content)
        unfinished.publish(durable=durable)


class AtomicFile:
    """A file that appears at ``path`` when it is published; without that, the block removes it.

    Args:
        path: the path, in an existing folder. An existing file is replaced.
        mode: the permissions, from which the umask is removed.
    """

    def __init__(self, path: Path, *, mode: int = PRIVATE) -> None:
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self.file: BinaryIO = os.fdopen(os.open(self._unfinished, flags, mode), "wb")

    def publish(self, *, durable: bool = False) -> Path:
        """Publish the file and return its path. If ``durable``, it survives a loss of power."""
        if durable:
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        self._unfinished.replace(self._path)
        if durable:
            fsync_path(self._path.parent)
        return self._path

    def discard(self) -> None:
        """Remove the file if it was not published. Safe to call at any time."""
        with suppress(OSError):
            self.file.close()
        self._unfinished.unlink(missing_ok=True)

    def __enter__(self) -> "AtomicFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which appears at ``path`` with all its files when the block ends.

    Raises:
        FileExistsError: ``path`` exists already.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as unfinished:
        complete = Path(unfinished) / path.name
        complete.mkdir()
        yield complete
        if path.exists():
            raise FileExistsError(f"{path} exists")
        try:
            complete.rename(path)
        except OSError as error:
            if path.exists():  # another process was faster
                raise FileExistsError(f"{path} exists") from error
            raise


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, PRIVATE), "wb") as file:
        file.write(content)


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flush a file or folder to disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
