import base64
import json

import pytest

from localhub.auth import Account, InvalidToken, basic_credentials, bearer_account, issue_token, read_token
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


def test_a_basic_header_holds_client_and_secret() -> None:
    header = "Basic " + base64.b64encode(b"client:se:cret").decode()
    assert basic_credentials(header) == ("client", "se:cret")
    assert basic_credentials("Basic !!!") is None
    assert basic_credentials("Bearer abc") is None
