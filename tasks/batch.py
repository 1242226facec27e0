"""The batch request: found again or created, analysed, started, stopped. The paid stage.

The service is never asked twice to do what it may have done already: a POST is sent once, and when its outcome is not
known the request is looked up by its fingerprint, which stands in its description.
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self, TypeVar

import shapely
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ConfigDict, Field, model_validator
from sentinelhub import BatchProcessClient, BatchProcessRequest
from sentinelhub.api.utils import AccessSpecification
from shapely.geometry.base import BaseGeometry

from tasks.errors import (
    AccessDenied,
    BudgetExceeded,
    InvalidInput,
    JobFailed,
    NotThere,
    NotYet,
    ServiceError,
    Unavailable,
)
from tasks.evalscript import USERDATA, Script
from tasks.form import FormModel
from tasks.service import RETRY_AFTER_SECONDS, Job, Service, call, connect, get_job, job_of, patiently
from tasks.storage import Storage, open_filesystem, s3_keys, service_files, session_token

CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
LIST_LAG_SECONDS = 60.0
"""How long a request that was created may be missing from the list (its reads lag behind its writes)."""
ANALYSIS_SECONDS = 1800.0
ACTION_LAG_SECONDS = 30.0
"""How long a request may still show its old status after an action."""
RESTART = timedelta(minutes=30)
"""How long after a stop by its user a request cannot be started."""
RESTART_LAG = timedelta(minutes=2)
"""How far the service's clock may be behind ours."""
STOP_SECONDS = 15.0
"""How long a stop is tried: Prefect kills a cancelled run's process after 30 s."""
REPEAT_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 1.0
SETTLE_SECONDS = 30.0
"""How long after its last tile a request may take to end."""

T = TypeVar("T")

OWN_DESCRIPTION = re.compile(r"eopatch-flow (?P<name>.*) \[(?P<fingerprint>[0-9a-f]{16})\]", re.DOTALL)
"""What :attr:`Work.description` writes."""
ATTACHABLE = {"CREATED", "ANALYSING", "ANALYSIS_DONE", "PROCESSING", "DONE", "STOPPED"}
"""Statuses of a request that can still deliver, or has delivered; FAILED cannot."""


class Limits(FormModel):
    """What may be spent."""

    model_config = ConfigDict(title="Limits")

    max_pu: float = Field(
        default=1000.0,
        title="Price at most (PU)",
        description="A request that may cost more processing units (PU) is refused before it is created.",
        examples=[50_000],
        gt=0,
    )
    ask_above_pu: float | None = Field(
        default=None,
        title="Ask above (PU)",
        description="Above this price a person has to approve before anything is bought: here, where the run pauses, "
        "or on the terminal. A scheduled run cannot ask, and is refused. Empty: nobody is asked.",
        examples=[500],
        ge=0,
    )
    approval_hours: float = Field(
        default=12.0,
        title="Hours to approve",
        description="How long a paused run waits for a person before it ends, with nothing bought.",
        examples=[12],
        gt=0,
        le=720,
    )
    min_success: float = Field(
        default=1.0,
        title="Success at least",
        description="Share of tiles that must succeed for the run to be Completed; no data counts as success.",
        examples=[0.98],
        ge=0,
        le=1,
    )
    repair: bool = Field(
        default=True,
        title="Repair",
        description="Order tiles that the service failed to deliver once more, in one request, if its price (100 PU at "
        "least) and what has been paid are together within the cap.",
        examples=[True],
    )
    buy_again: bool = Field(
        default=False,
        title="Buy again",
        description="Order anew what an earlier request was paid for but failed to deliver. Its price counts in full.",
        examples=[False],
    )

    @model_validator(mode="after")
    def _asks_below_the_cap(self) -> Self:
        if self.ask_above_pu is not None and self.ask_above_pu > self.max_pu:
            raise ValueError(
                f"ask_above_pu is {self.ask_above_pu:,.10g}, but above max_pu of {self.max_pu:,.10g} all is refused "
                "unasked; lower the one or raise the other"
            )
        return self


