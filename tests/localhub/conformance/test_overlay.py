"""The corrected description is a valid one, and each correction is needed: without it something does not conform."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.localhub.conformance.conftest import OVERLAY, Traffic
from tests.localhub.conformance.description import Description, Exchange, overlaid

ACTIONS: list[dict[str, Any]] = yaml.safe_load(OVERLAY.read_text())["actions"]


@pytest.fixture(scope="module")
def samples(traffic: Traffic, trouble: list[Exchange], description: Description) -> list[Exchange]:
    """Each status of each operation by either prefix, and what the client's other methods and creates hold."""
    of_client = [said[-1] for said in traffic.by_method.values()]
    each_status = {
        (exchange.path[:5], description.answered(exchange)): exchange for exchange in (*traffic.all, *trouble)
    }
    return [*traffic.by_method["create"], *traffic.by_method["iter_requests"], *of_client, *each_status.values()]


def faults(document: Mapping[str, Any], samples: Iterable[Exchange]) -> Iterator[str]:
    """Yield what is wrong with a description in itself, and with what was said by it."""
    yield from (error.message for error in OpenAPIV31SpecValidator(dict(document)).iter_errors())
    description = Description(document)
    for exchange in samples:
        request_faults = description.request_faults(exchange)
        yield from request_faults if exchange.status < 400 else ()
        yield from description.response_faults(exchange)
        if exchange.status == 401 and not request_faults:
            yield "a request without a token conforms"


def test_with_all_corrections_nothing_is_wrong(published: Mapping[str, Any], samples: list[Exchange]) -> None:
    assert list(faults(overlaid(published, ACTIONS), samples)) == []


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action["target"])
def test_each_correction_is_needed_unless_it_says_that_it_extends(
    published: Mapping[str, Any], samples: list[Exchange], action: Mapping[str, Any]
) -> None:
    others = [other for other in ACTIONS if other is not action]
    needed = next(faults(overlaid(published, others), samples), None) is not None
    assert needed is not action.get("x-extension", False)


def test_each_correction_says_why() -> None:
    assert all(len(action["description"]) > 40 for action in ACTIONS)


@pytest.mark.parametrize(
    ("action", "changed"),
    [
        ({"target": "$.a", "update": {"c": {"d": [2]}}}, {"a": {"b": [1], "c": {"d": [2], "e": 5}}}),
        ({"target": "$.a.b", "update": 2}, {"a": {"b": [1, 2], "c": {"d": 4, "e": 5}}}),
        ({"target": "$.a.c.*", "remove": True}, {"a": {"b": [1], "c": {}}}),
        ({"target": "$.a.b[?@ == 1]", "remove": True, "update": 2}, {"a": {"b": [], "c": {"d": 4, "e": 5}}}),
    ],
)
def test_an_action_merges_appends_or_removes(action: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    document = {"a": {"b": [1], "c": {"d": 4, "e": 5}}}
    assert overlaid(document, [action]) == changed
    assert document == {"a": {"b": [1], "c": {"d": 4, "e": 5}}}


def test_a_correction_that_corrects_nothing_is_told() -> None:
    with pytest.raises(ValueError, match=r"\$\.b selects nothing in the description"):
        overlaid({"a": 1}, [{"target": "$.b", "remove": True}])
