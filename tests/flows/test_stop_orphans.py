"""Which requests the flow ``stop-orphans`` stops, and which it leaves: on a real service, by leases of real files."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import State
from sentinelhub import BatchProcessClient

from flows.order import Order, deliver_tiles_file, prepare
from flows.parameters import LandCover
from flows.stop_orphans import KnownLease, Verdict, is_active, judge, stop_orphans
from localhub.server import LocalHub
from tasks.batch import OwnRequest, analyse_job, create_job, start_job, stop_job
from tasks.errors import ServiceError
from tasks.lease import Found, Lease, held, new_lease
from tasks.lease.value import process_identity
from tasks.ledger import fingerprint
from tasks.service import Job, connect, get_job
from tasks.storage import open_filesystem
from tests.localhub.watching import faults

HOUR = 3600.0
REQUEST = OwnRequest("Small", "0" * 16, Job("r1", "PROCESSING", action="START"))


@dataclass(frozen=True)
class Place:
    """A service with requests that last, and a destination for leases."""

    order: Order
    client: BatchProcessClient
    started: list[Job]

    def request(self, work: str, *, description: str = "") -> tuple[Job, str]:
        """Create and start a request for some work; with its fingerprint."""
        own = replace(self.order.work, name=work, fingerprint=fingerprint([work, self.order.fingerprint]))
        storage = self.order.parameters.storage
        job = analyse_job(self.client, create_job(self.client, own, storage))
        if description:
            self.client.update_request(job.id, description=description)
        job = start_job(self.client, job)
        self.started.append(job)
        return job, own.fingerprint

    def lease(self, area: str, job: Job, work: str, **changes: Any) -> Lease:
        """A lease as a run writes it that was killed on another machine, for an area's folder."""
        wish = new_lease(work, self.order.parameters.service.base_url, run_name=f"land-cover {area}")
        dead = wish.model_copy(update={"process": "another-boot/pid:[1] 1 1", "request_id": job.id, "holder": "a"})
        lease = dead.model_copy(update=changes)
        files, path = self.path(area)
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, lease.to_json())
        return lease

    def path(self, area: str) -> tuple[Any, str]:
        parameters = self.order.parameters
        return open_filesystem(f"{parameters.storage.destination}/{area}/lease.json", parameters.storage)

    def age(self, area: str, seconds: float) -> None:
        """Let a lease of a local folder have been renewed so long ago."""
        moment = time.time() - seconds
        os.utime(self.path(area)[1], (moment, moment))

    def status(self, job: Job) -> str:
        now = get_job(self.client, job.id)
        return "stopped" if now.action == "STOP" else now.status

    def run(self, **options: Any) -> list[Verdict]:
        parameters = self.order.parameters
        state: State[Any] = stop_orphans(parameters.service, parameters.storage, return_state=True, **options)
        ours = {job.id for job in self.started}
        return [verdict for verdict in state.result() if verdict.request.job.id in ours]  # type: ignore[union-attr]


@pytest.fixture
def place(parameters: LandCover, small_hub: LocalHub, prefect_server: None) -> Iterator[Place]:  # noqa: ARG001
    yield from made_place(parameters, small_hub)


@pytest.fixture
def s3_place(parameters: LandCover, bucket: str, small_hub: LocalHub, prefect_server: None) -> Iterator[Place]:  # noqa: ARG001
    storage = parameters.storage.model_copy(update={"destination": f"s3://{bucket}/eopatches"})
    yield from made_place(parameters.model_copy(update={"storage": storage}), small_hub)


def made_place(parameters: LandCover, hub: LocalHub) -> Iterator[Place]:
    order = prepare(parameters)
    deliver_tiles_file(order)
    found = Place(order, connect(parameters.service), [])
    with faults(hub, tile_seconds=30):
        yield found
        for job in found.started:
            if is_active(get_job(found.client, job.id)):
                stop_job(found.client, job)


