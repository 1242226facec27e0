"""Fixtures that every test may use: the real data, and the servers that stand in for third parties."""

import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import s3fs
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from pydantic import SecretStr

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.postgres import Postgres, is_installed
from tests.tasks.orbits import write_archive

ROOT = Path(__file__).parents[1]
LONGEST_FIRST = (
    "test_crash.py",
    "test_ownership.py",
    "test_workers.py",
    "test_land_cover.py",
    "test_faults.py",
    "test_notebook.py",
    "test_cli.py",
    "test_secrets.py",
    "test_repair.py",
    "test_watching.py",
    "test_serving.py",
    "test_eogrow.py",
    "test_deployments.py",
    "test_fuzz.py",
    "test_postgres.py",
)
"""Files of minutes, in which tests wait for servers most of the time: where files run side by side, they are first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST_FIRST` in front."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
def bucket(s3_files: s3fs.S3FileSystem) -> Iterator[str]:
    """The name of a new and empty bucket, for one test: each takes some of the store's volumes, which are limited."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_files.mkdir(name)
    yield name
    s3_files.rm(name, recursive=True)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the database of a real Prefect server that runs for the session, from before its first request."""
    copy = tmp_path_factory.mktemp("prefect") / "prefect.db"
    with prefect_test_harness(server_startup_timeout=120):
        made = get_current_settings().server.database.connection_url
        assert made is not None
        place = made.get_secret_value().removeprefix("sqlite+aiosqlite:///")
        with closing(sqlite3.connect(place)) as database, closing(sqlite3.connect(copy)) as target:
            database.backup(target)
        yield copy


@pytest.fixture(scope="session")
def prefect_server(empty_database: Path) -> None:
    """A real Prefect server with an empty database, once a session."""


@pytest.fixture
def prefect_home(empty_database: Path, tmp_path: Path) -> Path:
    """A home of Prefect for the test alone, with an empty database: Prefect itself takes 10 s of CPU to make one."""
    home = tmp_path / "prefect"
    home.mkdir()
    shutil.copy(empty_database, home / "prefect.db")
    return home


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real PostgreSQL, once a session; tests make databases of their own in it."""
    if not is_installed():
        pytest.skip("PostgreSQL is not installed; install it with: apt-get install postgresql")
    with Postgres(tmp_path_factory.mktemp("postgres") / "cluster") as server:
        yield server


@pytest.fixture(scope="session")
def scenes(test_data: Path) -> Path:
    """The folder of the five real acquisitions."""
    return test_data / "s2-slovenia-2015"


@pytest.fixture(scope="session")
def hub_settings(s3: SeaweedFS, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a localhub on any free port, whose stopped jobs can be started at once."""
    return Settings(
        data_dir=tmp_path_factory.mktemp("localhub"),
        archive=scenes,
        port=0,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
        restart_seconds=0,
        upload_seconds=0.1,
    )


@pytest.fixture(scope="session")
def hub(hub_settings: Settings) -> Iterator[LocalHub]:
    """A running localhub, once a session."""
    with LocalHub(hub_settings) as running:
        yield running


@pytest.fixture(scope="session")
def orbits_hub(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A running localhub over the scenes of two orbits that overlap, once a session."""
    folder = tmp_path_factory.mktemp("orbits")
    changes = {"archive": write_archive(folder / "archive"), "data_dir": folder / "hub"}
    with LocalHub(hub_settings.model_copy(update=changes)) as running:
        yield running