@dataclass(frozen=True, slots=True)
class Work:
    """What the service is asked for, without secrets.

    Attributes:
        name: for people, at the start of the request's description.
        fingerprint: identity of the work.
        process_request: the Process API's part: bounds, data, responses, evalscript.
        tiles_input: tiling grid or GeoPackage.
        tiles_url: S3 prefix of the delivery.
    """

    name: str
    fingerprint: str
    process_request: dict[str, Any]
    tiles_input: dict[str, Any]
    tiles_url: str

    @property
    def description(self) -> str:
        """Text by which people and later runs know the request."""
        return f"eopatch-flow {self.name} [{self.fingerprint}]"


def process_request(
    area: BaseGeometry | None,
    collection: str,
    start: date,
    end: date,
    max_cloud_coverage: int,
    script: Script,
) -> dict[str, Any]:
    """Give the ``processRequest`` of the Batch v2 API: all outputs as GeoTIFF, and userdata.json with the dates."""
    bounds = {} if area is None else {"geometry": shapely.geometry.mapping(area), "properties": {"crs": CRS84}}
    time_range = {"from": f"{start}T00:00:00Z", "to": f"{end}T23:59:59Z"}
    responses = [{"identifier": output, "format": {"type": "image/tiff"}} for output, _, _ in script.outputs]
    return {
        "input": {
            "bounds": bounds,
            "data": [
                {
                    "type": collection,
                    "dataFilter": {"timeRange": time_range, "maxCloudCoverage": max_cloud_coverage},
                    "processing": {"harmonizeValues": True},
                }
            ],
        },
        "output": {"responses": [*responses, {"identifier": USERDATA, "format": {"type": "application/json"}}]},
        "evalscript": script.source,
    }


def find_job(client: BatchProcessClient, work: Work, storage: Storage) -> Job | None:
    """Find the request for this work that can still deliver or has delivered; see :func:`best_job`."""
    return best_job(jobs_of(client, work), work, storage)


def best_job(jobs: Iterable[Job], work: Work, storage: Storage) -> Job | None:
    """Pick the request that can still deliver or has delivered; the best, then newest.

    A finished request whose manifest is gone from the bucket does not count: its data has been removed.
    """
    ranked = {"DONE": 0, "PROCESSING": 1, "ANALYSIS_DONE": 2, "ANALYSING": 3, "CREATED": 4, "STOPPED": 5}
    usable = [job for job in jobs if job.status in ATTACHABLE and _has_data(job, work, storage)]
    return min(usable, key=lambda job: ranked[job.status], default=None)


def jobs_of(client: BatchProcessClient, work: Work) -> list[Job]:
    """Give all requests that have this work's fingerprint, newest first, whatever became of them."""
    return [job for description, job in described_jobs(client) if _is_of(description, work)]


def described_jobs(client: BatchProcessClient) -> list[tuple[str, Job]]:
    """Give all requests of the account with their descriptions, newest first."""
    listed = call(lambda: list(client.iter_requests(sort="created:desc")))
    return [_described(request) for request in listed]


def _described(request: BatchProcessRequest) -> tuple[str, Job]:
    return str(request.request.get("description") or ""), job_of(request)


def _is_of(description: str, work: Work) -> bool:
    return f"[{work.fingerprint}]" in description


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """A request that was created by this project.

    Attributes:
        name: of the work, for people.
        fingerprint: of the work.
        job: as the service tells of it.
    """

    name: str
    fingerprint: str
    job: Job


def own_requests(client: BatchProcessClient) -> list[OwnRequest]:
    """Give all requests of the account whose description has a name and fingerprint of ours, newest first."""
    found = ((OWN_DESCRIPTION.match(description), job) for description, job in described_jobs(client))
    return [OwnRequest(match["name"], match["fingerprint"], job) for match, job in found if match]


def check_not_paid(jobs: Iterable[Job], limits: Limits) -> None:
    """Refuse to buy again, unasked, what failed after it had cost something.

    Raises:
        JobFailed: with the request, its reason and what it cost.
    """
    paid = [job for job in jobs if job.status == "FAILED" and job.cost_pu > 0]
    if paid and not limits.buy_again:
        job = paid[0]
        raise JobFailed(
            f"Request {job.id} for the same work failed after {job.cost_pu:,.1f} PU: {job.reason or 'no reason given'}."
            " It is not bought again by itself; mend the cause, then set limits.buy_again."
        )


