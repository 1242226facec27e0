"""The flow ``stop-orphans``: stops requests of ours that cost money while no run waits for them any more.

A run that is killed leaves its request to the next run. When none comes, the lease beside the data lapses, and this
flow, on a schedule, stops the request. It touches nothing that it cannot tell to be an orphan.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from flows.ownership import LEASE, STOP_ANSWER_SECONDS, stopped_text
from tasks.batch import OwnRequest, own_requests, stop_job
from tasks.errors import EopatchFlowError, LeaseHeld, ServiceError
from tasks.lease import Found, held, new_lease, read_lease
from tasks.service import Job, Service, connect, get_job
from tasks.storage import Storage, open_filesystem

GRACE_MINUTES = 30.0
"""As long as a run waits for a service that does not answer, by default."""
ARTIFACT = "orphans"


@dataclass(frozen=True, slots=True)
class KnownLease:
    """A lease below one of the destinations.

    Attributes:
        url: of the lease's file.
        found: what it says.
    """

    url: str
    found: Found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a request.

    Attributes:
        request: that may cost.
        leases: of its work.
        orphan: whether nobody waits for it.
        why: the reason, or what was done in the end.
    """

    request: OwnRequest
    leases: tuple[KnownLease, ...]
    orphan: bool
    why: str


@flow(name="stop-orphans", flow_run_name="stop orphans")
def stop_orphans(
    service: Service = Service(),  # noqa: B008 - frozen
    storage: Storage = Storage(),  # noqa: B008
    destinations: Sequence[str] = (),
    grace_minutes: Annotated[float, Field(ge=0)] = GRACE_MINUTES,
    dry_run: bool = False,
) -> State[list[Verdict]]:
    """Stop requests that a run of ours has started and that no run waits for any more.

    Args:
        service: which Sentinel Hub, and as whom.
        storage: endpoint and credentials; its destination is looked through when no other is named.
        destinations: folders or S3 prefixes that runs write EOPatches to; empty for the one of the storage.
        grace_minutes: how long after the end of its lease a request is left for a run to take it up.
        dry_run: only tell what would be stopped.
    """
    leases = find_leases(storage, list(destinations) or [storage.destination])
    verdicts = [
        stop(verdict, service, storage) if verdict.orphan and not dry_run else verdict
        for verdict in judge_all(find_active(service), leases, service.base_url, timedelta(minutes=grace_minutes))
    ]
    for verdict in verdicts:
        get_run_logger().info("Request %s (%s): %s", verdict.request.job.id, verdict.request.name, verdict.why)
    rows = [_row(verdict) for verdict in verdicts] or [{"request": "none is at work"}]
    create_table_artifact(rows, key=ARTIFACT, description=f"Requests of ours at work at {service.base_url}")
    message = _message(verdicts, dry_run=dry_run)
    failed = any(verdict.orphan for verdict in verdicts) and not dry_run
    return Failed(message=message, data=ServiceError(message)) if failed else Completed(message=message, data=verdicts)


def is_active(job: Job) -> bool:
    """Whether a request costs, or will without anybody's doing: it is processed, or was told to start."""
    started = job.status in {"ANALYSING", "ANALYSIS_DONE"} and job.action == "START"
    return (job.status == "PROCESSING" or started) and job.action != "STOP"


def judge_all(
    requests: Iterable[OwnRequest], leases: Sequence[KnownLease], base_url: str, grace: timedelta
) -> list[Verdict]:
    """Judge each request by the leases of its work at this service."""
    return [judge(request, _leases_of(request, leases, base_url), grace) for request in requests]


def judge(request: OwnRequest, leases: tuple[KnownLease, ...], grace: timedelta) -> Verdict:
    """Decide whether nobody waits for a request: each lease of its work ended longer than ``grace`` ago.

    Several places may have a lease of the same work; one that is alive, or that says to leave the request, keeps it.
    """
    if not leases:
        return Verdict(request, leases, False, "left: no lease of its work in these destinations tells whose it is")
    latest = min(leases, key=lambda known: known.found.expired_for).found
    ended = f"the lease of {latest.lease.owner} ended {_minutes(latest.expired_for)} ago"
    if latest.expired_for <= timedelta(0):
        return Verdict(request, leases, False, f"left: {latest.lease.owner} is at work on it")
    for lease in (known.found.lease for known in leases if known.found.lease.on_abort == "leave"):
        return Verdict(request, leases, False, f"left: run.on_abort of {lease.owner} asks to leave it")
    if latest.expired_for <= grace:
        return Verdict(request, leases, False, f"left for now: {ended}, and it gets {_minutes(grace)}")
    return Verdict(request, leases, True, f"orphan: {ended}")


