"""Faults of tiles and of the execution database: what a client sees of them, and what localhub itself knows better."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import s3fs
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.executionfile import ExecutionFile
from localhub.faults import DatabaseFault, FaultBook, Faults
from localhub.jobs import Job
from localhub.objectstore import Access, Bucket
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.store import Feature, Store
from localhub.timetable import Timetable
from tasks.grid import Tile
from tests.localhub.batch_requests import body, wait_for
from tests.localhub.watching import (
    database_path,
    execution_rows,
    faults,
    has_credentials,
    remembered,
    set_faults,
    start_tiles,
    until,
)

FATAL_TEXT = "Tile f0 fails on demand; see the fault 'fatal' of localhub's settings."


def test_each_tile_fault_hits_its_tile_and_no_other(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
) -> None:
    good, bad = f"{bucket}/good", f"{bucket}/bad"
    assert wait_for(client, start_tiles(client, s3, six_features, good)).status.value == "DONE"
    tiles = [
        {"kind": "fatal", "tile": "f0"},
        {"kind": "fatal", "tile": "f1", "times": 2},
        {"kind": "no_data", "tile": "f2"},
        {"kind": "undelivered", "tile": "f3"},
        {"kind": "truncated", "tile": "f4"},
        {"kind": "missing", "tile": "f5"},
    ]
    with faults(hub, tiles=tiles):
        request = start_tiles(client, s3, six_features, bad)
        done = wait_for(client, request)
    assert (done.status.value, done.error, done.completion_percentage) == ("DONE", None, 100)
    assert execution_rows(s3_files, database_path(bad, request)) == {
        "f0": ("FATAL", FATAL_TEXT, 0),
        "f1": ("DONE", None, 1),
        "f2": ("DONE", "No data", 0),
        "f3": ("DONE", None, 0),
        "f4": ("DONE", None, 1),
        "f5": ("DONE", None, 1),
    }
    whole = {name: s3_files.cat_file(f"{good}/{name}.tif") for name in ("f1", "f4")}
    assert sorted(path.rpartition("/")[2] for path in s3_files.glob(f"{bad}/*.tif")) == ["f1.tif", "f4.tif"]
    assert s3_files.cat_file(f"{bad}/f1.tif") == whole["f1"]
    assert s3_files.cat_file(f"{bad}/f4.tif") == whole["f4"][: len(whole["f4"]) // 2]

    found = remembered(hub, request)
    assert {name: feature.tries for name, feature in found.items() if feature.tries} == {"f0": 3, "f1": 2}
    assert {name for name, feature in found.items() if feature.cost_pu == 0} == {"f0", "f2"}
    until(lambda: not has_credentials(hub, request))  # nothing is delivered any more, and nothing kept
    assert not list((hub.settings.data_dir / "kept").glob(f"{request.request_id}/*"))


def test_a_late_tile_is_done_before_its_file_is_there_and_delivered_later(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
) -> None:
    path = f"{bucket}/o/f3.tif"
    with faults(hub, tiles=[{"kind": "undelivered", "tile": "f3", "seconds": 4}]):
        request = start_tiles(client, s3, six_features, f"{bucket}/o")
        assert wait_for(client, request).status.value == "DONE"
        rows = execution_rows(s3_files, database_path(f"{bucket}/o", request))
        assert rows is not None
        assert {name for name, (status, _, delivered) in rows.items() if status == "DONE" and not delivered} == {"f3"}
        assert not s3_files.exists(path)
        assert has_credentials(hub, request)
    # that the fault is gone changes nothing for a tile that it has met

    def told() -> bool:
        now = execution_rows(s3_files, database_path(f"{bucket}/o", request))
        return now is not None and now["f3"] == ("DONE", None, 1)

    until(told)
    assert s3_files.cat_file(path)[:2] == b"II"
    assert remembered(hub, request)["f3"].delivered
    until(lambda: not has_credentials(hub, request))
    assert not (hub.settings.data_dir / "kept" / request.request_id).exists()


@pytest.mark.parametrize(("place", "folder"), [("request", "{bucket}/o/{id}"), ("bucket", "{bucket}")])
def test_the_execution_database_can_lie_where_another_page_of_the_documentation_says(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
    place: str,
    folder: str,
) -> None:
    with faults(hub, database={"place": place}):
        request = start_tiles(client, s3, whole_scene, f"{bucket}/o")
        assert wait_for(client, request).status.value == "DONE"
    there = folder.format(bucket=bucket, id=request.request_id)
    assert execution_rows(s3_files, database_path(there, request)) == {"whole": ("DONE", None, 1)}
    assert not s3_files.exists(database_path(f"{bucket}/o", request))


def test_a_torn_execution_database_is_half_of_one_and_mends(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
) -> None:
    with faults(hub, database={"torn_uploads": 1000}):
        request = start_tiles(client, s3, whole_scene, f"{bucket}/o")
        path = database_path(f"{bucket}/o", request)
        assert wait_for(client, request).status.value == "DONE"
        torn = s3_files.cat_file(path)
        assert execution_rows(s3_files, path) is None
        assert has_credentials(hub, request)
    until(lambda: execution_rows(s3_files, path) == {"whole": ("DONE", None, 1)})
    mended = s3_files.cat_file(path)
    assert torn == mended[: len(mended) // 2]
    until(lambda: not has_credentials(hub, request))


def test_a_stale_execution_database_shows_the_end_only_some_time_after_it(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
) -> None:
    with faults(hub, database={"stale_seconds": 3}):
        request = start_tiles(client, s3, whole_scene, f"{bucket}/o")
        path = database_path(f"{bucket}/o", request)
        done = wait_for(client, request)
        assert (done.status.value, done.completion_percentage) == ("DONE", 100)
        assert execution_rows(s3_files, path) != {"whole": ("DONE", None, 1)}
        until(lambda: execution_rows(s3_files, path) == {"whole": ("DONE", None, 1)})
    until(lambda: not has_credentials(hub, request))


@pytest.fixture
def timetable() -> Iterator[Timetable]:
    started = Timetable()
    yield started
    started.close()


def test_a_copy_that_was_held_back_never_replaces_a_newer_one(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path, timetable: Timetable
) -> None:
    store = Store(tmp_path)
    now = datetime.now(UTC)
    job = Job("a-job", "an-account", body(s3, bucket), now, now)
    feature = Feature(1, Tile("t", 32633, (0.0, 0.0, 10.0, 10.0), 1, 1))
    store.add(job, {})
    store.set_features(job.id, [feature])
    book = FaultBook(Faults(database=DatabaseFault(stale_seconds=0.5)))
    caught_up = threading.Event()
    place = Bucket(bucket, Access(s3.endpoint_url, s3.access_key, s3.secret_key))
    copy = ExecutionFile(job, place, store, book, timetable, caught_up.set)

    copy.publish()
    assert copy.lags
    store.set_feature(job.id, replace(feature, status="DONE"))
    book.set(Faults())
    copy.publish()
    assert caught_up.is_set()
    assert not copy.lags
    time.sleep(0.7)  # the older copy's time comes and goes
    assert execution_rows(s3_files, f"{bucket}/out/execution-a-job.sqlite") == {"t": ("DONE", None, 0)}
    store.close()


def test_tiles_that_are_held_back_hold_back_no_other_job(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    bucket: str,
    six_features: str,
) -> None:
    def ended(request: BatchProcessRequest) -> int:
        return sum(feature.status == "DONE" for feature in remembered(hub, request).values())

    with faults(hub, tile_seconds=3600):
        first = start_tiles(client, s3, six_features, f"{bucket}/a")
        until(lambda: ended(first) == 1)
        second = start_tiles(client, s3, six_features, f"{bucket}/b")
        until(lambda: ended(second) == 1)
        assert (ended(first), ended(second)) == (1, 1)
        set_faults(hub, Faults())
        for request in (first, second):
            assert wait_for(client, request).status.value == "DONE"
