"""Faults of requests: ASGI middleware around all routes that lets happen what the fault book says.

It stands before authentication and every rule of a route, as a gateway does.
"""

import asyncio
import logging
import re
from collections import deque

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localhub.api.common import Service
from localhub.auth import EXPIRED, unauthorized
from localhub.errors import ApiError, RateLimitExceeded, code_of
from localhub.faults import ApiFault, FaultBook, Operation

_LOG = logging.getLogger(__name__)
_BATCH = r"(?:/api/v2/batch|/batch/v2)"
_OPERATIONS: tuple[tuple[str, str, Operation], ...] = (
    ("POST", r"/auth/realms/[^/]+/protocol/openid-connect/token|/oauth/token", "token"),
    ("POST", _BATCH + r"/process", "create"),
    ("GET", _BATCH + r"/process", "list"),
    ("GET", _BATCH + r"/process/[^/]+", "get"),
    ("PUT", _BATCH + r"/process/[^/]+", "update"),
    ("POST", _BATCH + r"/process/[^/]+/analyse", "analyse"),
    ("POST", _BATCH + r"/process/[^/]+/start", "start"),
    ("POST", _BATCH + r"/process/[^/]+/stop", "stop"),
    ("GET", _BATCH + r"/tilinggrids(?:/.*)?", "grids"),
    ("GET|POST", r"(?:/api/v1/catalog|/catalog/v1)(?:/.*)?", "catalog"),
    ("POST", r"/api/v1/process|/process/v1", "process"),
)


def operation_of(method: str, path: str) -> Operation | None:
    """Return the kind of a request, None of one that no fault is about: health, admin, the page."""
    for methods, paths, operation in _OPERATIONS:
        if re.fullmatch(methods, method) and re.fullmatch(paths, path):
            return operation
    return None


class Disturbance:
    """The middleware. A request that no fault is due for passes untouched.

    Args:
        app: what it stands before; its `state.service` has the fault book.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        operation = operation_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        fault = _faults(scope).take(operation) if operation else None
        if operation is None or fault is None:
            await self._app(scope, receive, send)
            return
        _LOG.warning("Fault of a request to %s: %s", operation, fault.model_dump_json(exclude_defaults=True))
        if fault.executed:
            await self._executed(scope, receive, send, fault, operation)
        else:
            await self._not_executed(scope, receive, send, fault, operation)

    async def _executed(
        self, scope: Scope, receive: Receive, send: Send, fault: ApiFault, operation: Operation
    ) -> None:
        """Carry the request out, wait, and answer."""
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(scope, receive, keep)
        if await _hangs_up(receive, fault.seconds):
            return
        if fault.status is not None:
            await _failure(fault.status, fault.retry_after_ms, operation)(scope, receive, send)
            return
        for message in answer:
            await send(message)

    async def _not_executed(
        self, scope: Scope, receive: Receive, send: Send, fault: ApiFault, operation: Operation
    ) -> None:
        """Wait, and answer; carry the request out only when it shall have its true answer and is still wanted."""
        request = await _whole(receive)
        if await _hangs_up(receive, fault.seconds):
            return
        if fault.status is not None:
            await _failure(fault.status, fault.retry_after_ms, operation)(scope, receive, send)
            return

        async def again() -> Message:
            return request.popleft() if request else await receive()

        await self._app(scope, again, send)


def _faults(scope: Scope) -> FaultBook:
    service: Service = scope["app"].state.service
    return service.faults


async def _whole(receive: Receive) -> deque[Message]:
    """Return the messages of a request, up to the last of its body."""
    messages = deque([await receive()])
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


async def _hangs_up(receive: Receive, seconds: float) -> bool:
    """Wait so long; tell whether the client went away meanwhile."""
    if seconds == 0:
        return False
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _failure(status: int, retry_after_ms: int | None, operation: Operation) -> JSONResponse:
    """Return the answer of a fault, in the words of the endpoint that is asked."""
    error = _error(status, retry_after_ms)
    headers = {} if retry_after_ms is None else {"Retry-After": str(retry_after_ms)}
    body = _oauth_body(error) if operation == "token" else error.body()
    return JSONResponse(body, status, headers={**(error.headers or {}), **headers})


def _error(status: int, retry_after_ms: int | None) -> ApiError:
    match status:
        case 401:
            return unauthorized(EXPIRED)
        case 429:
            return RateLimitExceeded("Too many requests; ask again later.", retry_after_ms)
    return ApiError(status, "This answer is a fault that localhub was told to make.", code_of(status))


def _oauth_body(error: ApiError) -> dict[str, str]:
    """Return an error of the token endpoint (RFC 6749, 5.2; for a service in trouble, 4.1.2.1)."""
    if error.status == 429 or error.status >= 500:
        return {"error": "temporarily_unavailable", "error_description": error.message}
    if error.status == 401:
        return {"error": "invalid_client", "error_description": "Invalid client or invalid client credentials."}
    return {"error": "invalid_request", "error_description": error.message}
