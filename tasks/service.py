"""Sentinel Hub as a client sees it: endpoints, credentials, and calls that end in one of our errors.

The client of ``sentinelhub`` waits without bound on 429 and for a token, repeats a POST by itself after 5xx, and never
renews a token that was refused. Here each call is made once and within a bound: who calls decides what may be asked
again.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from oauthlib.oauth2 import (
    AccessDeniedError,
    BackendApplicationClient,
    InvalidClientError,
    InvalidGrantError,
    OAuth2Error,
    UnauthorizedClientError,
)
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr
from requests_oauthlib import OAuth2Session
from sentinelhub import BatchProcessClient, SentinelHubCatalog, SHConfig
from sentinelhub.api.batch.process import BatchProcessRequest
from sentinelhub.download import SentinelHubDownloadClient, SentinelHubSession
from sentinelhub.download.models import DownloadRequest
from sentinelhub.exceptions import (
    DownloadFailedException,
    MissingDataInRequestException,
)

from tasks.errors import AccessDenied, InvalidInput, NotThere, NotYet, ServiceError, Unavailable
from tasks.form import FormModel
from tasks.storage import is_loopback

LOCALHUB_CLIENT = ("localhub", "localhub")
"""Client id and secret of the stand-in; used on loopback only, and only by default."""

SENTINEL_HUB_TOKEN_URL = "https://services.sentinel-hub.com/auth/realms/main/protocol/openid-connect/token"  # noqa: S105
TOKEN_URLS = {
    "services.sentinel-hub.com": SENTINEL_HUB_TOKEN_URL,
    "services-uswest2.sentinel-hub.com": SENTINEL_HUB_TOKEN_URL,
    "sh.dataspace.copernicus.eu": (
        "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
    ),
}
"""Where the known deployments give tokens (sentinelhub-py, configuration of Copernicus Data Space)."""

TIMEOUT_SECONDS = 60.0
"""How long an answer may take, the token's too."""

