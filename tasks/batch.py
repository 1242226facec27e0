"""The batch request: found again or created, analysed, started, stopped. The paid stage.

The service is never asked twice to do what it may have done already: a POST is sent once, and when its outcome is not
known the request is looked up by its fingerprint, which stands in its description.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, TypeVar

import shapely
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field
from sentinelhub import BatchProcessClient
from sentinelhub.api.batch.process import BatchProcessRequest
from sentinelhub.api.utils import AccessSpecification
from shapely.geometry.base import BaseGeometry

from tasks.errors import BudgetExceeded, InvalidInput, JobFailed, NotYet, Unavailable
from tasks.evalscript import USERDATA, Script
from tasks.service import Job, Service, call, connect, get_job, job_of
from tasks.storage import Storage, open_filesystem, s3_keys, service_files, session_token

CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
LIST_LAG_SECONDS = 60.0
"""How long a request that was created may be missing from the list (its reads lag behind its writes)."""
ANALYSIS_SECONDS = 1800.0
ACTION_LAG_SECONDS = 30.0
"""How long a request may still show its old status after an action."""
REPEAT_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 1.0

T = TypeVar("T")

ATTACHABLE = {"CREATED", "ANALYSING", "ANALYSIS_DONE", "PROCESSING", "DONE", "STOPPED"}
"""Statuses of a request that can still deliver, or has delivered; FAILED cannot."""


class Limits(BaseModel):
    """What may be spent."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Limits")

    max_pu: float = Field(
        default=1000.0,
        title="Price at most",
        description="Processing units (PU). A request that may cost more is refused before it is created.",
        examples=[50_000],
        gt=0,
    )
    min_success: float = Field(
        default=1.0,
        title="Success at least",
        description="Share of tiles that must succeed for the run to be Completed; no data counts as success.",
        examples=[0.98],
        ge=0,
        le=1,
    )
    buy_again: bool = Field(
        default=False,
        title="Buy again",
        description="Order anew what an earlier request was paid for but failed to deliver. Its price counts in full.",
        examples=[False],
    )


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
    listed = call(lambda: list(client.iter_requests(sort="created:desc")))
    return [job_of(request) for request in listed if f"[{work.fingerprint}]" in _description(request)]


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
        raise JobFailed(f"Request {job.id} failed in its analysis: {found.reason}")
    return found


def check_access(service: Service) -> None:
    """Ask the service for the newest of the account's batch requests, which is free of charge.

    Raises:
        InvalidInput: there are no credentials, or the address cannot be used.
        AccessDenied: the credentials are wrong, or do not allow Batch.
        Unavailable: the service does not answer.
    """
    client = connect(service)
    call(lambda: next(iter(client.iter_requests(sort="created:desc")), None))


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


def start_job(client: BatchProcessClient, job: Job) -> Job:
    """Start the processing of an analysed or stopped request, once: from here on it costs.

    Raises:
        InvalidInput: the service refuses, for example because the request was stopped less than 30 minutes ago.
        Unavailable: it is not known whether the request was started; the next run looks it up again.
    """
    if job.status in {"ANALYSIS_DONE", "STOPPED"}:
        _act(client, client.start_job, job)
    started = _wait_for(lambda: _moved_on(client, job), ACTION_LAG_SECONDS) if job.status == "STOPPED" else None
    return started or _wait_for(lambda: _look(client, job), ACTION_LAG_SECONDS) or job


def stop_job(client: BatchProcessClient, job: Job) -> None:
    """Ask the service to stop; tiles that are being processed are finished and charged."""
    call(client.stop_job, job.id)


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
    """Ask again while the service says that it did nothing (404 of a new request, 429), for as long as it may lag."""
    deadline = time.monotonic() + LIST_LAG_SECONDS
    while True:
        try:
            return ask()
        except NotYet:
            if time.monotonic() + REPEAT_SECONDS > deadline:
                raise
        time.sleep(REPEAT_SECONDS)


def _look(client: BatchProcessClient, job: Job) -> Job | None:
    """Ask once; None when there is no answer now."""
    try:
        return replace(get_job(client, job.id), found=job.found)
    except Unavailable:
        return None


def _moved_on(client: BatchProcessClient, job: Job) -> Job | None:
    now = _look(client, job)
    return now if now is not None and now.status != job.status else None


def _analysed(client: BatchProcessClient, job: Job) -> Job | None:
    now = _look(client, job)
    return now if now is not None and now.status not in {"CREATED", "ANALYSING"} else None


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


def _description(request: BatchProcessRequest) -> str:
    return str(request.request.get("description") or "")


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


@task(task_run_name="find or create the batch request", cache_policy=NO_CACHE)
def find_or_create(work: Work, storage: Storage, service: Service, limits: Limits, price_pu: float, tiles: int) -> Job:
    """Attach to the request that does this work already, or create it if its price is within the limits."""
    client = connect(service)
    jobs = jobs_of(client, work)
    job = best_job(jobs, work, storage)
    if job is None:
        check_not_paid(jobs, limits)
        check_budget(price_pu, tiles, limits)
        job = create_job(client, work, storage)
    return job


@task(task_run_name="analyse", cache_policy=NO_CACHE)
def analyse(job: Job, service: Service) -> Job:
    """See :func:`analyse_job`."""
    return analyse_job(connect(service), job)


@task(task_run_name="start", cache_policy=NO_CACHE)
def start(job: Job, service: Service) -> Job:
    """See :func:`start_job`."""
    return start_job(connect(service), job)
