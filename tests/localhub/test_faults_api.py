"""Faults of requests, over real HTTP: what goes wrong, what was done nevertheless, and what a client makes of it."""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from oauthlib.oauth2 import InvalidClientError, OAuth2Error
from sentinelhub import BatchProcessClient, BatchProcessRequest, SentinelHubSession, SHConfig
from sentinelhub.exceptions import DownloadFailedException, SHRateLimitWarning

from localhub.api.app import create_app
from localhub.api.disturbance import operation_of
from localhub.faults import ApiFault, Count, FaultBook, Faults, Operation, counted
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import body, client_of

BATCH = "/api/v2/batch"
PROCESS = f"{BATCH}/process"
OPERATIONS: tuple[Operation, ...] = tuple(name for name in get_args(Operation) if name != "any")


# ---- which fault happens to which request ----


def hits(faults: tuple[ApiFault, ...], operations: list[Operation]) -> list[int | None]:
    """Number of the fault that happens to each request."""
    counts = [Count() for _ in faults]
    happened = []
    for operation in operations:
        counts, fault = counted(faults, counts, operation)
        happened.append(None if fault is None else next(n for n, one in enumerate(faults) if one is fault))
    return happened


def test_a_fault_lets_some_requests_of_its_kind_pass_and_hits_some() -> None:
    fault = ApiFault(operation="create", status=502, skip=1, times=2)
    asked: list[Operation] = ["create", "get", "create", "get", "create", "create"]
    assert hits((fault,), asked) == [None, None, 0, None, 0, None]


def test_the_first_fault_that_is_due_happens_and_the_next_one_to_the_next_request() -> None:
    faults = (ApiFault(operation="get", status=404), ApiFault(status=500, skip=1, times=None))
    assert hits(faults, ["get", "get", "token", "list"]) == [0, 1, None, 1]


@given(
    st.lists(
        st.builds(
            ApiFault,
            operation=st.sampled_from(get_args(Operation)),
            skip=st.integers(0, 4),
            times=st.none() | st.integers(1, 4),
        ),
        max_size=4,
    ),
    st.lists(st.sampled_from(OPERATIONS), max_size=40),
)
def test_a_request_meets_a_fault_exactly_when_one_is_due(faults: list[ApiFault], asked: list[Operation]) -> None:
    happened = hits(tuple(faults), asked)
    for position, operation in enumerate(asked):
        due = []
        for number, fault in enumerate(faults):
            kinds = set(OPERATIONS) - {"token"} if fault.operation == "any" else {fault.operation}
            seen = sum(earlier in kinds for earlier in asked[:position])
            used_up = fault.times is not None and happened[:position].count(number) >= fault.times
            if operation in kinds and seen >= fault.skip and not used_up:
                due.append(number)
        assert happened[position] == (due[0] if due else None)


def test_many_threads_meet_a_fault_as_often_as_it_says() -> None:
    book = FaultBook(Faults(api=(ApiFault(operation="get", status=500, skip=11, times=137),)))
    met: Counter[bool] = Counter()

    def ask() -> None:
        met.update([book.take("get") is not None for _ in range(100)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == {True: 137, False: 663}


def test_every_route_of_the_service_is_of_some_kind_and_no_other_route_is(hub_settings: Settings) -> None:
    kinds: defaultdict[str | None, set[str]] = defaultdict(set)
    for path, methods in create_app(hub_settings).openapi()["paths"].items():
        for method in methods:
            kinds[operation_of(method.upper(), re.sub("[{}]", "", path))].add(path)
    assert all(path == "/health" or path.startswith("/admin/") for path in kinds.pop(None))
    assert kinds.keys() == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/auth/realms/main/protocol/openid-connect/token", "token"),
        ("POST", "/batch/v2/process", "create"),
        ("GET", "/api/v2/batch/process", "list"),
        ("PUT", "/api/v2/batch/process/1", "update"),
        ("POST", "/api/v2/batch/process/1/stop", "stop"),
        ("GET", "/api/v2/batch/tilinggrids/", "grids"),
        ("POST", "/api/v1/catalog/1.0.0/search", "catalog"),
        ("POST", "/api/v1/process", "process"),
        ("GET", "/admin/faults", None),
        ("GET", "/health", None),
        ("GET", "/", None),
        ("DELETE", "/api/v2/batch/process/1", None),
        ("GET", "/api/v2/batch/process/1/tiles", None),
    ],
)
def test_a_request_is_of_a_kind_by_method_and_path(method: str, path: str, operation: Operation | None) -> None:
    assert operation_of(method, path) == operation


# ---- over HTTP ----

Disturb = Callable[..., None]


@pytest.fixture
def operator(hub: LocalHub) -> tuple[str, str]:
    """Client id and secret, with which the admin routes are asked: no token, so that nothing disturbs it."""
    return hub.settings.client_id, hub.settings.client_secret.get_secret_value()


