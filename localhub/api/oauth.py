"""The token endpoint: OAuth2 client credentials (RFC 6749, 4.4), at the paths where clients look for it."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from localhub.api.common import Served, client_account
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
    account = client_account(service, client_id, secret)
    if account is None:
        return _oauth_error(401, "invalid_client", "Invalid client or invalid client credentials.")
    seconds, not_before = service.settings.token_seconds, service.store.tokens_not_before()
    issuer = str(request.base_url).rstrip("/")
    token = issue_token(account, service.signing_key, seconds=seconds, issuer=issuer, not_before=not_before)
    return JSONResponse(
        {
            "access_token": token,
            "expires_in": seconds,
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": not_before,
            "scope": "email profile",
        },
        headers={"Cache-Control": "no-store"},
    )


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status)
