"""The HTTP application: its routers, its life and its answers to errors."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPMethod

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from localhub.api import admin, batch, catalog, docs, grids, oauth, page, process
from localhub.api.common import Service, within_rate
from localhub.api.disturbance import Disturbance
from localhub.errors import ApiError, bad_payload, code_of
from localhub.faults import FaultBook
from localhub.incidents import Incidents
from localhub.limits import Policy, RateLimiter
from localhub.renderer import Renderer
from localhub.runner import Runner
from localhub.settings import Settings
from localhub.store import Store

BATCH_PREFIXES = ("/api/v2/batch", "/batch/v2")
"""Where clients look for the API: the first is that of `sentinelhub`, the second that of the description."""


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its lifespan opens the store, starts the workers and ends both."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log = logging.getLogger("localhub")
        log.addHandler(app.state.incidents)
        store = Store(settings.data_dir)
        store.open_accounts(settings.clients, settings.account_pu)
        faults = FaultBook(settings.faults)
        runner = Runner(settings, store, faults)
        runner.start()
        renderer = Renderer(settings)
        app.state.service = Service(settings, store, runner, renderer, faults, _limiter(settings), store.signing_key())
        yield
        renderer.close()
        runner.close()
        store.close()
        log.removeHandler(app.state.incidents)

    app = FastAPI(title="localhub", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.incidents = Incidents()
    app.add_api_route("/health", _health)
    app.include_router(oauth.router())
    app.include_router(page.router())
    app.include_router(docs.router())
    app.include_router(admin.router())
    for prefix in BATCH_PREFIXES:
        for routes in (batch.router(), grids.router()):
            app.include_router(routes, prefix=prefix, dependencies=[Depends(within_rate)])
    for prefix in catalog.PREFIXES:
        app.include_router(catalog.router(), prefix=prefix)
    app.include_router(process.router(), dependencies=[Depends(within_rate)])
    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Disturbance)
    return app


def _limiter(settings: Settings) -> RateLimiter | None:
    return RateLimiter(Policy(settings.requests_per_minute)) if settings.requests_per_minute else None


def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _answer(request: Request, error: Exception) -> Response:
    """Answer any error in the shape of the service's error body, and keep it for the page."""
    answer = _api_error(error)
    if answer.status == 405:
        answer.headers = {"Allow": ", ".join(_methods_there(request))}
    if not _asks_a_browser(request, answer):
        request.app.state.incidents.add(f"{request.method} {request.url.path} {answer.status}", answer.message)
    return JSONResponse(answer.body(), answer.status, headers=answer.headers)


def _api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=status, headers=headers):
            return ApiError(status, str(error.detail), code_of(status), headers=dict(headers or {}))
        case RequestValidationError():
            notes = {".".join(str(part) for part in detail["loc"]): str(detail["msg"]) for detail in error.errors()}
            return bad_payload("A parameter of the request is invalid.", notes)
    return ApiError(500, "Internal error of localhub; see its log.", "COMMON_EXCEPTION")


def _methods_there(request: Request) -> list[HTTPMethod]:
    """Return every method of a request's path, for `Allow` (RFC 9110, 15.5.6).

    Starlette names those of one route only, where a path has a route for each of its methods.
    """
    return [
        method
        for method in HTTPMethod
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _asks_a_browser(request: Request, answer: ApiError) -> bool:
    """Tell whether an answer is the challenge at which a browser asks for credentials: that is no error."""
    return answer.status == 401 and "text/html" in request.headers.get("accept", "")