@pytest.fixture
def disturb(hub: LocalHub, operator: tuple[str, str]) -> Iterator[Disturb]:
    """Set the faults of the running localhub; they end with the test."""
    url = f"{hub.base_url}/admin/faults"

    def put(*api: ApiFault, **others: Any) -> None:
        faults = Faults(api=api, **others).model_dump(mode="json")
        requests.put(url, json=faults, auth=operator, timeout=10).raise_for_status()

    yield put
    requests.delete(url, auth=operator, timeout=10).raise_for_status()


@pytest.fixture
def payload(s3: SeaweedFS, bucket: str) -> dict[str, Any]:
    """A valid body of a create, which no other test sends."""
    return body(s3, bucket) | {"description": bucket}


def bought(hub: LocalHub, web: requests.Session, payload: dict[str, Any]) -> list[str]:
    """Ids of the requests that were created with this body."""
    query = {"search": payload["description"]}
    return [task["id"] for task in web.get(hub.base_url + PROCESS, params=query, timeout=10).json()["data"]]


def post(hub: LocalHub, web: requests.Session, payload: dict[str, Any], timeout: float = 20) -> requests.Response:
    """Ask for a create."""
    return web.post(hub.base_url + PROCESS, json=payload, timeout=timeout)


def vendors_client(hub: LocalHub, attempts: int) -> BatchProcessClient:
    """The vendor's own client, with so many attempts and no time between them."""
    client = client_of(hub)
    client.config.max_download_attempts, client.config.download_sleep_time = attempts, 0
    return client


def create(client: BatchProcessClient, payload: dict[str, Any]) -> BatchProcessRequest:
    """Create with the vendor's client."""
    return client.create(
        payload["processRequest"], payload["input"], payload["output"], description=payload["description"]
    )


