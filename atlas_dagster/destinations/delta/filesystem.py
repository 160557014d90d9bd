"""File access of a lake, in a local folder or an object store.

Credentials and endpoints come only from the environment variables that Delta's writer reads:
``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, ``AWS_ENDPOINT_URL`` and so on.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from deltalake.exceptions import DeltaError

from atlas_dagster.errors import AtlasError, ConfigError, DestinationError, TransientError
from atlas_dagster.files import atomic_write, fsync_path

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_TRACE = re.compile(r"\n +0: ")
_ANSWER = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>")
#: Texts in errors of Arrow and Delta if the store does not answer.
_UNREACHABLE = ("NETWORK_CONNECTION", "HTTP error", "timed out", "503 ")
_REASON_LENGTH = 300


class Store:
    """The files under ``root``: a path, or an address such as ``s3://bucket/folder``.

    Raises:
        ConfigError: the address is not valid for a store.
    """

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root
        self.root = str(Path(root).absolute()) if self.is_local else root.rstrip("/")
        if self.is_local:
            self.filesystem, self.base = pafs.LocalFileSystem(), self.root
            return
        try:
            self.filesystem, self.base = _object_store(self.root)
            if not self.base:
                raise pa.ArrowInvalid("it has no bucket")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"'{self.root}' is not a valid address of a lake ({error}); write a folder, or "
                "an address such as s3://bucket/folder."
            ) from error

    def path(self, *parts: str) -> str:
        return "/".join((self.base, *parts))

    def make_folder(self, path: str) -> None:
        """Create a local folder; object stores need none."""
        if self.is_local:
            self.filesystem.create_dir(path, recursive=True)

    def put(self, path: str, content: bytes) -> None:
        """Write a small file atomically and durably."""
        if self.is_local:
            atomic_write(Path(path), content, mode=0o666)
            return
        with self.filesystem.open_output_stream(path) as sink:
            sink.write(content)

    def fsync(self, path: str) -> None:
        """Flush a local file or folder to the disk, so that it survives a loss of power."""
        if self.is_local:
            fsync_path(path)


def unusable(uri: str, error: OSError) -> AtlasError:
    """Return the error to raise for a lake or table that cannot be opened."""
    reason = reason_of(error)
    access = "that this process may access it"
    if "://" in uri:
        access += " (credentials and endpoint come from its environment, such as AWS_*)"
    kind = TransientError if any(sign in str(error) for sign in _UNREACHABLE) else ConfigError
    return kind(f"{uri} cannot be opened ({reason}); check that it exists and {access}.")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of Arrow, Delta or the system about ``uri`` into an :class:`AtlasError`.

    Raises:
        DestinationError: the disk is full, access is lost, a file is missing or not Parquet.
        TransientError: the store does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DestinationError(
            f"A file of {uri} is missing ({reason_of(error)}); restore it, or read the stream "
            "again with `atlas refresh`."
        ) from error
    except OSError as error:
        if any(sign in str(error) for sign in _UNREACHABLE):
            raise TransientError(
                f"The store of {uri} does not answer ({reason_of(error)}); sync again: committed "
                "rows stay, the rest is read again."
            ) from error
        raise DestinationError(
            f"Writing {uri} failed ({reason_of(error)}); free space or fix the access, then sync "
            "again: committed rows stay, the rest is read again."
        ) from error
    except (DeltaError, pa.ArrowException) as error:
        raise DestinationError(
            f"{uri} cannot be read or written ({reason_of(error)}); undo the last change to it, "
            "read the stream again with `atlas refresh`, or move the table away."
        ) from error


def reason_of(error: Exception) -> str:
    """Return the message of an error of Arrow, Delta or the system, in one line.

    Delta's messages have several coloured lines. The last may be the server's XML; a stack trace
    may follow.
    """
    message = _TRACE.split(_COLOR.sub("", str(error)))[0]
    words = " ".join(message.replace("↳", ":").split())
    answer = _ANSWER.search(words)
    return answer.expand(r"\1: \2") if answer else words[:_REASON_LENGTH]


def _object_store(address: str) -> tuple[pafs.FileSystem, str]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not address.startswith("s3://") or not endpoint:
        filesystem, base = pafs.FileSystem.from_uri(address)
        return filesystem, base
    # Arrow does not read the endpoint from the environment.
    parts = urlsplit(endpoint)
    filesystem = pafs.S3FileSystem(
        endpoint_override=parts.netloc,
        scheme=parts.scheme,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    )
    return filesystem, address.removeprefix("s3://")
