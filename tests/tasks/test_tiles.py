"""Tile states: read from wherever the service keeps them, believed only when they are whole."""

import math
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import pytest
import s3fs
import shapely

from localhub.featurefiles import write_manifest
from tasks.batch import Work, analyse_job, create_job, process_request, start_job, upload_geopackage
from tasks.errors import AccessDenied, ServiceError
from tasks.evalscript import USERDATA, Script
from tasks.grid import Tile, tiles_of_geopackage, tiles_of_grid
from tasks.service import Job, Service, connect, get_job
from tasks.storage import Storage, service_files
from tasks.tiles import (
    TileStatus,
    is_current,
    left_seconds,
    merged,
    poll_seconds,
    read_manifest,
    read_statuses,
    take_snapshot,
)
from tests.tasks.conftest import SUMMER
from tests.tasks.faulty_server import Fault, FaultyServer
from tests.tasks.object_store import ObjectStore

ROWS = [
    ("a", "DONE", None, 1),
    ("b", "DONE", "No data", 0),
    ("c", "FATAL", "TypeError: x", 0),
    ("d", "PENDING", None, 0),
]
STATUSES = {
    "a": TileStatus("DONE", "", delivered=True),
    "b": TileStatus("DONE", "No data", delivered=False),
    "c": TileStatus("FATAL", "TypeError: x", delivered=False),
    "d": TileStatus("PENDING", "", delivered=False),
}
TILES = tiles_of_grid(shapely.box(14.9, 46.0, 15.1, 46.1).union(shapely.box(17.9, 46.0, 18.1, 46.1)), 4326, 1, 20)
"""On both sides of the border between two UTM zones."""


def database(folder: Path, rows: Iterable[tuple[object, ...]] = ROWS) -> bytes:
    """An execution database as the documentation describes it."""
    path = folder / "execution.sqlite"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE features(id INTEGER, name TEXT, status TEXT, error TEXT, delivered BOOLEAN)")
    connection.executemany("INSERT INTO features VALUES (1, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path.read_bytes()


def manifest(folder: Path, tiles: Iterable[Tile] = TILES) -> bytes:
    path = folder / "manifest.gpkg"
    names = {"B04": "B04.tif", USERDATA: "userdata.json"}
    rows = [(tile, {output: f"s3://bucket/1/{tile.name}/{file}" for output, file in names.items()}) for tile in tiles]
    write_manifest(path, rows, {32632})
    return path.read_bytes()


def places(storage: Storage, name: str) -> list[str]:
    return list(service_files(storage.tiles_url, "1", name))


# ---- execution database ----


@pytest.mark.parametrize("place", [0, 1, 2])
def test_statuses_are_read_from_each_place_that_is_documented(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path, place: int
) -> None:
    s3_files.pipe_file(places(storage, "execution-1.sqlite")[place], database(tmp_path))
    assert read_statuses(storage, "1") == STATUSES


def test_a_delivered_tile_is_ready_one_without_scenes_is_empty_and_a_fatal_one_neither() -> None:
    assert [name for name, status in STATUSES.items() if status.ready] == ["a"]
    assert [name for name, status in STATUSES.items() if status.empty] == ["b"]
    assert not TileStatus("DONE", "", delivered=False).ready
    assert not TileStatus("PENDING", "", delivered=True).ready


def test_a_missing_database_tells_nothing(storage: Storage) -> None:
    assert read_statuses(storage, "1") == {}


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999999])
def test_a_database_that_was_cut_off_tells_nothing(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path, share: float
) -> None:
    whole = database(tmp_path, [(f"tile-{number}", "DONE", None, 1) for number in range(3000)])
    s3_files.pipe_file(places(storage, "execution-1.sqlite")[0], whole[: int(len(whole) * share)])
    assert read_statuses(storage, "1") == {}


