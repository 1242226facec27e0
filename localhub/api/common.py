"""What every route shares: the service behind it, who asks, the JSON body, and pages of lists.

Bodies and links: research note batch-v2, sections 2.1 and 2.10, and the published OpenAPI description.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from starlette.datastructures import UploadFile

from localhub.api.schemes import ByClient, ByToken
from localhub.auth import Account, basic_credentials, bearer_account, is_client, unauthorized
from localhub.errors import ApiError, RateLimitExceeded, bad_payload
from localhub.faults import FaultBook
from localhub.limits import RateLimiter
from localhub.renderer import Renderer
from localhub.runner import Runner
from localhub.settings import Settings
from localhub.store import Store

PAGE_LIMIT = 100
"""Most entries of one page of a list."""
_OPERATOR_CHALLENGE = 'Basic realm="localhub", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    settings: Settings
    store: Store
    runner: Runner
    renderer: Renderer
    faults: FaultBook
    limiter: RateLimiter | None
    signing_key: bytes


def service_of(request: Request) -> Service:
    """Return the service that a request has reached."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


def asking_account(request: Request, service: Served, _token: ByToken = None) -> Account:
    """Return the account whose token a request carries; raise the API's 401 without one."""
    not_before = service.store.tokens_not_before()
    return bearer_account(request.headers.get("authorization"), service.signing_key, not_before=not_before)


Asking = Annotated[Account, Depends(asking_account)]


def within_rate(account: Asking, service: Served) -> None:
    """Count a request of the API; raise the API's 429 when its account has made too many."""
    if service.limiter is None:
        return
    wait_ms = service.limiter.wait_ms(account.account_id)
    if wait_ms:
        limit = service.limiter.policy.requests_per_minute
        message = f"This account may make {limit} requests a minute and has made more; ask again in {wait_ms} ms."
        raise RateLimitExceeded(message, wait_ms)


def client_account(service: Service, client_id: str, secret: str) -> Account | None:
    """Return the account of an OAuth client, None when there is no such client or its secret is another."""
    return service.store.account(client_id) if is_client(client_id, secret, service.settings.clients) else None


def operator(request: Request, service: Served, _token: ByToken = None, _client: ByClient = None) -> Account:
    """Return the account of a person or program that looks at localhub itself: its page and its admin routes.

    A bearer token is as good as HTTP Basic with client id and secret, which browsers ask for. A browser sends those by
    itself, also when another site makes it ask: what changes something is refused then, by `Sec-Fetch-Site` (W3C,
    Fetch Metadata).
    """
    basic = basic_credentials(request.headers.get("authorization", ""))
    if basic is None:
        return _bearer_operator(request, service)
    if request.method != "GET" and request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        message = "This request comes from a page of another site; send it from localhub's own, or with a bearer token."
        raise ApiError(403, message, "COMMON_INSUFFICIENT_PERMISSIONS")
    account = client_account(service, *basic)
    if account is None:
        raise unauthorized("There is no such client, or its secret is another.", _OPERATOR_CHALLENGE)
    return account


def _bearer_operator(request: Request, service: Service) -> Account:
    try:
        return asking_account(request, service)
    except ApiError as error:
        raise unauthorized(
            f"{error.message} Client id and secret by HTTP Basic do as well.", _OPERATOR_CHALLENGE
        ) from error


Operator = Annotated[Account, Depends(operator)]


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
    process_request = payload.get("processRequest", payload)  # of a batch request, or the whole of the Process API's
    if evalscript and isinstance(process_request, dict):
        process_request["evalscript"] = _text(evalscript)
    return payload


def _text(script: bytes) -> str:
    try:
        return script.decode()
    except UnicodeDecodeError as error:
        raise bad_payload(f"The part evalscript is not UTF-8: {error}") from error


async def _part(value: UploadFile | str | None) -> bytes:
    return await value.read() if isinstance(value, UploadFile) else (value or "").encode()


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body, parse_constant=_refuse_constant)
        # refuses numbers and characters that no answer can hold
        json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # malformed JSON or UTF-8, half a surrogate pair, 1e999
        raise bad_payload(f"The body is not JSON that can be read and written again: {error}") from error
    if not isinstance(payload, dict):
        raise bad_payload(f"The body must be a JSON object, not a {type(payload).__name__}.")
    return payload


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


Payload = Annotated[dict[str, Any], Depends(_payload)]


# ---- pages of lists ----


def page_asked(request: Request) -> tuple[int, int]:
    """Return (count, offset) as asked; anything but a number counts as absent: lists have no 400."""
    count = _number(request.query_params.get("count"), PAGE_LIMIT)
    return min(max(count, 1), PAGE_LIMIT), _number(request.query_params.get("viewtoken"), 0)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else default


def page(request: Request, found: Sequence[dict[str, Any]], count: int, offset: int) -> dict[str, Any]:
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
