"""The flow against every fault that localhub can produce: what it says in the end, and that it buys once."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flows.land_cover import land_cover
from flows.parameters import LandCover
from localhub.sample import SampleInfo
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.flows.test_crash import changed
from tests.flows.test_land_cover import requests_of
from tests.localhub.watching import faults, set_balance

pytestmark = pytest.mark.usefixtures("prefect_server")

READY = r"^Completed: 4 of 4 EOPatches are ready"
SURVIVED = READY + r"\. Request .* was bought"


@dataclass(frozen=True)
class Case:
    """Faults of localhub, and what the run has to say: its state and message, and how many requests there are then."""

    outcome: str
    faults: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    requests: int = 1


def api(operation: str, **what: Any) -> dict[str, Any]:
    return {"api": [{"operation": operation, **what}]}


def tile(kind: str, **what: Any) -> dict[str, Any]:
    return {"tiles": [{"kind": kind, "tile": "t1", **what}]}


CASES = {
    "token: 500, twice": Case(SURVIVED, api("token", status=500, times=2)),
    "list: 502": Case(SURVIVED, api("list", status=502)),
    "list: 429 with Retry-After": Case(SURVIVED, api("list", status=429, retry_after_ms=300)),
    "Catalog: 503": Case(READY, api("catalog", status=503, times=None)),
    "create: 502, not executed": Case(SURVIVED + "|not known", api("create", status=502), requests=0),
    "create: 502, but executed": Case(SURVIVED, api("create", status=502, executed=True)),
    "create: 429 with Retry-After": Case(SURVIVED, api("create", status=429, retry_after_ms=300)),
    "analyse: 503, but executed": Case(SURVIVED, api("analyse", status=503, executed=True)),
    "start: 502, but executed": Case(SURVIVED, api("start", status=502, executed=True)),
    "start: 429 with Retry-After": Case(SURVIVED, api("start", status=429, retry_after_ms=300)),
    "get: 401 (expired token)": Case(SURVIVED, api("get", status=401)),
    "get: 429 with Retry-After": Case(SURVIVED, api("get", status=429, retry_after_ms=300)),
    "get: 500, four times": Case(SURVIVED, api("get", status=500, times=4)),
    "get: answers after 2 s": Case(SURVIVED, api("get", seconds=2)),
    "new request hidden: 404 for 2 s": Case(SURVIVED, {"hidden_from_get_seconds": 2}),
    "new request absent from the list for 3 s, create unanswered": Case(
        SURVIVED, api("create", status=502, executed=True) | {"hidden_from_list_seconds": 3}
    ),
    "tile FATAL, twice": Case(SURVIVED, tile("fatal", times=2)),
    "tile FATAL for good": Case(r"^Failed: 3 of 4 EOPatches are ready, 1 failed", tile("fatal")),
    "tile FATAL for good, 75 % is enough": Case(
        r"^Completed: 3 of 4 EOPatches are ready, 1 failed", tile("fatal"), {"min_success": 0.75}
    ),
    "tile without data": Case(r"^Completed: 3 of 4 EOPatches are ready, 1 without data", tile("no_data")),
    "tile delivered 2 s late": Case(SURVIVED, tile("undelivered", seconds=2)),
    "tile never delivered": Case(r"^Failed: 3 of 4 EOPatches are ready, 1 failed", tile("undelivered")),
    "file truncated": Case(r"^Failed: 3 of 4 EOPatches are ready, 1 failed", tile("truncated", output="B08")),
    "file missing": Case(r"^Failed: 3 of 4 EOPatches are ready, 1 failed", tile("missing", output="B08")),
    "database: first three copies half-written": Case(SURVIVED, {"database": {"torn_uploads": 3}}),
    "database: 3 s stale": Case(SURVIVED, {"database": {"stale_seconds": 3}}),
    "database in the request's folder": Case(SURVIVED, {"database": {"place": "request"}}),
    "database at the bucket's root": Case(SURVIVED, {"database": {"place": "bucket"}}),
    "OUT_OF_PU after 2 tiles": Case(r"^Failed: 2 of 4 EOPatches are ready, 2 failed", {"out_of_pu_after_tiles": 2}),
    "UNHEALTHY after 2 tiles": Case(r"^Failed: 2 of 4 EOPatches are ready, 2 failed", {"unhealthy_after_tiles": 2}),
}


@pytest.fixture(scope="module")
def own_hub(s3: SeaweedFS, small_sample: SampleInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub whose tokens live for 3 s and whose stopped jobs can be started at once."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("faulty-hub"),
        archive=small_sample.folder,
        port=0,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
        upload_seconds=0.1,
        restart_seconds=0,
        token_seconds=3,
    )
    with LocalHub(settings) as hub:
        yield hub


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, int, str]]]:
    """Rows that are printed when all faults have been tried: fault, requests, outcome."""
    rows: list[tuple[str, int, str]] = []
    yield rows
    width = max(len(row[0]) for row in rows)
    lines = [f"\n\n{'fault':{width}}  requests  outcome", *(f"{row[0]:{width}}  {row[1]:8}  {row[2]}" for row in rows)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        sys.stdout.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", CASES)
def test_a_fault_ends_as_it_should(
    name: str, parameters: LandCover, own_hub: LocalHub, table: list[tuple[str, int, str]]
) -> None:
    case = CASES[name]
    asked = with_hub(parameters, own_hub, case.limits)
    with faults(own_hub, **case.faults):
        outcome = outcome_of(asked)
    number = len(requests_of(asked))
    table.append((name, number, outcome))
    assert re.search(case.outcome, outcome)
    assert case.requests <= number <= 1


def test_tiles_of_a_request_that_the_service_has_stopped_come_with_the_next_run(
    parameters: LandCover, own_hub: LocalHub, table: list[tuple[str, int, str]]
) -> None:
    asked = with_hub(parameters, own_hub, {})
    with faults(own_hub, out_of_pu_after_tiles=2):
        assert outcome_of(asked).startswith("Failed: 2 of 4")
    outcome = outcome_of(asked)
    table.append(("OUT_OF_PU after 2 tiles, and run again", len(requests_of(asked)), outcome))
    assert re.search(READY + r".* existed already, nothing was bought .* 2 converted", outcome)


def test_all_tokens_expire_while_the_job_is_followed(
    parameters: LandCover, own_hub: LocalHub, table: list[tuple[str, int, str]]
) -> None:
    asked = with_hub(parameters, own_hub, {})
    with faults(own_hub, tile_seconds=1.5):  # each token lives for 3 s
        outcome = outcome_of(asked)
    table.append(("tokens live 3 s, the job 6 s", len(requests_of(asked)), outcome))
    assert re.search(SURVIVED, outcome)


def test_an_account_that_is_used_up_is_told_before_anything_is_bought(
    parameters: LandCover, own_hub: LocalHub, table: list[tuple[str, int, str]]
) -> None:
    asked = with_hub(parameters, own_hub, {})
    set_balance(own_hub, 10)
    try:
        outcome = outcome_of(asked)
    finally:
        set_balance(own_hub, None)
    table.append(("account with 10 PU", len(requests_of(asked)), outcome))
    assert outcome.startswith("Failed: ")
    assert requests_of(asked) == []


def with_hub(parameters: LandCover, hub: LocalHub, limits: dict[str, Any]) -> LandCover:
    service, pace = {"base_url": hub.base_url}, {"poll_seconds": 1, "patience_minutes": 0.1, "quicklooks": 0}
    return changed(parameters, service=service, limits=limits, run=pace)


def outcome_of(parameters: LandCover) -> str:
    """The run's final state and message, without its path."""
    state = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields}, return_state=True)
    folder = Path(parameters.storage.destination).parent
    return f"{state.name}: {state.message}".replace(f"{folder}/", "").replace("\n", " ")
