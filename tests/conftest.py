"""Fixtures that every test may use: the real data, and the servers that stand in for third parties."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from prefect.testing.utilities import prefect_test_harness

from localhub.seaweed import SeaweedFS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the real scenes, polygons and tiles; the test is skipped where it is absent."""
    folder = Path(os.environ.get("EOPATCH_FLOW_TEST_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (folder / "s2-slovenia-2015").is_dir():
        pytest.skip(f"the real data is not at {folder}; set EOPATCH_FLOW_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server on loopback, once a session."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), "test-access-key", "test-secret-key") as server:
        yield server


@pytest.fixture
def s3_files(s3: SeaweedFS) -> s3fs.S3FileSystem:
    """The S3 server as an fsspec file system, without a cache of listings."""
    return s3fs.S3FileSystem(
        key=s3.access_key,
        secret=s3.secret_key,
        client_kwargs={"endpoint_url": s3.endpoint_url},
        use_listings_cache=False,
    )


@pytest.fixture
def bucket(s3_files: s3fs.S3FileSystem) -> str:
    """The name of a new and empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_files.mkdir(name)
    return name


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with an empty database, once a session."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
