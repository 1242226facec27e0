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
from dataclasses import dataclass
from typing import Any

from localhub.errors import ApiError


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks: an OAuth client and the account that owns its requests."""

    client_id: str
    account_id: str
    """UUID; what the API calls `domainAccountId`."""


class InvalidToken(Exception):
    """The token is malformed, not signed by us, or expired."""


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _signature(signing_input: str, key: bytes) -> str:
    return _encode(hmac.digest(key, signing_input.encode(), hashlib.sha256))


def issue_token(account: Account, key: bytes, *, seconds: int, issuer: str) -> str:
    """Return a signed token for `account` that is valid for `seconds`."""
    now = int(time.time())
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


def read_token(token: str, key: bytes) -> Account:
    """Return the account that `token` was issued to; raise InvalidToken when it is not ours or has expired."""
    signing_input, _, signature = token.rpartition(".")
    if not signing_input or not hmac.compare_digest(_signature(signing_input, key).encode(), signature.encode()):
        raise InvalidToken("The access token is not one of this service; ask the token endpoint for one.")
    claims: dict[str, Any] = json.loads(_decode(signing_input.partition(".")[2]))
    if time.time() > claims["exp"]:
        raise InvalidToken("The access token has expired; ask the token endpoint for a new one.")
    return Account(claims["client_id"], claims["account"])


def bearer_account(authorization: str | None, key: bytes) -> Account:
    """Return the account of an `Authorization` header; raise the API's 401 without a valid bearer token."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise ApiError(401, "This route needs a bearer token; the request carries none.", "COMMON_UNAUTHORIZED")
    try:
        return read_token(token.strip(), key)
    except InvalidToken as error:
        raise ApiError(401, str(error), "COMMON_UNAUTHORIZED") from error


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
