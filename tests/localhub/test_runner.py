"""How jobs are carried on: in order, one beside the other, past what breaks. All of it is real, and in this process."""

import os
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import s3fs

from localhub.faults import FaultBook, Faults
from localhub.jobs import Action, Job, Status, act
from localhub.objectstore import Access
from localhub.runner import Runner
from localhub.seaweed import SeaweedFS
from localhub.settings import Settings
from localhub.store import Feature, Store
from tests.localhub.batch_requests import RED, SLOW, access, process_request
from tests.localhub.watching import execution_rows, until


class WatchedStore(Store):
    """A store that tells when tiles end, and lets somebody look right before a job gets another status."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ends: list[tuple[float, str]] = []
        """Time (monotonic, s) and job of each tile's end."""
        self.on_status: Callable[[Job], None] = lambda _job: None

    def end_feature(self, job: Job, feature: Feature, due: datetime | None = None) -> None:
        self.ends.append((time.monotonic(), job.id))
        super().end_feature(job, feature, due)

    def change(self, job_id: str, rule: Callable[[Job], Job]) -> Job:
        before = self.job(job_id)
        after = rule(before) if before is not None else None
        if before is not None and after is not None and before.status is not after.status:
            self.on_status(after)
        return super().change(job_id, rule)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    opened = WatchedStore(tmp_path / "hub")
    yield opened
    opened.close()


@pytest.fixture
def book() -> FaultBook:
    return FaultBook(Faults())


@pytest.fixture
def runner(store: WatchedStore, book: FaultBook, hub_settings: Settings, tmp_path: Path) -> Iterator[Runner]:
    """A runner with two workers."""
    settings = hub_settings.model_copy(update={"data_dir": tmp_path / "hub", "upload_seconds": 0.1})
    started = Runner(settings, store, book)
    started.start()
    yield started
    started.close()


@pytest.fixture
def new_job(store: WatchedStore, s3: SeaweedFS, bucket: str, six_features: str) -> Callable[..., str]:
    """Makes jobs over six features, each with a folder of its own, and returns their ids."""

    def made(script: str = RED) -> str:
        job_id = str(uuid.uuid4())
        payload: dict[str, Any] = {
            "processRequest": process_request(script),
            "input": {"type": "geopackage", "features": access(s3, six_features)},
            "output": {"type": "raster", "delivery": access(s3, f"s3://{bucket}/{job_id}/<tileName>.tif")},
        }
        keys = Access(s3.endpoint_url, s3.access_key, s3.secret_key)
        now = datetime.now(UTC)
        store.add(Job(job_id, "an-account", payload, now, now), {"output": keys, "features": keys})
        return job_id

    return made


def told(store: Store, runner: Runner, job_id: str, action: Action) -> None:
    store.change(job_id, lambda job: act(job, action, datetime.now(UTC), 0))
    runner.wake(job_id)


def wait_for(store: Store, job_id: str, *statuses: Status) -> Job:
    def found() -> Job:
        job = store.job(job_id)
        assert job is not None
        return job

    until(lambda: found().status in statuses, 40)
    return found()


def test_tiles_that_are_to_end_one_by_one_do(
    store: WatchedStore, book: FaultBook, runner: Runner, new_job: Callable[..., str]
) -> None:
    book.set(Faults(tile_seconds=0.3))
    job_id = new_job()
    told(store, runner, job_id, Action.START)
    assert wait_for(store, job_id, Status.DONE).error is None
    times = [end for end, _ in store.ends]
    assert len(times) == 6
    assert all(later - earlier >= 0.3 for earlier, later in pairwise(times))


def test_two_jobs_share_the_workers(store: WatchedStore, runner: Runner, new_job: Callable[..., str]) -> None:
    first, second = new_job(SLOW), new_job(SLOW)
    told(store, runner, first, Action.ANALYSE)
    told(store, runner, second, Action.ANALYSE)
    for job_id in (first, second):
        wait_for(store, job_id, Status.ANALYSIS_DONE)
    told(store, runner, first, Action.START)
    until(lambda: sum(feature.begun for feature in store.features(first)) >= 2)
    time.sleep(0.1)  # enough for a greedy job to put all of its tiles before the other's
    told(store, runner, second, Action.START)
    for job_id in (first, second):
        wait_for(store, job_id, Status.DONE)
    leads = accumulate(1 if job_id == first else -1 for _, job_id in store.ends)
    assert max(map(abs, leads)) <= 4


def test_a_worker_that_dies_costs_its_own_tile_one_try_and_no_other(
    store: WatchedStore, runner: Runner, new_job: Callable[..., str]
) -> None:
    job_id = new_job(SLOW)
    told(store, runner, job_id, Action.START)
    until(lambda: sum(feature.begun for feature in store.features(job_id)) >= 2)
    (victim,) = runner._shop.workers._workers[0]._executor._processes
    os.kill(victim, signal.SIGKILL)
    wait_for(store, job_id, Status.DONE)
    features = store.features(job_id)
    assert {feature.status for feature in features} == {"DONE"}
    assert sorted(feature.tries for feature in features) == [0, 0, 0, 0, 0, 1]


def test_a_file_is_there_before_the_status_that_promises_it(
    store: WatchedStore, runner: Runner, new_job: Callable[..., str], s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    job_id = new_job()
    seen: dict[Status, tuple[bool, set[str]]] = defaultdict(lambda: (False, set()))

    def look(job: Job) -> None:
        rows = execution_rows(s3_files, f"{bucket}/{job_id}/execution-{job_id}.sqlite") or {}
        manifest = s3_files.exists(f"{bucket}/{job_id}/featureManifest-{job_id}.gpkg")
        seen[job.status] = (manifest, {status for status, _, _ in rows.values()})

    store.on_status = look
    told(store, runner, job_id, Action.START)
    wait_for(store, job_id, Status.DONE)
    assert seen[Status.ANALYSIS_DONE] == (True, set())
    assert seen[Status.PROCESSING] == (True, set())
    assert seen[Status.DONE] == (True, {"DONE"})


def test_a_job_that_fails_while_it_is_processed_has_recorded_and_told_what_was_under_way(
    store: WatchedStore, runner: Runner, new_job: Callable[..., str], s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    job_id = new_job(SLOW)
    told(store, runner, job_id, Action.ANALYSE)
    wait_for(store, job_id, Status.ANALYSIS_DONE)
    s3_files.pipe_file(f"{bucket}/{job_id}/f1.tif", b"mine")
    rows_at_end: list[Any] = []

    def look(job: Job) -> None:
        if job.status is Status.FAILED:
            rows_at_end.append(execution_rows(s3_files, f"{bucket}/{job_id}/execution-{job_id}.sqlite"))

    store.on_status = look
    told(store, runner, job_id, Action.START)
    failed = wait_for(store, job_id, Status.FAILED)
    assert failed.error == (
        f"File s3://{bucket}/{job_id}/f1.tif exists already; allow overwrite or choose another path."
    )
    assert s3_files.cat_file(f"{bucket}/{job_id}/f1.tif") == b"mine"
    pending = ("PENDING", None, 0)
    assert rows_at_end == [{"f0": ("DONE", None, 1)} | {f"f{number}": pending for number in range(1, 6)}]
    assert {feature.tile.name for feature in store.features(job_id) if feature.cost_pu} == {"f0"}
    until(lambda: not store.has_access(job_id))
