"""A lake in an S3 bucket. Delta promises nothing more there than on a disk, and nothing less."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster.errors import ConfigError, DestinationError, TransientError
from atlas_dagster_tests.destinations.stores import STRING, Lake, spec

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]
A, B = ("c", "a"), ("c", "b")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """In a process of its own: Arrow may wait for an answer while it holds the interpreter."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an empty bucket, with all that is needed to use it in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hunter2-not-to-be-shown",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"lake-{abs(hash(request.node.nodeid))}"
    client.create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return name


class S3Lake(Lake):
    def __init__(self, bucket: str) -> None:
        super().__init__(Path("/nowhere"))
        self.bucket = bucket
        self.destination = DeltaDestination(f"s3://{bucket}/some/folder/")

    def objects(self) -> list[str]:
        """Of all objects but Arrow's markers of folders, relative to the lake."""
        listed = boto3.client("s3").list_objects_v2(Bucket=self.bucket).get("Contents", [])
        assert all(item["Key"].startswith("some/") for item in listed)
        names = [item["Key"].removeprefix("some/folder/") for item in listed]
        return sorted(name for name in names if not name.endswith("/"))

    def parquet_files(self) -> list[str]:
        return [key for key in self.objects() if key.endswith(".parquet")]

    def envelopes(self) -> list[int]:
        found = [key.split("/") for key in self.objects()]
        return sorted(
            int(k[2].removesuffix(".json"))
            for k in found
            if k[:2] == ["_atlas", "c"] and len(k) == 3
        )


@pytest.fixture
def lake(bucket: str) -> S3Lake:
    return S3Lake(bucket)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_syncs(lake: S3Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), [{"id": 1, "v": "a"}, {"id": 2, "v": "a"}])
    assert lake.rows() == [(1, "a"), (2, "a")]
    writer = lake.sync(spec(mode, w=STRING), [{"id": 2, "v": "b"}, {"id": 3, "v": "b"}])
    expected = {
        "append": [(1, "a"), (2, "a"), (2, "b"), (3, "b")],
        "overwrite": [(2, "b"), (3, "b")],
        "append_dedup": [(1, "a"), (2, "b"), (3, "b")],
    }[mode]
    assert lake.rows() == expected
    assert lake.committed() == lake.seq == lake.envelopes()[-1]
    assert writer.describe().row_count == len(expected)
    assert writer.describe().uri == f"s3://{lake.bucket}/some/folder/c/t"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_nothing_is_visible_before_the_commit_and_discard_leaves_nothing(
    lake: S3Lake, mode: WriteMode
) -> None:
    writer = lake.open(spec(mode))
    lake.write(writer, [{"id": 1}, {"id": 2}, {"id": 3}])
    writer.rewind(2)
    assert len(lake.parquet_files()) == 1
    assert (writer.exists(), lake.committed()) == (False, None)
    writer.discard()
    assert lake.parquet_files() == []
    lake.write(writer, [{"id": 4}])
    lake.commit(writer)
    writer.merge_committed()
    assert lake.rows("id") == [(4,)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_commit_of_two_tables_that_stopped_half_way(lake: S3Lake, mode: WriteMode) -> None:
    first, second = lake.open(spec(mode, table=A)), lake.open(spec(mode, table=B))
    lake.write(first, [{"id": 1}])
    lake.write(second, [{"id": 7}])
    first.commit(lake.prepare(first, second))
    lake.destination.recover("c")
    assert lake.committed(*B) == lake.seq
    lake.open(spec(mode, table=B)).merge_committed()
    assert lake.rows("id", table=B) == [(7,)]


@pytest.mark.slow
def test_a_merge_that_died_is_done_by_the_next_open(lake: S3Lake) -> None:
    lake.sync(spec("append_dedup"), [{"id": 1, "v": "a"}])
    writer = lake.open(spec("append_dedup"))
    lake.write(writer, [{"id": 1, "v": "b"}, {"id": 1, "v": "c"}])
    lake.commit(writer)
    lake.open(spec("append_dedup"))
    assert lake.rows() == [(1, "c")]


@pytest.mark.slow
def test_envelopes_come_back_and_are_forgotten(lake: S3Lake) -> None:
    seqs = []
    for _ in range(3):
        lake.sync(spec(), [{"id": 1}])
        seqs.append(lake.seq)
    stored = lake.destination.envelope("c", seqs[0])
    assert stored is not None
    assert stored.seq == seqs[0]
    assert lake.destination.envelope("c", 1) is None
    lake.destination.prune_envelopes("c", [seqs[0], seqs[1], 7])
    assert lake.envelopes() == seqs[2:]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_second_writer_is_refused(lake: S3Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), [{"id": 1}])
    stale, fresh = lake.open(spec(mode)), lake.open(spec(mode))
    lake.write(stale, [{"id": 8}])
    lake.write(fresh, [{"id": 9}])
    lake.commit(fresh)
    fresh.merge_committed()
    with pytest.raises(DestinationError, match="sync of this connection"):
        lake.commit(stale)
    assert lake.rows("id") == ([(9,)] if mode == "overwrite" else [(1,), (9,)])


