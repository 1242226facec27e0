"""The HTTP API: token endpoint, Batch Processing API v2 and tiling grids, as FastAPI routes over store and runner.

Paths, statuses and bodies: research note batch-v2, sections 1 and 2, and the published OpenAPI description.
"""

import json
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from localhub import jobs
from localhub.auth import Account, basic_credentials, bearer_account, issue_token
from localhub.errors import ApiError, StoreError, bad_payload
from localhub.jobs import Action, Job, Status
from localhub.objectstore import Access, Bucket
from localhub.payload import S3, CreateRequest, GeoPackageInput, parse_create_request, without_secrets
from localhub.pricing import request_cost
from localhub.runner import Runner, now
from localhub.settings import Settings
from localhub.store import SORTS, Store
from tasks.grid import GRIDS, TilingGrid

_LOG = logging.getLogger(__name__)

PAGE_LIMIT = 100
"""Most entries of one page of a list."""
TOKEN_PATHS = ("/auth/realms/{realm}/protocol/openid-connect/token", "/oauth/token")
BATCH_PREFIXES = ("/api/v2/batch", "/batch/v2")
"""Where clients look for the API: the first is that of `sentinelhub`, the second that of the description."""

_HTTP_CODES = {
    401: "COMMON_UNAUTHORIZED",
    403: "COMMON_INSUFFICIENT_PERMISSIONS",
    404: "COMMON_NOT_FOUND",
    405: "COMMON_METHOD_NOT_ALLOWED",
    415: "COMMON_UNSUPPORTED_MEDIA_TYPE",
}


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    settings: Settings
    store: Store
    runner: Runner
    signing_key: bytes


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its lifespan opens the store, starts the workers and ends both."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(settings.data_dir)
        runner = Runner(settings, store)
        runner.start()
        app.state.service = Service(settings, store, runner, store.signing_key())
        yield
        runner.close()
        store.close()

    app = FastAPI(title="localhub", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", _health)
    for path in TOKEN_PATHS:
        app.add_api_route(path, _token, methods=["POST"])
    for prefix in BATCH_PREFIXES:
        app.include_router(_batch_router(), prefix=prefix)
    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    return app


def _batch_router() -> APIRouter:
    router = APIRouter(dependencies=[Depends(_account)])
    router.add_api_route("/process", _create, methods=["POST"], status_code=201)
    router.add_api_route("/process", _list, methods=["GET"])
    router.add_api_route("/process/{task_id}", _get, methods=["GET"])
    router.add_api_route("/process/{task_id}", _update, methods=["PUT"])
    for action in (Action.ANALYSE, Action.START, Action.STOP):
        router.add_api_route(
            f"/process/{{task_id}}/{action.lower()}", _action_route(action), methods=["POST"], status_code=204
        )
    for path in ("/tilinggrids", "/tilinggrids/"):
        router.add_api_route(path, _list_grids, methods=["GET"])
    router.add_api_route("/tilinggrids/{grid_id}", _get_grid, methods=["GET"])
    return router


# ---- errors ----


async def _answer(_request: Request, error: Exception) -> Response:
    """Answer any error in the shape of the service's error body."""
    match error:
        case ApiError():
            return JSONResponse(error.body(), error.status)
        case HTTPException(status_code=status):
            code = _HTTP_CODES.get(status, "COMMON_EXCEPTION")
            return JSONResponse(ApiError(status, str(error.detail), code).body(), status, headers=error.headers)
        case RequestValidationError():
            notes = {".".join(str(part) for part in detail["loc"]): str(detail["msg"]) for detail in error.errors()}
            return JSONResponse(bad_payload("A parameter of the request is invalid.", notes).body(), 400)
    return JSONResponse(ApiError(500, "Internal error of localhub; see its log.", "COMMON_EXCEPTION").body(), 500)


# ---- who asks ----


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]


def _account(request: Request, service: Served) -> Account:
    return bearer_account(request.headers.get("authorization"), service.signing_key)


Asking = Annotated[Account, Depends(_account)]


def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _token(request: Request, service: Served) -> Response:
    """Answer a client-credentials request (RFC 6749, 4.4), with the client in the body or in a Basic header."""
    form = await request.form()
    if form.get("grant_type") != "client_credentials":
        return _oauth_error(400, "unsupported_grant_type", "Only grant_type=client_credentials is offered.")
    basic = basic_credentials(request.headers.get("authorization", ""))
    client_id, secret = basic or (str(form.get("client_id", "")), str(form.get("client_secret", "")))
    settings = service.settings
    expected = (settings.client_id, settings.client_secret.get_secret_value())
    if not all(compare_digest(a.encode(), b.encode()) for a, b in zip((client_id, secret), expected, strict=True)):
        return _oauth_error(401, "invalid_client", "Invalid client or invalid client credentials.")
    issuer = str(request.base_url).rstrip("/")
    token = issue_token(
        service.store.account(client_id), service.signing_key, seconds=settings.token_seconds, issuer=issuer
    )
    return JSONResponse(
        {
            "access_token": token,
            "expires_in": settings.token_seconds,
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "email profile",
        },
        headers={"Cache-Control": "no-store"},
    )


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status)


