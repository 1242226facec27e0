"""The token endpoint: OAuth2 client credentials (RFC 6749, 4.4), at the paths where clients look for it."""

from hmac import compare_digest

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from localhub.api.common import Served
from localhub.auth import basic_credentials, issue_token

TOKEN_PATHS = ("/auth/realms/{realm}/protocol/openid-connect/token", "/oauth/token")


def router() -> APIRouter:
    """Return the routes; the only ones, with the health check, that want no token."""
    routes = APIRouter()
    for path in TOKEN_PATHS:
        routes.add_api_route(path, _token, methods=["POST"])
    return routes


async def _token(request: Request, service: Served) -> Response:
    """Answer a client-credentials request (RFC 6749, 4.4), with the client in the body or in a Basic header."""
    form = await request.form()
    if form.get("grant_type") != "client_credentials":
        return _oauth_error(400, "unsupported_grant_type", "Only grant_type=client_credentials is offered.")
    basic = basic_credentials(request.headers.get("authorization", ""))
    client_id, secret = basic or (str(form.get("client_id", "")), str(form.get("client_secret", "")))
    settings = service.settings
    expected = (settings.client_id, settings.client_secret.get_secret_value())
    if not all(compare_digest(a.encode(), b.encode()) for a, b in zip((client_id, secret), expected, strict=True)):
        return _oauth_error(401, "invalid_client", "Invalid client or invalid client credentials.")
    issuer = str(request.base_url).rstrip("/")
    token = issue_token(
        service.store.account(client_id), service.signing_key, seconds=settings.token_seconds, issuer=issuer
    )
    return JSONResponse(
        {
            "access_token": token,
            "expires_in": settings.token_seconds,
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "email profile",
        },
        headers={"Cache-Control": "no-store"},
    )


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status)
