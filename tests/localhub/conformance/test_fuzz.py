"""Requests made up from the description, valid and invalid, find no server error and no undeclared response.

Schemathesis asks by examples, by the bounds of every schema (coverage), at random, and in sequences of operations that
hand on what they were given (stateful). It starts from a body that a localhub accepts, so that much of what it makes up
is accepted too. It checks statuses, media types, headers and schemas of the answers, that what the description forbids
is refused, that no operation works without a token, and that other methods are refused with 405. `FUZZ_EXAMPLES` asks
for more than the suite does.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tests.localhub.batch_requests import body
from tests.localhub.conformance.conftest import FUZZER, session_as
from tests.localhub.conformance.description import Description, Exchange
from tests.localhub.conformance.refusals import PREFIXES

PROGRAM = Path(sys.executable).with_name("schemathesis")
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "15")
"""Requests an operation at random; the other phases make as many as they need."""


@pytest.fixture
def described(description: Description, s3: SeaweedFS, session_bucket: str, tmp_path: Path) -> Path:
    """The corrected description as a file, with a body that a localhub accepts as the example of a create."""
    document = json.loads(json.dumps(description.document))
    create = document["paths"]["/batch/v2/process"]["post"]
    create["requestBody"]["content"]["application/json"]["example"] = body(s3, session_bucket)
    path = tmp_path / "description.json"
    path.write_text(json.dumps(document))
    return path


def test_no_made_up_request_meets_an_error_or_an_undeclared_answer(
    conforming_hub: LocalHub, description: Description, described: Path
) -> None:
    recording = described.with_name("recording.har")
    found = subprocess.run(
        [
            *(PROGRAM, "--config-file", CONFIGURATION, "run", described, "--url", conforming_hub.base_url),
            *("--include-path-regex", f"^{PREFIXES[0]}", "--max-examples", EXAMPLES, "--no-color"),
            *("--report", "har", "--report-har-path", recording),
        ],
        env={**os.environ, "LOCALHUB_AUTHORIZATION": session_as(conforming_hub, FUZZER).headers["Authorization"]},
        cwd=described.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    _check_that_much_was_tried(description, json.loads(recording.read_text())["log"]["entries"])


def _check_that_much_was_tried(description: Description, entries: list[Mapping[str, Any]]) -> None:
    """Check that every operation but STOP has been carried out, and refused an invalid token."""
    exchanges = [_exchange(entry) for entry in entries]
    seen = Counter(description.answered(exchange) for exchange in exchanges if exchange.status != 405)
    for method, path, operation in description.operations():
        success = next(status for status in operation["responses"] if status.startswith("2"))
        assert seen[method, path, success] or path.endswith("/stop"), (method, path)
        assert seen[method, path, "401"], (method, path)
    assert seen["POST", "/batch/v2/process", "201"] > 10


def _exchange(entry: Mapping[str, Any]) -> Exchange:
    request, response = entry["request"], entry["response"]
    return Exchange(request["method"], request["url"], {}, b"", response["status"], {}, b"")
