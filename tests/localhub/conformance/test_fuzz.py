"""Requests made up from the description, valid and invalid, find no server error and no undeclared response."""

import os
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from localhub.server import LocalHub
from tests.localhub.conformance.conftest import FUZZER, session_as
from tests.localhub.conformance.description import overlaid
from tests.localhub.conformance.refusals import PREFIXES

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Whether a made-up request is accepted says nothing: the description knows neither buckets nor balances."""

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
"""Requests an operation and mode."""


@pytest.fixture(scope="module")
def made_up(published: dict[str, Any], corrections: list[dict[str, Any]]) -> BaseSchema:
    """The description with its corrections, as schemathesis reads it."""
    return schemathesis.openapi.from_dict(overlaid(published, corrections))


@pytest.fixture(scope="module")
def fuzzer(conforming_hub: LocalHub) -> requests.Session:
    """A session of a client whose requests are nobody else's business."""
    return session_as(conforming_hub, FUZZER)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_made_up_request_meets_an_error_or_an_undeclared_answer(
    made_up: BaseSchema, mode: GenerationMode, conforming_hub: LocalHub, fuzzer: requests.Session
) -> None:
    operations = [one for one in (result.ok() for result in made_up.get_all_operations()) if PREFIXES[0] in one.path]
    assert len(operations) == 9
    asked: Counter[str] = Counter()
    for operation in operations:

        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            asked[case.operation.label] += 1
            case.call_and_validate(base_url=conforming_hub.base_url, session=fuzzer, checks=CHECKS, timeout=30)

        with suppress(Unsatisfiable):  # an operation without parameters cannot be asked wrongly
            ask()
    assert len(asked) >= 7, asked