# ---- batch processing requests ----


async def _payload(request: Request) -> dict[str, Any]:
    """Return the JSON object of a body; a multipart one has it in the part `request`, the script beside it."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _multipart_payload(request)
    if media_type != "application/json":
        raise ApiError(415, f"Content type '{media_type}' is not accepted; send JSON.", "COMMON_UNSUPPORTED_MEDIA_TYPE")
    return _json_object(await request.body())


async def _multipart_payload(request: Request) -> dict[str, Any]:
    form = await request.form()
    payload = _json_object(await _part(form.get("request")))
    evalscript = await _part(form.get("evalscript"))
    process_request = payload.get("processRequest")
    if evalscript and isinstance(process_request, dict):
        process_request["evalscript"] = evalscript.decode()
    return payload


async def _part(value: UploadFile | str | None) -> bytes:
    return await value.read() if isinstance(value, UploadFile) else (value or "").encode()


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body, parse_constant=_refuse_constant)
    except ValueError as error:  # malformed JSON or UTF-8
        raise bad_payload(f"The body is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise bad_payload(f"The body must be a JSON object, not a {type(payload).__name__}.")
    return payload


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


Payload = Annotated[dict[str, Any], Depends(_payload)]


def _create(payload: Payload, account: Asking, service: Served) -> dict[str, Any]:
    request = parse_create_request(payload)
    access = _access_by_place(request, service.settings)
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
    count, offset = _page_asked(request)
    order = sort if sort in SORTS else "created"
    found = service.store.jobs(account.account_id, search=search, sort=order, count=count + 1, offset=offset)
    return _page(request, [_view(job, service) for job in found], count, offset)


def _own_job(task_id: str, account: Account, service: Service) -> Job:
    job = service.store.job(task_id)
    if job is None:
        raise ApiError(404, f"There is no batch request {task_id}; check its id.", "COMMON_NOT_FOUND")
    if job.account_id != account.account_id:
        message = f"Batch request {task_id} belongs to another account."
        raise ApiError(403, message, "COMMON_INSUFFICIENT_PERMISSIONS")
    return job


def _get(task_id: str, account: Asking, service: Served) -> dict[str, Any]:
    return _view(_own_job(task_id, account, service), service)


def _update(task_id: str, payload: Payload, account: Asking, service: Served) -> dict[str, Any]:
    description = payload.get("description")
    if description is not None and not isinstance(description, str):
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
    percentage = 100 * progress.processed / progress.features if progress.features else 0
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
        "costPU": request_cost(progress.cost_pu) if progress.processed else None,
    }
    return view | {name: value for name, value in optional.items() if value is not None}


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- tiling grids ----


def _list_grids(request: Request) -> dict[str, Any]:
    count, offset = _page_asked(request)
    grids = [_grid_view(grid) for _, grid in sorted(GRIDS.items())]
    return _page(request, grids[offset : offset + count + 1], count, offset)


def _get_grid(grid_id: str) -> dict[str, Any]:
    grid = GRIDS.get(int(grid_id)) if grid_id.isdecimal() and grid_id.isascii() else None
    if grid is None:
        raise bad_payload(f"Tiling grid {grid_id} is not offered; choose one of {sorted(GRIDS)}.")
    return _grid_view(grid)


def _grid_view(grid: TilingGrid) -> dict[str, Any]:
    return {
        "id": grid.id,
        "name": grid.name,
        "properties": {
            "tileWidth": grid.tile_size_m,
            "tileHeight": grid.tile_size_m,
            "chunkWidth": grid.chunk_width,
            "chunkHeight": grid.chunk_height,
            "resolutions": list(grid.resolutions_m),
            "singleCrs": False,
            "unit": "METRE",
        },
    }


# ---- pages of lists ----


def _page_asked(request: Request) -> tuple[int, int]:
    """Return (count, offset) as asked; anything but a number counts as absent: lists have no 400."""
    count = _number(request.query_params.get("count"), PAGE_LIMIT)
    return min(max(count, 1), PAGE_LIMIT), _number(request.query_params.get("viewtoken"), 0)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else default


def _page(request: Request, found: Sequence[dict[str, Any]], count: int, offset: int) -> dict[str, Any]:
    """Return a page with its links; `found` starts at `offset` and has one entry more when there is a next page."""
    links = {"@id": _page_url(request, offset), "currentToken": str(offset)}
    if len(found) > count:
        links |= {"nextToken": str(offset + count), "next": _page_url(request, offset + count)}
    if offset > 0:
        previous = max(0, offset - count)
        links |= {"previousToken": str(previous), "previous": _page_url(request, previous)}
    return {"data": list(found[:count]), "links": links}


def _page_url(request: Request, offset: int) -> str:
    query = {**request.query_params, "viewtoken": str(offset)}
    return str(request.url.replace(query=urlencode(query)))
