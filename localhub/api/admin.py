"""Admin routes of localhub itself: its faults, tokens and accounts, and what was bought. The service has no such thing.

They want an operator (`localhub.api.common.operator`) and are neither disturbed by faults nor counted by rate limits.
A fault that they set lasts until the next start, where the settings say again what goes wrong; a balance and the end of
tokens last for good.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from localhub.api.common import Operator, Served, operator
from localhub.auth import Account
from localhub.errors import ApiError
from localhub.faults import Faults
from localhub.store import Create

_LOG = logging.getLogger(__name__)


def router() -> APIRouter:
    """Return the routes, with the operator that they want."""
    routes = APIRouter(prefix="/admin", dependencies=[Depends(operator)])
    routes.add_api_route("/faults", _faults, methods=["GET"])
    routes.add_api_route("/faults", _set_faults, methods=["PUT"])
    routes.add_api_route("/faults", _clear_faults, methods=["DELETE"], status_code=204)
    routes.add_api_route("/tokens/expire", _expire_tokens, methods=["POST"], status_code=204)
    routes.add_api_route("/creates", _creates, methods=["GET"])
    routes.add_api_route("/accounts", _accounts, methods=["GET"])
    routes.add_api_route("/accounts/{client_id:path}", _set_balance, methods=["PUT"])
    return routes


def _faults(service: Served) -> dict[str, Any]:
    """Answer with the faults that hold now, in the form in which they are set."""
    return service.faults.current.model_dump(mode="json")


def _set_faults(faults: Faults, who: Operator, service: Served) -> dict[str, Any]:
    """Let these faults, and no others, hold until the next start; every count begins at 0."""
    service.faults.set(faults)
    _LOG.info("Faults set by client %s: %s", who.client_id, faults.model_dump_json(exclude_defaults=True))
    return _faults(service)


def _clear_faults(who: Operator, service: Served) -> Response:
    """Let no fault hold until the next start, not those of the settings either."""
    service.faults.set(Faults())
    _LOG.info("Faults cleared by client %s", who.client_id)
    return Response(status_code=204)


def _expire_tokens(who: Operator, service: Served) -> Response:
    """Make every token issued so far invalid, the asking one too."""
    service.store.expire_tokens()
    _LOG.info("All tokens made invalid by client %s", who.client_id)
    return Response(status_code=204)


def _creates(service: Served) -> dict[str, Any]:
    """Answer with the number of creates that were executed, and those that bought the same again."""
    creates = service.store.creates()
    groups = equal_creates(creates)
    return {
        "executed": len(creates),
        "repeated": sum(len(group) - 1 for group in groups),
        "equal": [{"account_id": group[0].account_id, "ids": [create.job_id for create in group]} for group in groups],
    }


def equal_creates(creates: Iterable[Create]) -> list[list[Create]]:
    """Return the creates of one account with one body, credentials aside, where there are several; in their order."""
    groups: defaultdict[tuple[str, str], list[Create]] = defaultdict(list)
    for create in creates:
        groups[create.account_id, create.body_hash].append(create)
    return [group for group in groups.values() if len(group) > 1]


def _accounts(service: Served) -> list[dict[str, Any]]:
    return [_view(account, balance_pu) for account, balance_pu in service.store.accounts().items()]


class Balance(BaseModel):
    """What an account may still use up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    balance_pu: float | None = Field(allow_inf_nan=False)
    """Processing units left; None never ends."""


def _set_balance(client_id: str, balance: Balance, service: Served) -> dict[str, Any]:
    account = service.store.account(client_id)
    if account is None:
        raise ApiError(404, f"There is no client '{client_id}'; see /admin/accounts.", "COMMON_NOT_FOUND")
    service.store.set_balance(account.account_id, balance.balance_pu)
    return _view(account, balance.balance_pu)


def _view(account: Account, balance_pu: float | None) -> dict[str, Any]:
    return {"client_id": account.client_id, "account_id": account.account_id, "balance_pu": balance_pu}
