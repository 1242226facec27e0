import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from localhub.auth import (
    Account,
    InvalidToken,
    basic_credentials,
    bearer_account,
    is_client,
    issue_token,
    next_not_before,
    read_token,
)
from localhub.errors import ApiError

KEY = b"k" * 32
ACCOUNT = Account("a client", "0c9d4ab1-0000-4000-8000-000000000000")


def token(seconds: int = 3600) -> str:
    return issue_token(ACCOUNT, KEY, seconds=seconds, issuer="http://localhost")


def test_a_token_tells_who_asks() -> None:
    assert read_token(token(), KEY) == ACCOUNT


def test_a_token_carries_the_claims_that_clients_read() -> None:
    middle = token().split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    assert claims["azp"] == claims["client_id"] == "a client"
    assert claims["account"] == ACCOUNT.account_id
    assert claims["exp"] - claims["iat"] == 3600


def test_an_expired_token_is_refused() -> None:
    with pytest.raises(InvalidToken, match="expired"):
        read_token(token(seconds=-1), KEY)


def test_a_token_that_was_issued_before_the_present_policy_is_refused_and_a_new_one_is_not() -> None:
    not_before = next_not_before(time.time(), 0)
    new = issue_token(ACCOUNT, KEY, seconds=3600, issuer="", not_before=not_before)
    assert read_token(new, KEY, not_before=not_before) == ACCOUNT
    with pytest.raises(InvalidToken, match="made invalid; ask the token endpoint for a new one"):
        read_token(token(), KEY, not_before=not_before)


@given(st.floats(0, 4e9), st.integers(0, 4_000_000_000))
def test_the_next_policy_is_later_than_any_token_that_was_issued_under_the_present_one(
    now: float, not_before: int
) -> None:
    issued_at_most = max(int(now), not_before)
    assert issued_at_most < next_not_before(now, not_before) <= issued_at_most + 1


def _another_claim(good: str) -> str:
    head, _, signature = good.split(".")
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 9e9, "client_id": "x", "account": "y"}).encode()).decode()
    return f"{head}.{claims.rstrip('=')}.{signature}"


def forgeries() -> list[str]:
    good = token()
    return [
        _another_claim(good),
        good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        good.rpartition(".")[0] + ".",
        "",
        "no token at all",
        "ä.ö.ü",
        issue_token(ACCOUNT, b"another key", seconds=3600, issuer=""),
    ]


@pytest.mark.parametrize("forged", forgeries())
def test_a_token_that_we_did_not_sign_is_refused(forged: str) -> None:
    with pytest.raises(InvalidToken, match="not one of this service"):
        read_token(forged, KEY)


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", "Bearer x.y.z"])
def test_a_request_without_a_bearer_token_is_answered_with_401(header: str | None) -> None:
    with pytest.raises(ApiError) as error:
        bearer_account(header, KEY)
    assert (error.value.status, error.value.code) == (401, "COMMON_UNAUTHORIZED")
    assert error.value.headers == {"WWW-Authenticate": "Bearer"}


def test_a_basic_header_holds_client_and_secret() -> None:
    header = "Basic " + base64.b64encode(b"client:se:cret").decode()
    assert basic_credentials(header) == ("client", "se:cret")
    assert basic_credentials("Basic !!!") is None
    assert basic_credentials("Bearer abc") is None


def test_a_client_is_one_with_its_own_secret() -> None:
    clients = {"a": SecretStr("secret of a"), "ä": SecretStr("ö")}
    assert is_client("a", "secret of a", clients)
    assert is_client("ä", "ö", clients)
    for client_id, secret in (("a", "ö"), ("a", ""), ("b", "secret of a"), ("", "")):
        assert not is_client(client_id, secret, clients)