def create_job(client: BatchProcessClient, work: Work, storage: Storage) -> Job:
    """Create the request, once. When the outcome is not known it is looked up, for as long as the list may lag.

    Raises:
        InvalidInput: the service refuses the request.
        NotYet: the service accepts no requests now (429); none was created.
        Unavailable: it is not known whether the request was created; the next run looks it up again.
    """
    arguments = {
        "process_request": work.process_request,
        "input": _with_access(work.tiles_input, storage),
        "output": BatchProcessClient.raster_output(_delivery(work.tiles_url, storage), cog_output=True),
        "description": work.description,
    }
    try:
        return job_of(_until_accepted(lambda: call(client.create, **arguments)), found=False)
    except NotYet:
        raise
    except Unavailable as error:
        job = _wait_for(lambda: _listed(client, work, storage), LIST_LAG_SECONDS)
        if job is None:
            raise Unavailable(
                f"Whether the request was created is not known ({error}), and it does not appear in the list. Run "
                "again: it is looked up first, and created only when it does not exist."
            ) from error
        return replace(job, found=False)


def find_or_create_job(
    client: BatchProcessClient,
    work: Work,
    storage: Storage,
    limits: Limits,
    price_pu: float,
    tiles: int,
    noted: str = "",
) -> Job:
    """Attach to the request that does this work already, or create it if its price is within the limits.

    Args:
        client: of the Batch API.
        work: what the service is asked for.
        storage: where it delivers.
        limits: what may be spent.
        price_pu: what the request may cost, processing units.
        tiles: how many it has, for the message.
        noted: id of a request that an earlier run has created for this work; the service's list may lag behind it.

    Raises:
        BudgetExceeded: it may cost more than ``limits.max_pu``.
        JobFailed: see :func:`check_not_paid`.
        ServiceError: see :func:`create_job`.
    """
    jobs = patiently(lambda: jobs_of(client, work))
    if noted and noted not in {job.id for job in jobs}:
        jobs = [*_noted_job(client, work, noted), *jobs]
    job = best_job(jobs, work, storage)
    if job is None:
        check_not_paid(jobs, limits)
        check_budget(price_pu, tiles, limits)
        job = create_job(client, work, storage)
    return job


def analyse_job(client: BatchProcessClient, job: Job) -> Job:
    """Have the request analysed, and wait for the end of it: free of charge.

    Raises:
        JobFailed: the analysis found the request wrong; the service's reason is given.
    """
    if job.status == "CREATED":
        _act(client, client.start_analysis, job)
    found = _wait_for(lambda: _analysed(client, job), ANALYSIS_SECONDS)
    if found is None:
        minutes = ANALYSIS_SECONDS / 60
        raise Unavailable(f"Request {job.id} has not been analysed within {minutes:.0f} minutes; run again.")
    if found.status == "FAILED":
        raise JobFailed(
            f"Request {job.id} failed in its analysis: {found.reason}\nNothing was bought; change what it names, and "
            "run again."
        )
    return found


def check_access(service: Service) -> None:
    """Ask the service for the newest of the account's batch requests, which is free of charge.

    A service that has trouble is asked again, one that is not there is told of at once.

    Raises:
        InvalidInput: there are no credentials, or the address cannot be used.
        AccessDenied: the credentials are wrong, or do not allow Batch.
        Unavailable: the service does not answer.
    """
    client = connect(service)
    patiently(lambda: call(lambda: next(iter(client.iter_requests(sort="created:desc")), None)), if_answered=True)


def check_delivery(storage: Storage) -> None:
    """Check that there is something by which the service may write to the bucket: a role, or lasting keys.

    Raises:
        InvalidInput: neither.
    """
    _delivery(storage.tiles_url, storage)


def check_budget(price_pu: float, tiles: int, limits: Limits) -> None:
    """Refuse a price above the cap.

    Raises:
        BudgetExceeded: with both figures.
    """
    if price_pu > limits.max_pu:
        raise BudgetExceeded(
            f"{tiles} tiles may cost up to {math.ceil(price_pu):,} PU, but limits.max_pu is {limits.max_pu:,.10g}; "
            "nothing was bought. Raise the cap, or ask for less: a smaller area or period, fewer bands, a coarser "
            "resolution."
        )