def test_a_create_that_fails_buys_nothing(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    disturb(ApiFault(operation="create", status=502))
    answer = post(hub, web, payload)
    assert (
        answer.json()["error"].items() >= {"status": 502, "reason": "Bad Gateway", "code": "COMMON_EXCEPTION"}.items()
    )
    assert (answer.status_code, bought(hub, web, payload)) == (502, [])
    assert post(hub, web, payload).status_code == 201


def test_a_create_that_was_executed_and_answered_with_502_leaves_one_job(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    disturb(ApiFault(operation="create", status=502, executed=True))
    client = vendors_client(hub, attempts=1)
    with pytest.raises(DownloadFailedException, match="a fault that localhub was told to make"):
        create(client, payload)
    assert len(bought(hub, web, payload)) == 1


def test_the_clients_own_retry_of_a_create_buys_twice_and_the_admin_route_shows_it(
    hub: LocalHub, web: requests.Session, disturb: Disturb, operator: tuple[str, str], payload: dict[str, Any]
) -> None:
    disturb(ApiFault(operation="create", status=502, executed=True))
    client = vendors_client(hub, attempts=4)
    seen = create(client, payload)
    ids = bought(hub, web, payload)
    assert len(ids) == 2
    assert ids[1] == seen.request_id
    creates = requests.get(f"{hub.base_url}/admin/creates", auth=operator, timeout=10).json()
    assert ids in [group["ids"] for group in creates["equal"]]


def test_a_start_that_was_executed_and_answered_with_500_has_started(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    job = f"{hub.base_url}{PROCESS}/{post(hub, web, payload).json()['id']}"
    disturb(ApiFault(operation="start", status=500, executed=True), ApiFault(operation="analyse", status=500))
    assert web.post(f"{job}/analyse", timeout=10).status_code == 500
    assert web.get(job, timeout=10).json()["userAction"] == "NONE"
    assert web.post(f"{job}/start", timeout=10).status_code == 500
    assert web.get(job, timeout=10).json()["userAction"] == "START"


def test_a_client_that_hangs_up_while_it_waits_has_bought_nothing_then_and_later(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    disturb(ApiFault(operation="create", seconds=0.6, times=2))
    with pytest.raises(requests.ReadTimeout):
        post(hub, web, payload, timeout=0.2)
    began = time.monotonic()
    patient = post(hub, web, payload)
    assert time.monotonic() - began >= 0.6  # so that the first one's time has come too
    assert bought(hub, web, payload) == [patient.json()["id"]]


def test_a_client_that_hangs_up_while_it_waits_for_an_executed_create_has_bought(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    disturb(ApiFault(operation="create", seconds=3600, executed=True))
    with pytest.raises(requests.ReadTimeout):
        post(hub, web, payload, timeout=0.5)
    wait_until(lambda: len(bought(hub, web, payload)) == 1)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Ask until it is so; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize("executed", [True, False])
def test_a_patient_client_gets_the_true_answer_of_a_large_request(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any], executed: bool
) -> None:
    large = payload | {"description": payload["description"] + "x" * 1_000_000}
    disturb(ApiFault(operation="create", seconds=0.1, executed=executed))
    answer = post(hub, web, large)
    assert (answer.status_code, answer.json()["request"]["description"]) == (201, large["description"])
    assert answer.elapsed.total_seconds() >= 0.1
    assert bought(hub, web, payload) == [answer.json()["id"]]


def test_too_many_requests_come_in_the_documented_words_and_the_vendors_client_waits_as_told(
    hub: LocalHub, web: requests.Session, disturb: Disturb
) -> None:
    disturb(ApiFault(operation="grids", status=429, retry_after_ms=300, times=3))
    answer = web.get(f"{hub.base_url}{BATCH}/tilinggrids/1", timeout=10)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "300")
    assert answer.json().items() >= {"status": 429, "code": "RATE_LIMIT_EXCEEDED"}.items()
    client = vendors_client(hub, attempts=1)
    began = time.monotonic()
    with pytest.warns(SHRateLimitWarning):
        assert client.get_tiling_grid(1)["id"] == 1
    assert time.monotonic() - began >= 0.6


def test_an_expired_token_is_told_and_the_vendors_client_gives_up_at_once(
    hub: LocalHub, web: requests.Session, disturb: Disturb
) -> None:
    disturb(ApiFault(operation="list", status=401, times=2))
    answer = web.get(hub.base_url + PROCESS, timeout=10)
    assert answer.json()["error"].items() >= {"status": 401, "code": "COMMON_UNAUTHORIZED"}.items()
    assert "has expired" in answer.json()["error"]["message"]
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(DownloadFailedException, match="has expired"):
        list(vendors_client(hub, attempts=4).iter_requests())
    assert web.get(hub.base_url + PROCESS, timeout=10).status_code == 200


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_without_a_time_to_wait_is_ridden_out_by_the_vendors_client(
    hub: LocalHub, disturb: Disturb, status: int
) -> None:
    disturb(ApiFault(operation="grids", status=status, times=3))
    assert vendors_client(hub, attempts=4).get_tiling_grid(0)["id"] == 0


# ---- the token endpoint ----


@pytest.fixture
def config(hub: LocalHub) -> SHConfig:
    """Configuration of a client that tries four times without a break."""
    return vendors_client(hub, attempts=4).config


def test_a_token_endpoint_in_trouble_is_asked_again(disturb: Disturb, config: SHConfig) -> None:
    disturb(ApiFault(operation="token", status=503, times=3))
    assert SentinelHubSession(config).token["expires_in"] == 3600


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [(401, InvalidClientError, "invalid_client"), (429, OAuth2Error, "temporarily_unavailable")],
)
def test_a_token_endpoint_that_refuses_is_not_asked_again(
    disturb: Disturb, config: SHConfig, status: int, error: type[Exception], words: str
) -> None:
    disturb(ApiFault(operation="token", status=status))
    with pytest.raises(error, match=words):
        SentinelHubSession(config)
    assert SentinelHubSession(config).token["access_token"]


# ---- requests that are not there yet ----


def test_a_new_request_is_hidden_from_every_route_and_the_list_as_long_as_the_faults_say(
    hub: LocalHub, web: requests.Session, disturb: Disturb, operator: tuple[str, str], payload: dict[str, Any]
) -> None:
    disturb(hidden_from_get_seconds=3600, hidden_from_list_seconds=3600)
    job = f"{hub.base_url}{PROCESS}/{post(hub, web, payload).json()['id']}"
    answers = [
        web.get(job, timeout=10),
        web.put(job, json={}, timeout=10),
        *(web.post(f"{job}/{action}", timeout=10) for action in ("analyse", "start", "stop")),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
        (404, "COMMON_NOT_FOUND")
    ] * 5
    assert bought(hub, web, payload) == []
    requests.delete(f"{hub.base_url}/admin/faults", auth=operator, timeout=10)
    assert web.get(job, timeout=10).json()["status"] == "CREATED"
    assert [job.rpartition("/")[2]] == bought(hub, web, payload)


def test_a_new_request_is_there_when_its_time_has_come(
    hub: LocalHub, web: requests.Session, disturb: Disturb, payload: dict[str, Any]
) -> None:
    disturb(hidden_from_get_seconds=0.5, hidden_from_list_seconds=0.8)
    task = post(hub, web, payload).json()
    created = datetime.fromisoformat(task["created"])

    def age() -> float:
        return (datetime.now(UTC) - created).total_seconds()

    wait_until(lambda: web.get(f"{hub.base_url}{PROCESS}/{task['id']}", timeout=10).status_code == 200)
    assert age() >= 0.5
    wait_until(lambda: bought(hub, web, payload) == [task["id"]])
    assert age() >= 0.8


# ---- what is not disturbed ----


def test_a_fault_of_any_request_leaves_token_health_admin_and_page_alone(
    hub: LocalHub, disturb: Disturb, operator: tuple[str, str]
) -> None:
    disturb(ApiFault(status=503, times=None))
    for path in (PROCESS, f"{PROCESS}/x", f"{BATCH}/tilinggrids", "/batch/v2/tilinggrids/1"):
        assert requests.get(hub.base_url + path, timeout=10).status_code == 503  # before the token is missed
    for path in ("/", "/health", "/admin/faults"):
        assert requests.get(hub.base_url + path, auth=operator, timeout=10).status_code == 200
    form = {"grant_type": "client_credentials"}
    assert requests.post(hub.token_url, data=form, auth=operator, timeout=10).status_code == 200
