"""Batch Processing API v2: create, list, get, update, and the user actions.

Paths, statuses and bodies: research note batch-v2, section 2, and the published OpenAPI description.
"""

import json
import logging
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from localhub import jobs
from localhub.api.common import Asking, Payload, Served, Service, page, page_asked
from localhub.auth import Account
from localhub.errors import ApiError, StoreError, bad_payload
from localhub.jobs import Action, Job, Status
from localhub.objectstore import Access, Bucket
from localhub.payload import S3, CreateRequest, GeoPackageInput, parse_create_request, without_secrets
from localhub.runner import now
from localhub.settings import Settings
from localhub.store import SORTS

_LOG = logging.getLogger(__name__)
LEAST_BALANCE_PU = 1000
"""Processing units that an account must have left to create a request (research note batch-v2, section 3)."""


def router() -> APIRouter:
    """Return the routes, below the API's prefix."""
    routes = APIRouter()
    routes.add_api_route("/process", _create, methods=["POST"], status_code=201)
    routes.add_api_route("/process", _list, methods=["GET"])
    routes.add_api_route("/process/{task_id}", _get, methods=["GET"])
    routes.add_api_route("/process/{task_id}", _update, methods=["PUT"])
    for action in (Action.ANALYSE, Action.START, Action.STOP):
        routes.add_api_route(
            f"/process/{{task_id}}/{action.lower()}", _action_route(action), methods=["POST"], status_code=204
        )
    return routes


def _create(payload: Payload, account: Asking, service: Served) -> dict[str, Any]:
    request = parse_create_request(payload)
    access = _access_by_place(request, service.settings)
    _check_balance(account, service)
    shown = without_secrets(payload)
    created = now()
    job = Job(str(uuid.uuid4()), account.account_id, shown, created, created)
    bucket = Bucket(request.template.bucket, access["output"])
    try:
        bucket.write(f"{request.template.root}request-{job.id}.json", json.dumps(shown, indent=1).encode())
    except StoreError as error:
        raise bad_payload(str(error), {"output.delivery.s3": str(error)}) from error
    service.store.add(job, access)
    _LOG.info("Job %s CREATED", job.id)
    return _view(job, service)


def _check_balance(account: Account, service: Service) -> None:
    """Refuse an account that cannot afford any request.

    403 is the one documented answer to a create that says "you may not" of a valid body and a valid token.
    """
    balance_pu = service.store.balance(account.account_id)
    if balance_pu is not None and balance_pu < LEAST_BALANCE_PU:
        message = (
            f"A batch request needs an account with at least {LEAST_BALANCE_PU} processing units; this one has "
            f"{balance_pu:g} left. Buy more, or wait until the account's quota is renewed."
        )
        raise ApiError(403, message, "COMMON_INSUFFICIENT_PERMISSIONS")


def _access_by_place(request: CreateRequest, settings: Settings) -> dict[str, Access]:
    places = {"output": request.output.delivery.s3}
    if isinstance(request.input, GeoPackageInput):
        places["features"] = request.input.features.s3
    return {name: _access(place, settings) for name, place in places.items()}


def _access(place: S3, settings: Settings) -> Access:
    """Return the request's own keys, or those of the settings where it names a role."""
    region = place.region or place.regin
    if place.access_key and place.secret_access_key:
        return Access(settings.s3_endpoint_url, place.access_key, place.secret_access_key, region)
    if settings.provider == "cdse":
        raise bad_payload(
            f"iamRoleARN for '{place.url}' is not offered by the Copernicus Data Space Ecosystem; give accessKey and "
            "secretAccessKey."
        )
    if not settings.s3_access_key:
        raise bad_payload(
            f"iamRoleARN for '{place.url}' cannot be assumed: this localhub has no keys of its own. "
            "Set s3_access_key and s3_secret_key, or give accessKey and secretAccessKey."
        )
    return Access(settings.s3_endpoint_url, settings.s3_access_key, settings.s3_secret_key.get_secret_value(), region)


def _list(
    request: Request,
    account: Asking,
    service: Served,
    search: Annotated[str, Query()] = "",
    sort: Annotated[str, Query()] = "created",
) -> dict[str, Any]:
    count, offset = page_asked(request)
    order = sort if sort in SORTS else "created"
    hidden_seconds = service.faults.current.hidden_from_list_seconds
    found = service.store.jobs(
        account.account_id,
        search=search,
        sort=order,
        count=count + 1,
        offset=offset,
        created_until=now() - timedelta(seconds=hidden_seconds) if hidden_seconds else None,
    )
    return page(request, [_view(job, service) for job in found], count, offset)


def _own_job(task_id: str, account: Account, service: Service) -> Job:
    job = service.store.job(task_id)
    if job is None or _is_hidden(job, service.faults.current.hidden_from_get_seconds):
        raise ApiError(404, f"There is no batch request {task_id}; check its id.", "COMMON_NOT_FOUND")
    if job.account_id != account.account_id:
        message = f"Batch request {task_id} belongs to another account."
        raise ApiError(403, message, "COMMON_INSUFFICIENT_PERMISSIONS")
    return job


def _is_hidden(job: Job, seconds: float) -> bool:
    return seconds > 0 and now() < job.created + timedelta(seconds=seconds)


def _get(task_id: str, account: Asking, service: Served) -> dict[str, Any]:
    return _view(_own_job(task_id, account, service), service)


def _update(task_id: str, payload: Payload, account: Asking, service: Served) -> dict[str, Any]:
    description = payload.get("description")
    if "description" in payload and not isinstance(description, str):
        raise bad_payload("description must be a string.", {"description": "must be a string"})
    _own_job(task_id, account, service)
    return service.store.change(task_id, lambda job: jobs.described(job, description, now())).request


def _action_route(action: Action) -> Any:
    def act(task_id: str, account: Asking, service: Served) -> Response:
        _own_job(task_id, account, service)
        restart_seconds = service.settings.restart_seconds
        job = service.store.change(task_id, lambda job: jobs.act(job, action, now(), restart_seconds))
        _LOG.info("Job %s %s: %s", task_id, action, job.status)
        service.runner.wake(task_id)
        return Response(status_code=204)

    return act


def _view(job: Job, service: Service) -> dict[str, Any]:
    """Return the API's task object."""
    progress = service.store.progress(job.id)
    percentage = 100 * progress.ended / progress.features if progress.features else 0
    view = {
        "id": job.id,
        "request": job.request,
        "domainAccountId": job.account_id,
        "status": job.status,
        "userAction": job.action,
        "created": _timestamp(job.created),
        "lastUpdated": _timestamp(job.updated),
        "completionPercentage": percentage if job.status is Status.DONE else min(percentage, 99),
    }
    optional = {
        "userActionUpdated": _timestamp(job.action_updated) if job.action_updated else None,
        "error": job.error,
        "stoppedStatusReason": job.stopped_reason,
        "costPU": progress.billed_pu if progress.processed or job.status is Status.DONE else None,
    }
    return view | {name: value for name, value in optional.items() if value is not None}


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