def restartable_from(job: Job) -> datetime | None:
    """From when on a request can be started again that its user has stopped, or is stopping; None for any other.

    The documentation of Batch V2 ("Stopping the request") sets 30 minutes. A request that the service itself has
    stopped may be started at once.
    """
    if job.action != "STOP" or job.acted_at is None or job.status in {"DONE", "FAILED"}:
        return None
    return job.acted_at + RESTART


def start_job(client: BatchProcessClient, job: Job) -> Job:
    """Start the processing of an analysed or stopped request, once: from here on it costs.

    One that :func:`restartable_from` knows to be too early for comes back as it stands: ask again later. Its moment is
    not waited for here, because the service may allow it sooner.

    Raises:
        InvalidInput: the service refuses for any other reason.
        Unavailable: it is not known whether the request was started; the next run looks it up again. Or it was told to
            stop, and has not stopped in all that time.
    """
    if job.action == "STOP" and not job.ended:
        return _still_stopping(_look(client, job) or job)
    if job.status in {"ANALYSIS_DONE", "STOPPED"}:
        try:
            _act(client, client.start_job, job)
        except (InvalidInput, ServiceError) as refusal:
            if isinstance(refusal, AccessDenied | Unavailable) or not _is_early(job):
                raise
            return job
    started = _wait_for(lambda: _moved_on(client, job), ACTION_LAG_SECONDS) if job.status == "STOPPED" else None
    return started or _wait_for(lambda: _look(client, job), ACTION_LAG_SECONDS) or job


def _still_stopping(job: Job) -> Job:
    if not job.ended and job.action == "STOP" and not _is_early(job):
        raise Unavailable(
            f"Request {job.id} was told to stop at {job.acted_at:%Y-%m-%d %H:%M} UTC and is still {job.status}; look "
            "at it in the service's dashboard, and run again."
        )
    return job


def _is_early(job: Job) -> bool:
    """Whether the 30 minutes may not have passed yet by the service's clock."""
    allowed = restartable_from(job)
    return allowed is not None and datetime.now(UTC) < allowed + RESTART_LAG


def stop_job(client: BatchProcessClient, job: Job) -> Job:
    """Have the service stop; tiles that are being processed are finished and charged. Gives the request as it is then.

    Unlike the others this is sent again while its outcome is not known, within a bound: a second stop does no harm.

    Raises:
        InvalidInput: the service refuses, though the request has not ended.
        Unavailable: it is not known whether the request will stop.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            call(client.stop_job, job.id)
            return _look(client, job) or job
        except InvalidInput:
            now = get_job(client, job.id)
            if not now.ended:
                raise
            return now
        except Unavailable:
            if time.monotonic() + LOOK_AGAIN_SECONDS > deadline:
                raise
        time.sleep(LOOK_AGAIN_SECONDS)


def settled_job(client: BatchProcessClient, job: Job) -> Job:
    """Give the request as it is when it has ended, because only then all of its costs are counted.

    One that goes on for long, or is not answered for, is given as it was last seen.
    """
    if job.ended:
        return _look(client, job) or job
    return _wait_for(lambda: _over(client, job), SETTLE_SECONDS) or _look(client, job) or job


def upload_geopackage(content: bytes, digest: str, storage: Storage) -> str:
    """Put the GeoPackage with tiles where the service can read it; its URL. The name is its content's hash."""
    url = f"{storage.tiles_url}/grids/{digest}.gpkg"
    files, path = open_filesystem(url, storage)
    if not files.exists(path):
        files.pipe_file(path, content)
    return url


def _act(client: BatchProcessClient, action: Callable[[str], object], job: Job) -> None:
    """Send a user action once; a refusal or an unknown outcome is fine when the request has already moved on."""
    try:
        _until_accepted(lambda: call(action, job.id))
    except NotYet:
        raise
    except (InvalidInput, Unavailable) as error:
        lag = 0.0 if isinstance(error, InvalidInput) else ACTION_LAG_SECONDS
        if _wait_for(lambda: _moved_on(client, job), lag) is None:
            raise


def _until_accepted(ask: Callable[[], T]) -> T:
    """Ask again while the service says that it did nothing (404 of a new request, 429), for as long as it may lag.

    A service that says when to ask again is asked then, for longer.
    """
    begin = time.monotonic()
    while True:
        try:
            return ask()
        except NotYet as error:
            pause = max(REPEAT_SECONDS, error.retry_after_seconds)
            patience = RETRY_AFTER_SECONDS if error.retry_after_seconds else LIST_LAG_SECONDS
            if time.monotonic() + pause > begin + patience:
                raise
        time.sleep(pause)


