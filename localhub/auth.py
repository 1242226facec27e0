"""OAuth2 client credentials: access tokens in the shape of a JWT, signed with a key that survives restarts.

HMAC-SHA256 (RFC 7515, 7519) by the standard library; there is one key, one audience and no third party.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from localhub.errors import ApiError


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks: an OAuth client and the account that owns its requests."""

    client_id: str
    account_id: str
    """UUID; what the API calls `domainAccountId`."""


EXPIRED = "The access token has expired; ask the token endpoint for a new one."


class InvalidToken(Exception):
    """The token is malformed, not signed by us, expired, or was made invalid before its time."""


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _signature(signing_input: str, key: bytes) -> str:
    return _encode(hmac.digest(key, signing_input.encode(), hashlib.sha256))


def issue_token(account: Account, key: bytes, *, seconds: int, issuer: str, not_before: int = 0) -> str:
    """Return a signed token for `account` that is valid for `seconds`; `not_before` as in `read_token`."""
    now = max(int(time.time()), not_before)
    header = {"alg": "HS256", "typ": "JWT"}
    claims = {
        "exp": now + seconds,
        "iat": now,
        "jti": str(uuid.uuid4()),
        "iss": issuer,
        "sub": account.account_id,
        "azp": account.client_id,
        "client_id": account.client_id,
        "account": account.account_id,
    }
    signing_input = ".".join(_encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    return f"{signing_input}.{_signature(signing_input, key)}"


def next_not_before(now: float, not_before: int) -> int:
    """Return the time of issue from which tokens are valid when all those issued until `now` shall not be.

    Issue times are whole seconds, so it is the next one, and a token issued within the present one is dated ahead.

    Args:
        now: Unix time.
        not_before: the one that holds now; tokens may be dated with it.
    """
    return max(int(now), not_before) + 1


def read_token(token: str, key: bytes, *, not_before: int = 0) -> Account:
    """Return the account that `token` was issued to; raise InvalidToken when it is not ours or is valid no more.

    Args:
        token: as it was issued.
        key: that it was signed with.
        not_before: Unix time; a token issued earlier is not valid (the service's own `not-before-policy`).
    """
    signing_input, _, signature = token.rpartition(".")
    if not signing_input or not hmac.compare_digest(_signature(signing_input, key).encode(), signature.encode()):
        raise InvalidToken("The access token is not one of this service; ask the token endpoint for one.")
    claims: dict[str, Any] = json.loads(_decode(signing_input.partition(".")[2]))
    if time.time() > claims["exp"]:
        raise InvalidToken(EXPIRED)
    if claims["iat"] < not_before:
        raise InvalidToken("The access token has been made invalid; ask the token endpoint for a new one.")
    return Account(claims["client_id"], claims["account"])


def bearer_account(authorization: str | None, key: bytes, *, not_before: int = 0) -> Account:
    """Return the account of an `Authorization` header; raise the API's 401 without a valid bearer token."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise unauthorized("This route needs a bearer token; the request carries none.")
    try:
        return read_token(token.strip(), key, not_before=not_before)
    except InvalidToken as error:
        raise unauthorized(str(error)) from error


def unauthorized(message: str, challenge: str = "Bearer") -> ApiError:
    """Return the API's 401, with a challenge as RFC 9110, 11.6.1 wants it."""
    return ApiError(401, message, "COMMON_UNAUTHORIZED", headers={"WWW-Authenticate": challenge})


def is_client(client_id: str, secret: str, clients: Mapping[str, SecretStr]) -> bool:
    """Tell whether `clients`, secret by id, has this one."""
    expected = clients.get(client_id)
    return expected is not None and hmac.compare_digest(secret.encode(), expected.get_secret_value().encode())


def basic_credentials(authorization: str) -> tuple[str, str] | None:
    """Return (client id, secret) of an HTTP Basic header, None when it is not one."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, colon, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (client_id, secret) if colon else None