RETRY_AFTER_SECONDS = 600.0
"""The longest time that the service's word on when to ask again is followed."""
PATIENCE_SECONDS = 60.0
"""How long a question is asked again while there is trouble that may pass."""
PAUSE_SECONDS = 1.0
"""Before a question is asked again; doubled from time to time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A batch request as the service tells of it.

    Attributes:
        id: the request's id.
        status: its state at the service.
        reason: why it failed or was stopped, if it was.
        percent: share of tiles that are processed, 0 to 100.
        cost_pu: what it has cost so far, processing units.
        found: whether it existed before this run.
        action: what its user asked for last: NONE, ANALYSE, START or STOP.
        acted_at: when; None where the service does not tell.
    """

    id: str
    status: str
    reason: str = ""
    percent: float = 0.0
    cost_pu: float = 0.0
    found: bool = True
    action: str = ""
    acted_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the service does nothing more for it by itself."""
        return self.status in {"DONE", "FAILED", "STOPPED"}

    @property
    def under_way(self) -> bool:
        """Whether it is processed, or done: what it costs has been agreed on."""
        return self.status in {"PROCESSING", "DONE"}


class BoundedSession(SentinelHubSession):
    """A token of the service, got when it is needed, by one call that has a bound of time."""

    def __init__(self, config: SHConfig) -> None:
        super().__init__(config, _token=dict(NO_TOKEN))

    def forget(self) -> None:
        """Get a new token before the next call."""
        self._token = dict(NO_TOKEN)

    def _fetch_token(self, request: DownloadRequest) -> dict[str, Any]:
        oauth_client = BackendApplicationClient(client_id=self.config.sh_client_id)
        with OAuth2Session(client=oauth_client) as oauth:
            oauth.register_compliance_hook("access_token_response", self._compliance_hook)
            token: dict[str, Any] = oauth.fetch_token(
                token_url=request.url,
                client_id=self.config.sh_client_id,
                client_secret=self.config.sh_client_secret,
                include_client_id=True,
                timeout=TIMEOUT_SECONDS,
            )
        return NO_TOKEN | token  # one that does not say when it expires serves for one call


class BoundedClient(SentinelHubDownloadClient):
    """Makes each call once; 429 ends it as other refusals do, so that the answer says when to ask again."""

    def _do_download(self, request: DownloadRequest) -> requests.Response:
        response = super()._do_download(request)
        if response.status_code == requests.codes.too_many_requests:
            raise requests.HTTPError("429 Too Many Requests", response=response)
        return response


NO_TOKEN = {"access_token": "", "expires_at": 0.0}
_sessions: dict[tuple[str, str, str], BoundedSession] = {}  # tokens are shared by all clients of this process


class SentinelHubCredentials(Block):
    """An OAuth client of Sentinel Hub, kept by Prefect and named, never passed, as a parameter."""

    _block_type_name = "Sentinel Hub Credentials (eopatch-flow)"
    _block_type_slug = "eopatch-flow-sentinel-hub-credentials"

    client_id: str = Field(title="OAuth client id")
    client_secret: SecretStr = Field(title="OAuth client secret")


class Service(FormModel):
    """Which deployment of Sentinel Hub does the work, and as whom."""

    model_config = ConfigDict(title="Sentinel Hub")

    base_url: str = Field(
        default="http://127.0.0.1:8484",
        title="Service URL",
        description="Sentinel Hub's base URL. The default is the stand-in that 'eopatch-flow localhub' serves.",
        examples=["https://services.sentinel-hub.com", "https://sh.dataspace.copernicus.eu"],
        pattern=r"^https?://[^/@]+(/.*)?$",  # no name and password: they are in a block, or in the environment
    )
    token_url: str | None = Field(
        default=None,
        title="Token URL",
        description="Where OAuth tokens are given; empty for the known deployments and localhub.",
        examples=[TOKEN_URLS["sh.dataspace.copernicus.eu"]],
        pattern=r"^https?://[^/@]+(/.*)?$",
    )
    credentials_block: str | None = Field(
        default=None,
        title="Sentinel Hub credentials",
        description="Name of a 'Sentinel Hub Credentials (eopatch-flow)' block; empty for SH_CLIENT_ID and "
        "SH_CLIENT_SECRET of the environment.",
        examples=["my-oauth-client"],
    )


def token_url(service: Service) -> str:
    """The address that gives tokens for ``service``.

    Raises:
        InvalidInput: it is not known, or is plain http on another machine.
    """
    base = service.base_url.rstrip("/")
    found = service.token_url or TOKEN_URLS.get(urlsplit(base).hostname or "")
    if found is None and is_loopback(base):
        found = f"{base}/auth/realms/main/protocol/openid-connect/token"
    if found is None:
        raise InvalidInput(f"The token URL of {base} is not known; give it as service.token_url.")
    for url in (base, found):
        if not url.startswith("https://") and not is_loopback(url):
            raise InvalidInput(f"{url} would carry credentials in the clear; use https (http is for loopback only).")
    return found


def connect(service: Service, *, timeout_seconds: float = TIMEOUT_SECONDS) -> BatchProcessClient:
    """A client of the Batch API that makes each call once, within bounds of time.

    Args:
        service: which, and as whom.
        timeout_seconds: how long each answer may take.

    Raises:
        InvalidInput: no credentials, or an address that cannot be used.
    """
    config = _configured(service)
    config.download_timeout_seconds = timeout_seconds
    client = BatchProcessClient(config=config)
    client.client = _client(config)
    return client


def connect_catalog(service: Service) -> SentinelHubCatalog:
    """A client of the Catalog API; as :func:`connect`."""
    config = _configured(service)
    catalog = SentinelHubCatalog(config=config)
    catalog.client = _client(config)
    return catalog


def connect_process(service: Service) -> SentinelHubDownloadClient:
    """A client for requests of the Process API; as :func:`connect`."""
    return _client(_configured(service))


def call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call the client once and translate what goes wrong; a token that was refused is renewed, once.

    Raises:
        InvalidInput: 400, the request itself is wrong.
        AccessDenied: 401 with a new token, 403, or a wrong client.
        NotThere: 404.
        NotYet: 429.
        Unavailable: 5xx, no connection, no answer in time, an answer that cannot be understood.
        ServiceError: any other refusal.
    """
    try:
        return _call_once(function, *args, **kwargs)
    except _TokenRefused:
        for session in list(_sessions.values()):
            session.forget()
        return _call_once(function, *args, **kwargs)


def patiently(ask: Callable[[], T], patience_seconds: float = PATIENCE_SECONDS, *, if_answered: bool = False) -> T:
    """Ask what changes nothing, and ask again while there is trouble that may pass (429, 5xx, no answer).

    Args:
        ask: the question.
        patience_seconds: how long to go on.
        if_answered: whether to go on only while the service answers at all; for a person who waits.

    Raises:
        Unavailable: no answer in that time.
    """
    deadline, pause = time.monotonic() + patience_seconds, PAUSE_SECONDS
    while True:
        try:
            return ask()
        except Unavailable as error:
            wait = max(pause, error.retry_after_seconds)
            if time.monotonic() + wait > deadline or (if_answered and not error.answered):
                raise
        time.sleep(wait)
        pause *= 2


def get_job(client: BatchProcessClient, request_id: str) -> Job:
    """Ask once how far the request is."""
    return job_of(call(client.get_request, request_id))


def job_of(request: BatchProcessRequest, *, found: bool = True) -> Job:
    """Give what we keep of a request as the client tells it."""
    status = request.status.value
    stopped = request.stopped_status_reason.value if request.stopped_status_reason else ""
    return Job(
        id=request.request_id,
        status=status,
        reason=request.error or stopped,
        percent=float(request.completion_percentage or 0),
        cost_pu=float(request.cost_PU or 0),
        found=found,
        action=request.user_action.value if request.user_action else "",
        acted_at=_utc(request.user_action_updated),
    )


