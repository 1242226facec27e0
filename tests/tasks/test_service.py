"""The client of Sentinel Hub: who it is, where tokens come from, and what each answer of the service turns into."""

import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from localhub.server import LocalHub
from tasks import service as module
from tasks.errors import AccessDenied, InvalidInput, ServiceError, Unavailable
from tasks.service import (
    SENTINEL_HUB_TOKEN_URL,
    TOKEN_URLS,
    NotYet,
    SentinelHubCredentials,
    Service,
    call,
    connect,
    get_job,
    patiently,
    retry_after_seconds,
    token_url,
)
from tests.tasks.faulty_server import TOKEN, Fault, FaultyServer

JOB = "/process/0000"


@pytest.fixture(autouse=True)
def no_client_and_no_tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SH_CLIENT_ID", "SH_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    module._sessions.clear()
    yield
    module._sessions.clear()


def asked(server: FaultyServer, expected: type[Exception]) -> Exception:
    """The error that asking for a job ends in."""
    with pytest.raises(expected) as caught:
        get_job(connect(Service(base_url=server.base_url)), "0000")
    return caught.value


def error_body(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"status": 400, "reason": "Bad Request", "message": message, "code": "COMMON_BAD_PAYLOAD", **more}}


# ---- when to ask again ----


def asking(*answers: object) -> tuple[Callable[[], object], list[object]]:
    """A question that gets these answers, one after the other, errors raised; and the answers that are left."""
    left = list(answers)

    def ask() -> object:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask, left


def test_a_question_is_asked_again_while_there_is_trouble_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    ask, left = asking(Unavailable("silence"), Unavailable("502", answered=True), NotYet("429", 0.05), "well", "more")
    began = time.monotonic()
    assert patiently(ask) == "well"
    assert time.monotonic() - began >= 0.05  # the service's own word on when to ask again
    assert left == ["more"]


@pytest.mark.parametrize("error", [AccessDenied("no"), InvalidInput("no"), ServiceError("no")])
def test_what_the_service_refuses_is_not_asked_again(error: Exception) -> None:
    ask, left = asking(error, "more")
    with pytest.raises(type(error)):
        patiently(ask)
    assert left == ["more"]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    ask, left = asking(*(Unavailable(str(number)) for number in range(99)))
    with pytest.raises(Unavailable):
        patiently(ask, patience_seconds=0.05)
    assert len(left) > 90
    ask, left = asking(Unavailable("wait", 60, answered=True), "more")
    with pytest.raises(Unavailable, match="wait"):
        patiently(ask, patience_seconds=5)
    assert left == ["more"]


def test_who_waits_is_told_at_once_of_a_service_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    ask, left = asking(Unavailable("503", answered=True), Unavailable("silence"), "more")
    with pytest.raises(Unavailable, match="silence"):
        patiently(ask, if_answered=True)
    assert left == ["more"]


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1500", 1.5),
        ("0", 0),
        ("99999999", 600),
        ("-5", 0),
        ("nan", 0),
        ("inf", 0),
        ("soon", 0),
        ("", 0),
        (" 2500.0 ", 2.5),
    ],
)
def test_a_number_in_retry_after_is_in_milliseconds_and_bounded(told: str, seconds: float) -> None:
    assert retry_after_seconds({"Retry-After": told}) == seconds


def test_a_date_in_retry_after_is_understood() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=100)
    assert 98 < retry_after_seconds({"Retry-After": format_datetime(moment, usegmt=True)}) <= 100
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2099 07:28:00 -0000"}) == 600
    assert retry_after_seconds({}) == 0


@pytest.mark.parametrize(("status", "kind"), [(429, NotYet), (503, Unavailable)])
def test_a_refusal_keeps_when_to_ask_again(status: int, kind: type[Unavailable]) -> None:
    with FaultyServer(faults=(Fault("GET", JOB, status, error_body("Later"), {"Retry-After": "2500"}),)) as server:
        error = asked(server, kind)
    assert isinstance(error, Unavailable)
    assert (str(error), error.retry_after_seconds) == (f"Sentinel Hub answered {status}: Later", 2.5)


# ---- addresses and clients ----


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://services.sentinel-hub.com/", SENTINEL_HUB_TOKEN_URL),
        ("https://services-uswest2.sentinel-hub.com", SENTINEL_HUB_TOKEN_URL),
        ("https://sh.dataspace.copernicus.eu", TOKEN_URLS["sh.dataspace.copernicus.eu"]),
        ("http://127.0.0.1:8484/", "http://127.0.0.1:8484/auth/realms/main/protocol/openid-connect/token"),
        ("https://localhost:1", "https://localhost:1/auth/realms/main/protocol/openid-connect/token"),
    ],
)
def test_the_token_urls_of_known_deployments_are_known(base: str, expected: str) -> None:
    assert token_url(Service(base_url=base)) == expected


