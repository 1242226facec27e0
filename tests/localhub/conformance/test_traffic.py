"""localhub and the vendor's client speak as the published description says.

What is proven: each request of each method of `sentinelhub.BatchProcessClient`, and each response of a fault-free
localhub to it, conforms to the published OpenAPI description of the Batch Processing API v2 after the corrections of
`overlay.yaml`. So do the refusals of every operation, by bare requests. The requests go through a proxy that records
them; `openapi-core` judges. It is stricter here than OpenAPI: no field, query parameter or body may occur that is not
described. `test_overlay.py` shows that no correction is more than needed, and `test_schemathesis.py` tries what nobody
thought of.
"""

import inspect

import pytest
from sentinelhub import BatchProcessClient

from localhub.server import LocalHub
from tests.localhub.conformance.calls import CALLS, NO_REQUEST
from tests.localhub.conformance.conftest import Traffic, session_as
from tests.localhub.conformance.description import Description, Exchange
from tests.localhub.conformance.refusals import PREFIXES, UNKNOWN

NEVER = {("GET", "/batch/v2/process", "403"): "an account may always list its own requests"}
"""Declared statuses that a fault-free localhub has no reason for."""
TROUBLE = frozenset({"429", "5XX"})
"""Statuses of the overlay that a fault-free localhub never answers with; `trouble` has them."""


def test_every_method_of_the_client_is_called() -> None:
    methods = {
        name for name, _ in inspect.getmembers(BatchProcessClient, inspect.isroutine) if not name.startswith("_")
    }
    assert methods == CALLS.keys() | NO_REQUEST


@pytest.mark.parametrize("method", CALLS)
def test_what_the_client_says_conforms(traffic: Traffic, description: Description, method: str) -> None:
    said = traffic.by_method[method]
    assert said
    assert {str(exchange): faults for exchange in said if (faults := description.request_faults(exchange))} == {}


@pytest.mark.parametrize("method", CALLS)
def test_what_the_client_is_answered_conforms(traffic: Traffic, description: Description, method: str) -> None:
    said = traffic.by_method[method]
    assert {str(exchange): faults for exchange in said if (faults := description.response_faults(exchange))} == {}


def test_refusals_conform(traffic: Traffic, description: Description) -> None:
    said = traffic.refusals
    assert {str(exchange): faults for exchange in said if (faults := description.response_faults(exchange))} == {}


def test_answers_of_a_service_in_trouble_conform(trouble: list[Exchange], description: Description) -> None:
    assert {str(exchange): faults for exchange in trouble if (faults := description.response_faults(exchange))} == {}


def test_every_declared_status_of_every_operation_is_seen(
    traffic: Traffic, trouble: list[Exchange], description: Description
) -> None:
    declared = {
        (method, path, status)
        for method, path, operation in description.operations()
        for status in operation["responses"]
    }
    seen = {description.answered(exchange) for exchange in (*traffic.all, *trouble)}
    assert declared - seen == NEVER.keys()


def test_a_fault_free_service_answers_with_nothing_that_only_troubled_ones_do(
    traffic: Traffic, description: Description
) -> None:
    assert TROUBLE.isdisjoint(description.answered(exchange)[2] for exchange in traffic.all)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_other_methods_are_refused_with_those_that_the_description_has(
    conforming_hub: LocalHub, description: Description, prefix: str
) -> None:
    """RFC 9110, 15.5.6: the answer 405 lists the methods of the resource in `Allow`."""
    web = session_as(conforming_hub, conforming_hub.settings.client_id)
    methods: dict[str, set[str]] = {}
    for method, path, _ in description.operations():
        methods.setdefault(path, set()).add(method)
    for path, declared in methods.items():
        address = conforming_hub.base_url + path.replace("/batch/v2", prefix).format(taskId=UNKNOWN, id=1)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - declared:
            answer = web.request(method, address, timeout=10)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "COMMON_METHOD_NOT_ALLOWED")
            assert {name.strip() for name in answer.headers["Allow"].split(",")} == declared
