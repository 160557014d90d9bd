"""The published file source in a container, from a file on a web server into a table."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import docker
import pytest

from atlas_dagster_tests.conftest import SOURCE_FILE_IMAGE
from atlas_dagster_tests.orchestration.http_servers import sharing
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import RealConnection

pytestmark = pytest.mark.docker

CSV = "id,name,price\n1,Ann,1.5\n2,Bo,\n3,Zoë,3\n"
IMAGE = "atlas-test/source-file-trusting:1"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 with its key: the connector reads over https only."""
    path = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture
def image(docker_client: docker.DockerClient, certificate: Path) -> Iterator[str]:
    """The published image with the certificate among those it trusts."""
    files = {
        "certificate.pem": certificate.read_bytes(),
        "Dockerfile": (
            f"FROM {SOURCE_FILE_IMAGE}\n"
            "COPY certificate.pem /opt/certificate.pem\n"
            "ENV REQUESTS_CA_BUNDLE=/opt/certificate.pem\n"
        ).encode(),
    }
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    context.seek(0)
    docker_client.images.build(fileobj=context, custom_context=True, tag=IMAGE, forcerm=True)
    yield IMAGE
    docker_client.images.remove(IMAGE, force=True)


def test_a_csv_becomes_a_table(image: str, certificate: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "people.csv").write_text(CSV)
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, tmp_path / "key.pem")
    with sharing(shelf, tls) as server, sqlite_instance() as instance:
        config = {
            "dataset_name": "people",
            "format": "csv",
            "url": f"https://127.0.0.1:{server.server_port}/people.csv",
            "provider": {"storage": "HTTPS"},
        }
        files = RealConnection.make(tmp_path / "lake", "files", image, config=config)
        files.sync(instance)

    assert files.rows("people") == [
        {"id": 1, "name": "Ann", "price": 1.5},
        {"id": 2, "name": "Bo", "price": None},
        {"id": 3, "name": "Zoë", "price": 3.0},
    ]