def test_a_token_url_that_is_given_is_used() -> None:
    assert token_url(Service(base_url="https://a.example.org", token_url="https://b.example.org/t")).endswith("org/t")


def test_an_unknown_deployment_needs_a_token_url() -> None:
    with pytest.raises(InvalidInput, match=r"token URL of https://a.example.org is not known; give it as service"):
        token_url(Service(base_url="https://a.example.org"))


@pytest.mark.parametrize(
    ("base", "token"),
    [
        ("http://services.sentinel-hub.com", None),
        ("https://services.sentinel-hub.com", "http://services.sentinel-hub.com/token"),
        ("http://127.0.0.1:8484", "http://a.example.org/token"),
        ("http://a.example.org", "http://127.0.0.1/token"),
    ],
)
def test_credentials_go_over_https_to_any_other_machine(base: str, token: str | None) -> None:
    with pytest.raises(InvalidInput, match="would carry credentials in the clear; use https"):
        token_url(Service(base_url=base, token_url=token))


@pytest.mark.parametrize("url", ["http://127.0.0.1@a.example.org", "https://me:hush-hush@a.example.org/token"])
def test_an_address_has_no_name_and_password(url: str) -> None:
    for name in ("base_url", "token_url"):
        with pytest.raises(ValidationError, match=name) as caught:
            Service.model_validate({name: url})
        assert "hush-hush" not in str(caught.value)


def test_another_machine_needs_credentials() -> None:
    with pytest.raises(InvalidInput, match=r"no credentials for https://services.sentinel-hub.com: name a block"):
        connect(Service(base_url="https://services.sentinel-hub.com"))


def test_the_environments_client_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SH_CLIENT_ID", "mine")
    monkeypatch.setenv("SH_CLIENT_SECRET", "hush-hush")
    client = connect(Service(base_url="https://services.sentinel-hub.com"))
    assert (client.config.sh_client_id, client.config.sh_client_secret) == ("mine", "hush-hush")


@pytest.mark.usefixtures("prefect_server")
def test_a_named_blocks_client_is_used_and_its_secret_shown_nowhere() -> None:
    block = SentinelHubCredentials(client_id="of-the-block", client_secret=SecretStr("hush-hush"))
    block.save("my-client", overwrite=True)
    service = Service(credentials_block="my-client")
    assert connect(service).config.sh_client_secret == "hush-hush"
    assert "hush-hush" not in f"{block!r} {service!r} {SentinelHubCredentials.load('my-client')!r}"


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"no 'Sentinel Hub Credentials .* named 'nowhere'; create it"):
        connect(Service(credentials_block="nowhere"))


# ---- answers ----


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_fault_of_the_service_is_asked_about_once(status: int) -> None:
    with FaultyServer(faults=(Fault("GET", JOB, status, "oops"),) * 4) as server:
        error = asked(server, Unavailable)
        assert str(error) == f"Sentinel Hub answered {status}: oops"
        assert not isinstance(error, NotYet)
        assert server.count("GET", JOB) == 1


def test_a_connection_that_breaks_is_asked_about_once() -> None:
    with FaultyServer(faults=(Fault("GET", JOB, 0),) * 4) as server:
        assert "did not answer" in str(asked(server, Unavailable))
        assert server.count("GET", JOB) == 1


def test_404_and_429_say_that_the_service_did_nothing() -> None:
    limit = Fault("GET", JOB, 429, {"status": 429}, {"Retry-After": "3600000"})
    with FaultyServer(faults=(Fault("GET", JOB, 404, error_body("Not found.")), limit)) as server:
        began = time.monotonic()
        assert str(asked(server, NotYet)) == "Sentinel Hub answered 404: Not found"
        assert "429" in str(asked(server, NotYet))
        assert server.count("GET", JOB) == 2
    assert time.monotonic() - began < 5


def test_400_tells_the_services_message_with_its_notes_on_fields() -> None:
    body = error_body("Wrong payload.", errors={"input.id": "unknown grid"})
    with FaultyServer(faults=(Fault("GET", JOB, 400, body),)) as server:
        expected = "Sentinel Hub refused the request (400): Wrong payload (input.id: unknown grid)"
        assert str(asked(server, InvalidInput)) == expected