def test_a_database_cut_at_any_page_tells_nothing(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    whole = database(tmp_path, [(f"tile-{number}", "DONE", None, 1) for number in range(500)])
    for length in range(0, len(whole), 4096):
        s3_files.pipe_file(places(storage, "execution-1.sqlite")[0], whole[:length])
        assert read_statuses(storage, "1") == {}


def test_a_database_without_its_table_or_of_garbage_tells_nothing(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE other(id INTEGER)").connection.close()
    for content in ((tmp_path / "other.sqlite").read_bytes(), b"x" * 10_000):
        s3_files.pipe_file(places(storage, "execution-1.sqlite")[0], content)
        assert read_statuses(storage, "1") == {}


def test_the_manifest_is_found_where_s3_hides_what_is_not_there(tmp_path: Path, storage: Storage) -> None:
    with ObjectStore() as store:
        store.hides = True
        hidden = storage.model_copy(update={"tiles_url": "s3://bucket/tiles", "endpoint_url": store.base_url})
        with pytest.raises(PermissionError):
            read_manifest(hidden, "1")
        last = list(service_files(hidden.tiles_url, "1", "featureManifest-1.gpkg"))[-1]
        store.objects[f"/{last}"] = manifest(tmp_path), time.time()
        assert {tile.name for tile in read_manifest(hidden, "1").tiles} == {tile.name for tile in TILES}


def test_of_several_copies_the_newest_that_can_be_believed_counts_and_no_tile_goes_back(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    done, pending = ("a", "DONE", None, 1), ("a", "PENDING", None, 0)
    late, delivered = ("b", "DONE", None, 0), ("b", "DONE", None, 1)
    first, second, third = places(storage, "execution-1.sqlite")
    s3_files.pipe_file(third, database(tmp_path, [done, late]))
    s3_files.pipe_file(first, database(tmp_path, [pending, delivered]))
    s3_files.pipe_file(second, database(tmp_path)[:5000])
    assert read_statuses(storage, "1") == {"a": STATUSES["a"], "b": replace(STATUSES["a"])}


def test_what_is_known_of_a_tile_is_never_taken_back() -> None:
    pending, late, ready = STATUSES["d"], TileStatus("DONE", "", delivered=False), STATUSES["a"]
    order = [pending, late, ready]
    for place, known in enumerate(order):
        for other, news in enumerate(order):
            assert merged({"t": known}, {"t": news}) == {"t": order[max(place, other)]}
    assert merged({"t": ready}, {}) == {"t": ready}
    assert merged({}, {"t": pending}) == {"t": pending}


@pytest.mark.parametrize(
    ("percent", "ended", "expected"),
    [(100, 4, True), (100, 3, False), (50, 2, True), (50, 1, True), (75, 1, False), (0, 0, True), (51, 2, True)],
)
def test_a_database_is_older_than_its_request_when_fewer_tiles_have_ended(
    percent: float, ended: int, expected: bool
) -> None:
    tiles = {str(number): STATUSES["a" if number < ended else "d"] for number in range(4)}
    assert is_current(Job("1", "STOPPED", percent=percent), tiles, 4) is expected


# ---- manifest ----


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_manifest_gives_back_the_tiles_that_were_ordered(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path, place: int
) -> None:
    s3_files.pipe_file(places(storage, "featureManifest-1.gpkg")[place], manifest(tmp_path))
    found = read_manifest(storage, "1")
    assert found.tiles == tuple(TILES)
    assert {tile.epsg for tile in found.tiles} == {32632, 32633, 32634} & {tile.epsg for tile in TILES}
    name = TILES[0].name
    assert found.paths[name] == {"B04": f"bucket/1/{name}/B04.tif", USERDATA: f"bucket/1/{name}/userdata.json"}


def test_a_missing_manifest_is_told(storage: Storage) -> None:
    with pytest.raises(ServiceError, match=r"featureManifest-1.gpkg is not in s3://.* though the request is analysed"):
        read_manifest(storage, "1")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_a_manifest_that_was_cut_off_is_not_believed(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path, share: float
) -> None:
    whole = manifest(tmp_path)
    s3_files.pipe_file(places(storage, "featureManifest-1.gpkg")[0], whole[: int(len(whole) * share)])
    with pytest.raises(ServiceError, match=r"The manifest featureManifest-1.gpkg in s3://.* cannot be read"):
        read_manifest(storage, "1")


def no_columns(path: Path) -> None:
    gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32633).to_file(path, engine="pyogrio")


def no_geometry(path: Path) -> None:
    columns = {"outputId": ["a"], "identifier": ["t"], "path": ["s3://b/a"], "width": [1], "height": [1]}
    gpd.GeoDataFrame(columns, geometry=[None], crs=32633).to_file(path, engine="pyogrio", geometry_type="Polygon")


@pytest.mark.parametrize("write", [no_columns, no_geometry])
def test_a_manifest_of_another_layout_is_told(
    storage: Storage, s3_files: s3fs.S3FileSystem, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "m.gpkg")
    s3_files.put_file(str(tmp_path / "m.gpkg"), places(storage, "featureManifest-1.gpkg")[0])
    with pytest.raises(ServiceError, match="cannot be read"):
        read_manifest(storage, "1")


# ---- the whole way, and snapshots ----


@pytest.fixture
def job(storage: Storage, service: Service, red: Script, small_tiles: Path) -> Job:
    """A request that has been analysed."""
    url = upload_geopackage(small_tiles.read_bytes(), "small", storage)
    request = process_request(None, "sentinel-2-l1c", SUMMER.start, SUMMER.end, 100, red)
    work = Work("Tiles", "0123456789abcdef", request, {"url": url}, storage.tiles_url)
    client = connect(service)
    return analyse_job(client, create_job(client, work, storage))


def test_a_job_is_followed_from_its_manifest_to_its_last_tile(
    storage: Storage, service: Service, job: Job, small_tiles: Path, s3_files: s3fs.S3FileSystem
) -> None:
    ordered = read_manifest(storage, job.id)
    assert list(ordered.tiles) == tiles_of_geopackage(small_tiles)
    assert set(ordered.paths["a"]) == {"red", USERDATA}
    start_job(connect(service), job)
    end = time.monotonic() + 20
    while not (snapshot := take_snapshot(storage, service, job)).job.ended:
        assert snapshot.problem == ""
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (snapshot.job.status, snapshot.job.found) == ("DONE", False)
    assert {name for name, status in snapshot.tiles.items() if status.ready} == {"a", "b", "c"}
    assert {name for name, status in snapshot.tiles.items() if status.empty} == {"far"}
    assert all(s3_files.exists(path) for name in "abc" for path in ordered.paths[name].values())


@pytest.mark.parametrize("status", [404, 429, 500, 502, 0])
def test_a_service_that_does_not_answer_is_told_and_not_raised(
    storage: Storage, service: Service, job: Job, status: int
) -> None:
    with FaultyServer(service.base_url, (Fault("GET", job.id, status, "oops"),)) as server:
        through = Service(base_url=server.base_url)
        snapshot = take_snapshot(storage, through, job)
        assert (snapshot.job, snapshot.tiles) == (job, {})
        assert "Sentinel Hub" in snapshot.problem
        assert take_snapshot(storage, through, job).problem == ""


def test_a_store_that_does_not_answer_is_told_and_the_jobs_state_kept(
    storage: Storage, service: Service, job: Job
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = storage.model_copy(update={"endpoint_url": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        snapshot = take_snapshot(away, service, replace(job, status="CREATED"))
    assert "Could not connect" in snapshot.problem
    assert snapshot.job.status == get_job(connect(service), job.id).status == "ANALYSIS_DONE"


def test_credentials_that_are_refused_are_raised(
    storage: Storage, service: Service, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH_CLIENT_ID", "localhub")
    monkeypatch.setenv("SH_CLIENT_SECRET", "wrong")
    with pytest.raises(AccessDenied):
        take_snapshot(storage, service, job)


@pytest.mark.parametrize(
    ("elapsed", "longest", "expected"),
    [(0, 60, 2), (19, 60, 2), (50, 60, 5), (600, 60, 60), (10_000, 60, 60), (0, 1, 1), (100, 1, 1)],
)
def test_a_young_job_is_looked_at_more_often(elapsed: float, longest: float, expected: float) -> None:
    assert poll_seconds(elapsed, longest) == expected


def test_pauses_double_while_nobody_answers_and_follow_the_services_word() -> None:
    assert [poll_seconds(0, 60, failures=failures) for failures in range(7)] == [2, 4, 8, 16, 32, 60, 60]
    assert poll_seconds(0, 60, failures=10_000) == 60
    assert poll_seconds(0, 60, retry_after=30) == 30
    assert poll_seconds(600, 60, retry_after=30) == 60
    assert poll_seconds(0, 10, retry_after=500) == 500


def test_the_end_of_a_job_is_not_seen_late() -> None:
    assert left_seconds(90, STATUSES, total=4) == 30
    assert left_seconds(90, {}, total=4) == math.inf
    assert [poll_seconds(100, 60, left_seconds=left) for left in (0, 4, 30, math.inf)] == [2, 4, 10, 10]
    assert poll_seconds(100, 60, left_seconds=4, failures=2) == 16


def test_runs_that_began_together_drift_apart() -> None:
    assert poll_seconds(100, 60, jitter=1) == 8
    assert poll_seconds(100, 60, jitter=0.5) == 9
    assert poll_seconds(0, 60, retry_after=30, jitter=1) == 30


def test_a_service_that_says_when_to_ask_again_is_heard(storage: Storage, service: Service, job: Job) -> None:
    limit = Fault("GET", job.id, 429, {"status": 429}, {"Retry-After": "7500"})
    with FaultyServer(service.base_url, (limit,)) as server:
        assert take_snapshot(storage, Service(base_url=server.base_url), job).retry_after_seconds == 7.5
