"""Process API: one image, or a few files of one area, at once.

Path, statuses and bodies: the service's OpenAPI description, operation `process`.
"""

import asyncio
import io
import logging
import tarfile
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool

from fastapi import APIRouter, Request, Response

from localhub.api.common import Asking, Payload, Served
from localhub.archive import ArchiveError, UnknownCollection
from localhub.auth import Account
from localhub.engine import EvalscriptError
from localhub.errors import ApiError, bad_payload
from localhub.pool import PoolClosed
from localhub.process import File, Processed, ProcessTask
from localhub.process_payload import TAR_TYPES, answer_of, parse_process_request
from localhub.providers import archive_source
from localhub.render import reading_now
from localhub.store import Store

_LOG = logging.getLogger(__name__)

PATHS = ("/api/v1/process", "/process/v1")
"""Where clients look for the API: the first is that of `sentinelhub`, the second that of the newer documentation."""


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    for path in PATHS:
        routes.add_api_route(path, _process, methods=["POST"])
    return routes


async def _process(payload: Payload, request: Request, account: Asking, service: Served) -> Response:
    """Answer without a thread that waits: a script that takes its time holds up nobody but its own worker."""
    body = parse_process_request(payload)
    answer = answer_of(body.output, request.headers.get("accept"))
    _check_balance(account, service.store)
    task = ProcessTask(
        body,
        answer.responses,
        archive_source(service.settings),
        reading_now(),
        service.settings.scratch_dir,
    )
    processed = await _processed(service.renderer.submit(task))
    for note in processed.notes:
        _LOG.warning("Process API request of %s: %s", account.client_id, note)
    service.store.charge(account.account_id, processed.cost_pu)
    content = _tar(processed.files) if answer.media_type in TAR_TYPES else processed.files[0].content
    return Response(content, media_type=answer.media_type, headers={"x-processingunits-spent": str(processed.cost_pu)})


def _check_balance(account: Account, store: Store) -> None:
    balance_pu = store.balance(account.account_id)
    if balance_pu is not None and balance_pu <= 0:
        message = "Insufficient processing units or requests available in your account."
        raise ApiError(403, message, "ACCESS_INSUFFICIENT_PROCESSING_UNITS")


async def _processed(future: Future[Processed]) -> Processed:
    try:
        return await asyncio.wrap_future(future)
    except EvalscriptError as error:
        raise ApiError(400, str(error), "RENDERER_EXCEPTION") from error
    except UnknownCollection as error:
        raise bad_payload(str(error), {"input.data": str(error)}) from error
    except ArchiveError as error:
        raise ApiError(500, str(error), "RENDERER_EXCEPTION") from error
    except BrokenProcessPool as error:
        message = "The worker process ended without an answer; it may have run out of memory."
        raise ApiError(500, message, "RENDERER_EXCEPTION") from error
    except (CancelledError, PoolClosed) as error:
        raise ApiError(503, "localhub is being stopped.", "COMMON_EXCEPTION") from error


def _tar(files: Iterable[File]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for file in files:
            member = tarfile.TarInfo(file.name)
            member.size = len(file.content)
            archive.addfile(member, io.BytesIO(file.content))
    return content.getvalue()