@pytest.mark.slow
def test_commits_at_the_same_moment_lose_nothing(lake: S3Lake) -> None:
    """Of two that want one version, the store takes one; the other goes on from there."""
    lake.sync(spec(), [{"id": 0}])
    address = lake.destination.root
    failures: list[BaseException] = []
    together = threading.Barrier(3)

    def write(number: int) -> None:
        other = Lake(Path("/nowhere"))
        other.destination = DeltaDestination(address)
        try:
            writer = other.destination.inspect(("c", "t")).open(spec())
            assert isinstance(writer, DeltaWriter)
            # As of other connections, so that Delta's fence does not keep them apart.
            writer.tables.main.app_id = writer.tables.changes.app_id = f"atlas/other{number}"
            other._specs[id(writer)] = spec()
            for step in range(5):
                other.write(writer, [{"id": 10 * number + step}])
                together.wait(timeout=60)
                other.commit(writer)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=write, args=[number]) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {id for (id,) in lake.rows("id")} == {
        0,
        *(10 * n + s for n in (1, 2, 3) for s in range(5)),
    }
    assert DeltaTable(lake.destination.table_uri(("c", "t"))).version() == 15


def test_no_secret_is_stored(lake: S3Lake) -> None:
    lake.sync(spec("append_dedup"), [{"id": 1}])
    client = boto3.client("s3")
    for key in lake.objects():
        content = client.get_object(Bucket=lake.bucket, Key=f"some/folder/{key}")["Body"].read()
        assert b"hunter2-not-to-be-shown" not in content


# What goes wrong


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    destination = DeltaDestination("s3://no-such-bucket/lake")
    with pytest.raises(ConfigError) as caught:
        destination.inspect(("c", "t"))
    message = str(caught.value)
    assert message.startswith("s3://no-such-bucket/lake")
    assert "NoSuchBucket" in message
    assert "such as AWS_*" in message
    assert "hunter2-not-to-be-shown" not in message
    assert "\n" not in message


@pytest.mark.slow
def test_a_store_that_does_not_answer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    destination = DeltaDestination("s3://lake/folder")
    for look in (
        lambda: destination.recover("c"),
        lambda: destination.inspect(("c", "t")),
    ):
        with pytest.raises(TransientError, match=r"^s3://lake/folder"):
            look()


@pytest.mark.parametrize("address", ["nfs://host/lake", "s3://"])
def test_an_address_that_is_none(address: str, bucket: str) -> None:
    with pytest.raises(ConfigError, match=r"not a valid address"):
        DeltaDestination(address)


def test_readers_need_nothing_of_ours(lake: S3Lake) -> None:
    lake.sync(spec("append_dedup"), [{"id": 1}, {"id": 2}])
    table = DeltaTable(f"s3://{lake.bucket}/some/folder/c/t")
    assert pa.table(table.get_add_actions(flatten=True))["num_records"].to_pylist() == [2]


def test_of_many_deployments_that_come_at_once_one_is_the_owner(lake: S3Lake) -> None:
    def claim_ownership(name: str) -> str:
        return DeltaDestination(lake.destination.root).claim_ownership("c", name)

    names = [f"deployment {n}" for n in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        (owner,) = set(pool.map(claim_ownership, names))
    assert owner in names
    lake.destination.transfer_ownership("c", "dev")
    assert claim_ownership(owner) == "dev"


@pytest.mark.slow
def test_rows_changed_by_someone_else_are_noticed(lake: S3Lake) -> None:
    lake.sync(spec(), [{"id": 1}, {"id": 2}])
    assert lake.destination.inspect(("c", "t")).find_external_change() is None
    DeltaTable(lake.destination.table_uri(("c", "t"))).delete("id = 1")
    found = DeltaDestination(lake.destination.root).inspect(("c", "t")).find_external_change()
    assert found is not None
    assert found.startswith("version 1, DELETE at 20")
