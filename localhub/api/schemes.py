"""How a route wants to be asked, for the API description: a dependency that says so and does nothing.

FastAPI's own schemes also refuse requests; here every refusal is the API's own.
"""

from typing import Annotated

from fastapi import Depends
from fastapi.openapi.models import HTTPBase, OAuth2, OAuthFlowClientCredentials, OAuthFlows
from fastapi.openapi.models import SecurityBase as Model
from fastapi.security.base import SecurityBase

from localhub.server import TOKEN_PATH


class _Scheme(SecurityBase):
    def __init__(self, name: str, model: Model) -> None:
        self.scheme_name, self.model = name, model

    async def __call__(self) -> None:
        """Let the request pass."""


_FLOWS = OAuthFlows(clientCredentials=OAuthFlowClientCredentials(tokenUrl=TOKEN_PATH))

ByToken = Annotated[None, Depends(_Scheme("token", OAuth2(flows=_FLOWS, description="A bearer token.")))]
"""The route wants an access token."""
ByClient = Annotated[None, Depends(_Scheme("client", HTTPBase(scheme="basic", description="Client id and secret.")))]
"""The route takes client id and secret by HTTP Basic."""