def _utc(moment: datetime | None) -> datetime | None:
    """The service's times are UTC, also where they do not say so."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


class _TokenRefused(AccessDenied):
    """401: the token has expired before its time, or the service has another key now."""


DENIALS = {401: _TokenRefused, 403: AccessDenied}


def _call_once(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return function(*args, **kwargs)
    except DownloadFailedException as error:
        raise _translated(error.request_exception, str(error)) from error
    except requests.RequestException as error:
        raise _translated(error, str(error)) from error
    except OAuth2Error as error:
        raise _without_token(error) from error
    except (MissingDataInRequestException, ValueError, KeyError) as error:
        raise Unavailable(f"Sentinel Hub's answer cannot be understood: {error!r}. Check service.base_url.") from error


def _translated(cause: requests.RequestException | None, text: str) -> Exception:
    response = getattr(cause, "response", None)
    if response is None:
        return Unavailable(f"Sentinel Hub did not answer: {cause or text}. Check service.base_url and the network.")
    status, said = response.status_code, _message(response)
    if status == requests.codes.bad_request:
        return InvalidInput(f"Sentinel Hub refused the request (400): {said}")
    if status in DENIALS:
        return DENIALS[status](
            f"Sentinel Hub denied access ({status}): {said}. Check the credentials and their rights."
        )
    if status in (requests.codes.not_found, requests.codes.too_many_requests):
        kind = NotThere if status == requests.codes.not_found else NotYet
        return kind(f"Sentinel Hub answered {status}: {said}", retry_after_seconds(response.headers), answered=True)
    if status >= requests.codes.server_error:
        text = f"Sentinel Hub answered {status}: {said}"
        return Unavailable(text, retry_after_seconds(response.headers), answered=True)
    return ServiceError(f"Sentinel Hub answered {status}: {said}")


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """When to ask again, as an answer says; 0 where it does not, or cannot be understood, and never above the bound.

    A number is in milliseconds (Sentinel Hub documentation, "Rate limiting"); what stands between the service and us
    may send a date instead (RFC 9110, "Retry-After").
    """
    told = headers.get("Retry-After", "").strip()
    try:
        seconds = float(told) / 1000
    except ValueError:
        seconds = _seconds_until(told)
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 0.0


def _seconds_until(date: str) -> float:
    """Seconds from now to a date as HTTP has it; 0 for what is none."""
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def _without_token(error: OAuth2Error) -> Exception:
    """Tell a client that is refused from a token endpoint that has another trouble, 429 for example."""
    said = error.description or error.error
    if isinstance(error, InvalidClientError | UnauthorizedClientError | InvalidGrantError | AccessDeniedError):
        return AccessDenied(f"Sentinel Hub refused the OAuth client: {said}. Check client id and secret.")
    return Unavailable(
        f"Sentinel Hub gave no token: {said}. Check service.token_url, or ask again later.", answered=True
    )


def _message(response: requests.Response) -> str:
    """The text of the service's error body, ``{"error": {"message": …}}``, or the start of whatever came."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200].strip() or response.reason
    if not isinstance(error, dict):
        return str(error).rstrip(".")
    notes = error.get("errors")
    details = "; ".join(f"{place}: {note}" for place, note in notes.items()) if isinstance(notes, dict) else ""
    return str(error.get("message", error)).rstrip(".") + (f" ({details})" if details else "")


def _configured(service: Service) -> SHConfig:
    config = SHConfig(use_defaults=True)
    config.sh_base_url = service.base_url.rstrip("/")
    config.sh_token_url = token_url(service)
    config.sh_client_id, config.sh_client_secret = _client_of(service)
    config.max_download_attempts = 1
    config.max_retries = 1
    config.download_timeout_seconds = TIMEOUT_SECONDS
    if is_loopback(config.sh_token_url):
        os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # its client refuses http even to this very machine
    return config


def _client(config: SHConfig) -> BoundedClient:
    return BoundedClient(config=config, session=_session(config))


def _session(config: SHConfig) -> BoundedSession:
    key = config.sh_token_url, config.sh_client_id, config.sh_client_secret
    return _sessions.setdefault(key, BoundedSession(config))


def _client_of(service: Service) -> tuple[str, str]:
    if service.credentials_block:
        return _client_of_block(service.credentials_block)
    client = os.environ.get("SH_CLIENT_ID"), os.environ.get("SH_CLIENT_SECRET")
    if client[0] and client[1]:
        return client[0], client[1]
    if is_loopback(service.base_url):
        return LOCALHUB_CLIENT
    raise InvalidInput(
        f"There are no credentials for {service.base_url}: name a block as service.credentials_block, or set "
        "SH_CLIENT_ID and SH_CLIENT_SECRET in the environment."
    )


def _client_of_block(name: str) -> tuple[str, str]:
    try:
        block = SentinelHubCredentials.load(name)
    except ValueError as error:
        raise InvalidInput(
            f"There is no 'Sentinel Hub Credentials (eopatch-flow)' block named '{name}'; create it in the Prefect UI."
        ) from error
    assert isinstance(block, SentinelHubCredentials)  # noqa: S101 - load is also typed for coroutines
    return block.client_id, block.client_secret.get_secret_value()