def _look(client: BatchProcessClient, job: Job) -> Job | None:
    """Ask once; None when there is no answer now."""
    try:
        return replace(get_job(client, job.id), found=job.found)
    except Unavailable:
        return None


def _noted_job(client: BatchProcessClient, work: Work, request_id: str) -> list[Job]:
    """Look for a request that is not in the list; none when the service does not know it, or it does other work.

    Raises:
        Unavailable: the service does not answer.
    """
    try:
        request = patiently(lambda: call(client.get_request, request_id), ACTION_LAG_SECONDS)
    except (NotThere, AccessDenied, InvalidInput):
        return []
    description, job = _described(request)
    return [job] if _is_of(description, work) else []  # not a repair of it


def _moved_on(client: BatchProcessClient, job: Job) -> Job | None:
    now = _look(client, job)
    return now if now is not None and now.status != job.status else None


def _analysed(client: BatchProcessClient, job: Job) -> Job | None:
    now = _look(client, job)
    return now if now is not None and now.status not in {"CREATED", "ANALYSING"} else None


def _over(client: BatchProcessClient, job: Job) -> Job | None:
    now = _look(client, job)
    return now if now is not None and now.ended else None


def _listed(client: BatchProcessClient, work: Work, storage: Storage) -> Job | None:
    try:
        return find_job(client, work, storage)
    except Unavailable:
        return None


def _wait_for(look: Callable[[], Job | None], seconds: float) -> Job | None:
    """Look again and again, for ``seconds`` at most and at least once; what was found, or None."""
    deadline = time.monotonic() + seconds
    pause = LOOK_AGAIN_SECONDS
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 1.5, 30.0)
    return found


def _has_data(job: Job, work: Work, storage: Storage) -> bool:
    if job.status != "DONE":
        return True
    files, _ = open_filesystem(work.tiles_url, storage)
    places = service_files(work.tiles_url, job.id, f"featureManifest-{job.id}.gpkg")
    return any(files.exists(place) for place in places)


def _delivery(tiles_url: str, storage: Storage) -> AccessSpecification:
    url = f"{tiles_url}/<requestId>/<tileName>/<outputId>.<format>"
    return _access(url, storage)


def _with_access(tiles_input: dict[str, Any], storage: Storage) -> dict[str, Any]:
    """Add what the service needs to read a GeoPackage; a tiling grid stays as it is."""
    if "url" not in tiles_input:
        return tiles_input
    return BatchProcessClient.geopackage_input(_access(tiles_input["url"], storage))


def _access(url: str, storage: Storage) -> AccessSpecification:
    if storage.iam_role_arn:
        return _specification(url, storage, iam_role_arn=storage.iam_role_arn)
    keys = s3_keys(storage)
    if keys is None or session_token(storage):
        came = "there are none" if keys is None else "those of the environment are temporary (AWS_SESSION_TOKEN)"
        raise InvalidInput(
            f"Sentinel Hub needs lasting S3 keys to write to the bucket, but {came}: "
            "give storage.iam_role_arn, or S3 keys as a block or in the environment."
        )
    return _specification(url, storage, access_key=keys[0], secret_access_key=keys[1])


def _specification(url: str, storage: Storage, **access: str) -> AccessSpecification:
    return BatchProcessClient.s3_specification(url=url, region=storage.region, **access)


# ---- Prefect ----


@task(task_run_name="find or create the request for {work.name}", cache_policy=NO_CACHE)
def find_or_create(
    work: Work, storage: Storage, service: Service, limits: Limits, price_pu: float, tiles: int, noted: str = ""
) -> Job:
    """See :func:`find_or_create_job`."""
    return find_or_create_job(connect(service), work, storage, limits, price_pu, tiles, noted)


@task(task_run_name="analyse {job.id}", cache_policy=NO_CACHE)
def analyse(job: Job, service: Service) -> Job:
    """See :func:`analyse_job`."""
    return analyse_job(connect(service), job)


@task(task_run_name="start {job.id}", cache_policy=NO_CACHE)
def start(job: Job, service: Service) -> Job:
    """See :func:`start_job`."""
    return start_job(connect(service), job)
