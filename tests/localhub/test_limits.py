"""Rate limits: the bucket by properties, with a clock of its own, and the vendor's client against a real limit."""

import math
import time
from collections.abc import Iterator

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sentinelhub.exceptions import SHRateLimitWarning

from localhub.limits import Policy, RateLimiter, admit
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import client_of, session_of

SECOND_NS = 1_000_000_000
GRIDS = "/api/v2/batch/tilinggrids"
rates = st.integers(1, 100_000)
gaps_ns = st.lists(st.one_of(st.just(0), st.integers(0, 5 * SECOND_NS)), max_size=60)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns


def admitted_at(rate: int, gaps_ns: list[int]) -> list[int]:
    """Times at which requests were admitted that came with these gaps."""
    now_ns = full_at_ns = 0
    times = []
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        full_at_ns, wait_ns = admit(Policy(rate), full_at_ns, now_ns)
        if not wait_ns:
            times.append(now_ns)
    return times


@given(rates, gaps_ns)
def test_no_span_of_time_sees_more_than_a_full_bucket_and_what_came_in_meanwhile(rate: int, gaps_ns: list[int]) -> None:
    times = admitted_at(rate, gaps_ns)
    for first, begin_ns in enumerate(times):
        for count, end_ns in enumerate(times[first:], start=1):
            assert count <= rate + rate * (end_ns - begin_ns) / (60 * SECOND_NS)


@given(st.integers(1, 20), gaps_ns)
def test_the_bucket_admits_what_a_bucket_of_tokens_admits(rate: int, gaps_ns: list[int]) -> None:
    refill_ns = math.ceil(60 * SECOND_NS / rate)
    level_ns, now_ns, expected = rate * refill_ns, 0, []  # a token is worth the time in which it comes in
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        level_ns = min(rate * refill_ns, level_ns + gap_ns)
        if level_ns >= refill_ns:
            level_ns -= refill_ns
            expected.append(now_ns)
    assert admitted_at(rate, gaps_ns) == expected


@given(rates)
def test_requests_at_the_rate_of_the_limit_never_wait(rate: int) -> None:
    assert len(admitted_at(rate, [Policy(rate).refill_ns] * 200)) == 200


@given(st.integers(1, 300), st.integers(0, 10**15))
def test_unused_requests_do_not_pile_up(rate: int, idle_ns: int) -> None:
    assert len(admitted_at(rate, [idle_ns] + [0] * (rate + 10))) == rate


@given(rates.filter(lambda rate: rate <= 300))
def test_the_time_to_wait_is_enough_and_a_millisecond_less_is_not(rate: int) -> None:
    clock = Clock()
    limiter = RateLimiter(Policy(rate), clock)
    assert [limiter.wait_ms("a") for _ in range(rate)] == [0] * rate
    wait_ms = limiter.wait_ms("a")
    assert 0 < wait_ms <= math.ceil(60_000 / rate)
    clock.now_ns += (wait_ms - 1) * 1_000_000
    assert limiter.wait_ms("a") == 1
    clock.now_ns += 1_000_000
    assert limiter.wait_ms("a") == 0


def test_each_account_has_a_bucket_of_its_own() -> None:
    limiter = RateLimiter(Policy(1), Clock())
    assert [limiter.wait_ms(account) for account in ("a", "b", "a", "b")] == [0, 0, 60_000, 60_000]


@pytest.fixture(scope="module")
def limited(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub that admits 30 requests a minute, of each of two clients."""
    limits = {"data_dir": tmp_path_factory.mktemp("limited"), "requests_per_minute": 30, "workers": 1}
    with LocalHub(hub_settings.model_copy(update=limits | {"other_clients": {"second": SecretStr("s")}})) as running:
        yield running


def refused(session: requests.Session, hub: LocalHub) -> requests.Response:
    """The first answer that is not 200 to the same request over and over."""
    for _ in range(100):
        if (answer := session.get(hub.base_url + GRIDS, timeout=10)).status_code != 200:
            return answer
    raise AssertionError("100 requests in a row were admitted")


def test_a_request_too_many_is_answered_with_429_and_the_milliseconds_to_wait(limited: LocalHub) -> None:
    answer = refused(session_of(limited), limited)
    assert answer.status_code == 429
    assert answer.json() == {
        "status": 429,
        "reason": "Too Many Requests",
        "message": f"This account may make 30 requests a minute and has made more; "
        f"ask again in {answer.headers['Retry-After']} ms.",
        "code": "RATE_LIMIT_EXCEEDED",
    }
    assert 0 < int(answer.headers["Retry-After"]) <= 2000


def test_tokens_health_admin_and_other_accounts_are_not_counted(limited: LocalHub) -> None:
    refused(session_of(limited), limited)
    credentials = (limited.settings.client_id, limited.settings.client_secret.get_secret_value())
    session_of(limited)  # asks for a token
    assert requests.get(f"{limited.base_url}/health", timeout=10).status_code == 200
    assert requests.get(f"{limited.base_url}/admin/accounts", auth=credentials, timeout=10).status_code == 200
    form = {"grant_type": "client_credentials", "client_id": "second", "client_secret": "s"}
    token = requests.post(limited.token_url, data=form, timeout=10).json()["access_token"]
    other = requests.get(limited.base_url + GRIDS, headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert other.status_code == 200


def test_the_vendors_client_rides_the_limit_out(limited: LocalHub) -> None:
    client = client_of(limited)
    assert client.client.get_session().token  # asked for now, so as to lose no time later
    wait_ms = int(refused(session_of(limited), limited).headers["Retry-After"])
    began = time.monotonic()
    with pytest.warns(SHRateLimitWarning):
        assert [grid["id"] for grid in client.iter_tiling_grids()][:2] == [0, 1]
    assert wait_ms / 1000 - 1 < time.monotonic() - began < 10