def test_any_other_refusal_is_the_services_own() -> None:
    with FaultyServer(faults=(Fault("GET", JOB, 409, error_body("Not now.")),)) as server:
        error = asked(server, ServiceError)
        assert type(error) is ServiceError
        assert str(error) == "Sentinel Hub answered 409: Not now"


def test_403_is_told_without_asking_again() -> None:
    with FaultyServer(faults=(Fault("GET", JOB, 403, error_body("No right.")),) * 2) as server:
        assert "denied access (403): No right. Check the credentials" in str(asked(server, AccessDenied))
        assert server.count("GET", JOB) == 1


def test_a_token_that_stays_refused_is_renewed_once() -> None:
    with FaultyServer(faults=(Fault("GET", JOB, 401, error_body("Expired.")),) * 4) as server:
        assert "denied access (401): Expired" in str(asked(server, AccessDenied))
        assert server.count("GET", JOB) == 2
        assert server.count("POST", "/token") == 2


@pytest.mark.parametrize("body", ["<html>a proxy</html>", [], {"id": "0000", "status": "NEW"}])
def test_an_answer_that_cannot_be_understood_says_so(body: object) -> None:
    with FaultyServer(faults=(Fault("GET", JOB, 200, body),)) as server:
        assert "cannot be understood" in str(asked(server, Unavailable))


def test_nobody_there_is_told_with_what_to_check() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        service = Service(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"did not answer: .*Check service.base_url and the network"):
            get_job(connect(service), "0000")


def test_a_token_endpoint_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable, match="did not answer"):
            get_job(connect(Service(base_url=f"http://127.0.0.1:{silent.getsockname()[1]}")), "0000")


@pytest.mark.parametrize(
    ("fault", "expected", "text"),
    [
        (Fault("POST", "/token", 401, {"error": "invalid_client"}), AccessDenied, "Check client id and secret"),
        (Fault("POST", "/token", 401, "no"), AccessDenied, "401"),
        (Fault("POST", "/token", 429, {"error": {"status": 429}}), Unavailable, "gave no token"),
        (Fault("POST", "/token", 429, "slow down"), Unavailable, "429: slow down"),
        (Fault("POST", "/token", 503, "down"), Unavailable, "503: down"),
        (Fault("POST", "/token", 200, "<html>"), Unavailable, "gave no token"),
    ],
)
def test_faults_of_the_token_endpoint_are_told_apart(fault: Fault, expected: type[Exception], text: str) -> None:
    with FaultyServer(faults=(fault, fault)) as server:
        assert text in str(asked(server, expected))
        assert server.count("GET", JOB) == 0


def test_clients_of_one_process_share_a_token_until_it_is_about_to_expire() -> None:
    soon = Fault("POST", "/token", 200, TOKEN | {"expires_in": 100})
    with FaultyServer(faults=(soon,)) as server:
        service = Service(base_url=server.base_url)
        for _ in range(3):
            assert call(lambda: list(connect(service).iter_requests())) == []
        assert server.count("POST", "/token") == 2


def test_a_token_that_does_not_say_when_it_expires_serves_for_one_call() -> None:
    timeless = Fault("POST", "/token", 200, {"access_token": "x", "token_type": "Bearer"})
    with FaultyServer(faults=(timeless, timeless)) as server:
        client = connect(Service(base_url=server.base_url))
        assert [call(lambda: list(client.iter_requests())) for _ in range(2)] == [[], []]
        assert server.count("POST", "/token") == 2


# ---- localhub ----


def test_a_wrong_client_is_told_and_its_secret_not_shown(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SH_CLIENT_ID", "localhub")
    monkeypatch.setenv("SH_CLIENT_SECRET", "hush-hush")
    with pytest.raises(AccessDenied, match=r"refused the OAuth client: Invalid client.*Check client id") as caught:
        get_job(connect(Service(base_url=hub.base_url)), "0000")
    assert "hush-hush" not in str(caught.value) + repr(caught.value.__cause__)


def test_a_token_that_is_refused_before_its_time_is_renewed(hub: LocalHub) -> None:
    with FaultyServer(hub.base_url) as server:
        client = connect(Service(base_url=server.base_url))
        session = client.client.session
        assert isinstance(session, module.BoundedSession)
        session._token = TOKEN | {"expires_at": time.time() + 3600}  # one of another key
        assert call(lambda: list(client.iter_tiling_grids()))  # one page, whatever other tests have created
        assert (server.count("GET", "/tilinggrids"), server.count("POST", "/token")) == (2, 1)