def test_only_the_request_is_stopped_whose_lease_ended_a_grace_period_ago(place: Place) -> None:
    jobs, works = {}, {}
    for area in ("orphan", "lately", "live", "leave", "unknown"):
        jobs[area], works[area] = place.request(area)
    jobs["foreign"], _ = place.request("foreign", description="a request of somebody else")
    for area in ("orphan", "lately", "leave"):
        place.lease(area, jobs[area], works[area], on_abort="leave" if area == "leave" else "stop")
        place.age(area, HOUR if area != "lately" else 300)
    (Path(place.path("live")[1]).parents[1] / "a-file").touch()
    with held(*place.path("live"), new_lease(works["live"], place.order.parameters.service.base_url, run_name="x")):
        told = {verdict.request.name: verdict.why for verdict in place.run(dry_run=True)}
        assert {place.status(job) for job in jobs.values()} == {"PROCESSING"}
        place.run()
    assert {area: place.status(job) for area, job in jobs.items()} == {
        "orphan": "stopped",
        "lately": "PROCESSING",
        "live": "PROCESSING",
        "leave": "PROCESSING",
        "unknown": "PROCESSING",
        "foreign": "PROCESSING",
    }
    assert told.keys() == {"orphan", "lately", "live", "leave", "unknown"}
    assert told["orphan"].startswith("orphan: the lease of run land-cover orphan on host")
    assert told["lately"].endswith("ended 3 minutes ago, and it gets 30 minutes")
    assert "run x on host" in told["live"]
    assert "run.on_abort of run land-cover leave" in told["leave"]
    assert "no lease of its work" in told["unknown"]
    artifact = Artifact.get("orphans")
    assert artifact is not None
    assert jobs["orphan"].id in str(artifact.data)
    assert "Request " in str(artifact.data)
    lease = Lease.from_json(Path(place.path("orphan")[1]).read_bytes())
    assert (lease.released, lease.request_id, lease.fingerprint) == (True, jobs["orphan"].id, works["orphan"])


def test_an_orphan_is_found_by_its_request_below_an_s3_prefix_and_what_has_ended_is_not_touched(
    s3_place: Place,
) -> None:
    orphan, _ = s3_place.request("orphan")
    ended, work = s3_place.request("ended")
    stop_job(s3_place.client, ended)
    s3_place.lease("orphan", orphan, "other work in its folder", lease_seconds=1)
    s3_place.lease("ended", ended, work, lease_seconds=1)
    end = time.monotonic() + 20
    while s3_place.status(orphan) == "PROCESSING" and time.monotonic() < end:
        assert [verdict.request.job.id for verdict in s3_place.run(grace_minutes=0)] == [orphan.id]
    assert s3_place.status(orphan) == "stopped"
    assert s3_place.run(grace_minutes=0) == []


def test_an_orphan_that_cannot_be_stopped_fails_the_run(place: Place, small_hub: LocalHub) -> None:
    orphan, work = place.request("orphan")
    place.lease("orphan", orphan, work)
    place.age("orphan", HOUR)
    refused = {"operation": "stop", "status": 403, "times": 9}
    with faults(small_hub, tile_seconds=30, api=[refused]), pytest.raises(ServiceError, match="1 could not be stopped"):
        place.run()
    assert place.status(orphan) == "PROCESSING"


def test_an_orphan_that_a_run_has_just_taken_up_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan, work = place.request("orphan")
    place.lease("orphan", orphan, work)
    place.age("orphan", HOUR)
    with ExitStack() as resumed:

        def take_up(_: OwnRequest, leases: Any, grace: timedelta) -> Verdict:
            verdict = judge(_, leases, grace)
            if verdict.orphan:
                resumed.enter_context(held(*place.path("orphan"), new_lease(work, "x", run_name="resumed")))
            return verdict

        monkeypatch.setattr("flows.stop_orphans.judge", take_up)
        (verdict,) = place.run()
    assert verdict.why.startswith("left: it has just been taken up")
    assert place.status(orphan) == "PROCESSING"


@pytest.mark.parametrize(
    ("leases", "orphan"),
    [
        ([], False),
        ([({}, 1921.0)], True),
        ([({}, 1919.0)], False),
        ([({"released": True}, 1801.0)], True),
        ([({"released": True}, 1799.0)], False),
        ([({}, 9999.0), ({}, 10.0)], False),
        ([({}, 9999.0), ({}, 5000.0)], True),
        ([({}, 9999.0), ({"on_abort": "leave"}, 9999.0)], False),
        ([({"process": process_identity()}, 9999.0)], True),
    ],
)
def test_an_orphan_is_one_whose_every_lease_of_120_s_ended_half_an_hour_ago(
    leases: list[tuple[dict[str, Any], float]], orphan: bool
) -> None:
    known = tuple(KnownLease("x", Found(Lease(holder="a", **changes), age)) for changes, age in leases)
    assert judge(REQUEST, known, timedelta(minutes=30)).orphan is orphan


@pytest.mark.parametrize(
    ("status", "action", "active"),
    [
        ("PROCESSING", "START", True),
        ("PROCESSING", "STOP", False),
        ("ANALYSING", "ANALYSE", False),
        ("ANALYSING", "START", True),
        ("ANALYSIS_DONE", "ANALYSE", False),
        ("ANALYSIS_DONE", "START", True),
        ("STOPPED", "STOP", False),
        ("DONE", "START", False),
    ],
)
def test_a_request_is_at_work_when_it_costs_or_was_told_to_start(status: str, action: str, active: bool) -> None:
    assert is_active(Job("r1", status, action=action)) is active