@task(task_run_name="find leases", cache_policy=NO_CACHE)
def find_leases(storage: Storage, destinations: Sequence[str]) -> list[KnownLease]:
    """Read the lease of each area below the destinations."""
    return [known for destination in destinations for known in _leases_below(destination.rstrip("/"), storage)]


@task(task_run_name="find requests at work", cache_policy=NO_CACHE)
def find_active(service: Service) -> list[OwnRequest]:
    """Ask the service for our requests that cost."""
    return [request for request in own_requests(connect(service)) if is_active(request.job)]


@task(task_run_name="stop {verdict.request.job.id}", cache_policy=NO_CACHE)
def stop(verdict: Verdict, service: Service, storage: Storage) -> Verdict:
    """Stop an orphan while holding each lease of its work, so that no run can take it up meanwhile.

    What was stopped, or has found a run after all, is no orphan any more; what could not be stopped still is.
    """
    client = connect(service, timeout_seconds=STOP_ANSWER_SECONDS)
    request = verdict.request
    try:
        with ExitStack() as stack:
            for known in verdict.leases:
                stack.enter_context(_taken(known, storage))
            job = get_job(client, request.job.id)
            job = stop_job(client, job) if is_active(job) else job
    except LeaseHeld as error:
        return Verdict(request, verdict.leases, False, f"left: it has just been taken up. {error}")
    except (EopatchFlowError, OSError) as error:
        return Verdict(request, verdict.leases, True, f"{verdict.why}; it could not be stopped: {error}")
    done = OwnRequest(request.name, request.fingerprint, job)
    return Verdict(done, verdict.leases, False, f"{verdict.why}. {stopped_text(job)}")


def _taken(known: KnownLease, storage: Storage) -> Any:
    files, path = open_filesystem(known.url, storage)
    before = known.found.lease
    name, run_id = str(runtime.flow_run.name or ""), str(runtime.flow_run.id or "")
    lease = new_lease(before.fingerprint, before.base_url, run_name=name, run_id=run_id)
    return held(files, path, lease, tell=get_run_logger().info)


def _leases_below(destination: str, storage: Storage) -> Iterable[KnownLease]:
    files, root = open_filesystem(destination, storage)
    if not files.exists(root):
        return
    for entry in files.ls(root, detail=True):
        if entry["type"] != "directory":
            continue
        url = f"{destination}/{entry['name'].rstrip('/').rpartition('/')[2]}/{LEASE}"
        found = read_lease(*open_filesystem(url, storage))
        if found is not None:
            yield KnownLease(url, found)


def _leases_of(request: OwnRequest, leases: Iterable[KnownLease], base_url: str) -> tuple[KnownLease, ...]:
    """By the work, or by the request: other work in the same folder leaves the lease without the one or the other."""

    def is_its(known: KnownLease) -> bool:
        lease = known.found.lease
        same = lease.fingerprint == request.fingerprint or lease.request_id == request.job.id
        return same and lease.base_url.rstrip("/") == base_url.rstrip("/")

    return tuple(known for known in leases if is_its(known))


def _row(verdict: Verdict) -> dict[str, Any]:
    job = verdict.request.job
    return {
        "request": job.id,
        "work": verdict.request.name,
        "status": job.status,
        "started": f"{job.acted_at:%Y-%m-%d %H:%M} UTC" if job.action == "START" and job.acted_at else "",
        "cost so far (PU)": round(job.cost_pu, 1),
        "what was done": verdict.why,
    }


def _message(verdicts: Sequence[Verdict], *, dry_run: bool) -> str:
    orphans = sum(verdict.orphan for verdict in verdicts)
    stopped = sum(verdict.request.job.action == "STOP" for verdict in verdicts)
    done = f"{orphans} would be stopped" if dry_run else f"{stopped} stopped"
    failed = f", {orphans} could not be stopped" if orphans and not dry_run else ""
    at = datetime.now(UTC)
    return f"{len(verdicts)} of our requests at work at {at:%H:%M} UTC: {done}{failed}."


def _minutes(span: timedelta) -> str:
    minutes = span.total_seconds() / 60
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{span.total_seconds():.0f} s"
