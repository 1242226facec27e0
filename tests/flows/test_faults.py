"""The flow against every fault that localhub can produce: what it says in the end, and that it buys once.

Whole runs, over four small tiles and a script of one band, without labels: faults are the service's. One run meets
several where it has to survive all of them. Each row of the table that is printed says how often the fault was met, as
localhub's log and the copies of the database that the run has read tell. Faults of operations that the flow does not
use (update, grids, process) are none of its business.
"""

import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flows.land_cover import land_cover
from flows.parameters import LandCover
from localhub.faults import ApiFault
from localhub.sample import SampleInfo
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tasks import batch, service
from tests.flows.tables import show
from tests.flows.test_land_cover import RED, SLUG, requests_of
from tests.localhub.conformance.recording import RecordingProxy
from tests.localhub.watching import expire_tokens, faults, set_balance, until

pytestmark = pytest.mark.usefixtures("prefect_server")

READY = r"^Completed: 4 of 4 EOPatches are ready"
SURVIVED = READY + r"\. Request R was bought"
ONE_FAILED = r": 3 of 4 EOPatches are ready, 1 failed\. Request R was bought .*, repaired by request R"
HALF_READY = r"^Failed: 2 of 4 EOPatches are ready, 2 failed"

Fields = dict[str, Any]
"""Of localhub's `Faults`."""


@dataclass(frozen=True)
class Case:
    """Faults that one run meets, by what people call them; what it has to say, and how many requests there are then."""

    faults: dict[str, Fields]
    outcome: str = SURVIVED
    limits: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    requests: int = 1


def api(operation: str, **what: Any) -> Fields:
    return {"api": [{"operation": operation, **what}]}


def tile(name: str, kind: str, **what: Any) -> Fields:
    return {"tiles": [{"kind": kind, "tile": name, **what}]}


def database(**what: Any) -> Fields:
    return {"database": what}


LATER = {"skip": 4}
"""Gets that come while the job is followed: those before wait for the analysis."""

CASES = {
    "errors": Case(
        {
            "token: 500, twice": api("token", status=500, times=2),
            "list: 502, when the input is checked": api("list", status=502),
            "list: 503, before the request is created": api("list", status=503, skip=2),
            "Catalog: 503": api("catalog", status=503),
            "create: 502, but executed": api("create", status=502, executed=True),
            "new request absent from the list for 3 s": {"hidden_from_list_seconds": 3},
            "analyse: 503, but executed": api("analyse", status=503, executed=True),
            "start: 502, but executed": api("start", status=502, executed=True),
            "get: 500, four times": api("get", status=500, times=4, **LATER),
            "one tile a second": {"tile_seconds": 1},
        }
    ),
    "too many requests": Case(
        {
            "token: 429": api("token", status=429),
            "list: 429 with Retry-After": api("list", status=429, retry_after_ms=300),
            "create: 429 with Retry-After": api("create", status=429, retry_after_ms=300),
            "new request unknown (404) for 2 s": {"hidden_from_get_seconds": 2},
            "analyse: 429 with Retry-After": api("analyse", status=429, retry_after_ms=300),
            "start: 429 with Retry-After": api("start", status=429, retry_after_ms=300),
            "get: 429 with Retry-After": api("get", status=429, retry_after_ms=300, times=2, **LATER),
        }
    ),
    "silence": Case(
        {
            "create: executed, and no answer": api("create", seconds=30, executed=True),
            "analyse: executed, and no answer": api("analyse", seconds=30, executed=True),
            "start: executed, and no answer": api("start", seconds=30, executed=True),
            "get: answers after 1 s, twice": api("get", seconds=1, times=2),
            "get: no answer": api("get", seconds=30, **LATER),
            "get: 401 (token expired before its time)": api("get", status=401, **LATER),
        }
    ),
    "database in the request's folder, torn": Case(
        {
            "database in the request's folder": database(place="request"),
            "database: the first eight copies half-written": database(torn_uploads=8),
            "tile FATAL, twice": tile("t1", "fatal", times=2),
            "tile delivered 2 s after it is DONE": tile("t2", "undelivered", seconds=2),
        }
    ),
    "database at the top of the bucket, stale": Case(
        {
            "database at the top of the bucket": database(place="bucket"),
            "database: 3 s stale": database(stale_seconds=3),
        }
    ),
    "no Catalog": Case(
        {"Catalog: 503 for good": api("catalog", status=503, times=None)}, READY, run={"patience_minutes": 0.05}
    ),
    "create not executed": Case(
        {"create: 502, not executed": api("create", status=502)},
        r"^Failed: .*Whether the request was created is not known .*Run again",
        requests=0,
    ),
    "stop": Case(
        {
            "stop: 502, twice, when the run times out": api("stop", status=502, times=2),
            "one tile in five seconds": {"tile_seconds": 5},
        },
        r"^Failed: .*as long as run\.timeout_hours allows\. Request R was stopped",
        run={"timeout_hours": 4 / 3600},
    ),
    "FATAL": Case({"tile FATAL for good": tile("t1", "fatal")}, "^Failed" + ONE_FAILED, requests=2),
    "FATAL, allowed": Case(
        {"tile FATAL for good, and 75 % are enough": tile("t1", "fatal")},
        "^Completed" + ONE_FAILED,
        {"min_success": 0.75},
        requests=2,
    ),
    "bad deliveries": Case(
        {
            "tile never delivered": tile("t1", "undelivered"),
            "file truncated": tile("t2", "truncated"),
            "file missing": tile("t3", "missing"),
        },
        r"^Failed: 1 of 4 EOPatches are ready, 3 failed\. Request R was bought .*, repaired by request R",
        run={"patience_minutes": 0.05},
        requests=2,
    ),
    "no data": Case(
        {"tile without data": tile("t1", "no_data")}, r"^Completed: 3 of 4 EOPatches are ready, 1 without data"
    ),
    "OUT_OF_PU": Case({"OUT_OF_PU after 2 tiles": {"out_of_pu_after_tiles": 2}}, HALF_READY),
    "UNHEALTHY": Case(
        {
            "UNHEALTHY after 2 tiles": {"unhealthy_after_tiles": 2},
            "database: 3 s stale, of a request that was stopped": database(stale_seconds=3),
        },
        HALF_READY,
    ),
}

Row = tuple[str, int | str, int, str]
"""Fault, how often it was met, requests at the service, what the run said."""


@pytest.fixture(scope="module")
def own_hub(s3: SeaweedFS, small_sample: SampleInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub whose stopped jobs can be started at once."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("faulty-hub"),
        archive=small_sample.folder,
        port=0,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
        upload_seconds=0.1,
        restart_seconds=0,
    )
    with LocalHub(settings) as hub:
        yield hub


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Rows of the table, which is printed when all faults have been tried."""
    found: list[Row] = []
    yield found
    show(request.config, "Faults of the service", ("Fault", "met", "requests", "outcome"), found)


@pytest.fixture
def asked(parameters: LandCover, own_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LandCover:
    """Four small tiles of one band, looked at often; the store is seen through a proxy."""
    script = tmp_path / "red.js"
    script.write_text(RED)
    service._sessions.clear()
    monkeypatch.setitem(service.connect.__kwdefaults__, "timeout_seconds", 3.0)
    monkeypatch.setattr(batch, "LIST_LAG_SECONDS", 8.0)
    return changed(
        parameters,
        service={"base_url": own_hub.base_url},
        imagery={"evalscript": str(script)},
        run={"poll_seconds": 1, "patience_minutes": 0.5, "quicklooks": 0},
    ).model_copy(update={"reference": None})


@pytest.mark.parametrize("name", CASES)
def test_faults_end_as_they_should(
    name: str, asked: LandCover, own_hub: LocalHub, s3: SeaweedFS, rows: list[Row]
) -> None:
    case = CASES[name]
    log_before = len(own_hub.log_path.read_text())
    with RecordingProxy(s3.endpoint_url) as store, faults(own_hub, **together(case.faults.values())):
        seen = {"endpoint_url": store.base_url}
        outcome = outcome_of(changed(asked, storage=seen, limits=case.limits, run=case.run))
    number = len(requests_of(asked))
    log = own_hub.log_path.read_text()[log_before:]
    met = {fault: times_met(fields, log, store) for fault, fields in case.faults.items()}
    rows += [(fault, "" if times is None else times, number, outcome) for fault, times in met.items()]
    assert re.search(case.outcome, outcome), outcome
    assert number == case.requests
    assert 0 not in met.values(), met


def test_tiles_of_a_request_that_the_service_has_stopped_come_with_the_next_run(
    asked: LandCover, own_hub: LocalHub, rows: list[Row]
) -> None:
    with faults(own_hub, out_of_pu_after_tiles=2):
        assert outcome_of(asked).startswith("Failed: 2 of 4")
    outcome = outcome_of(asked)
    rows.append(("OUT_OF_PU after 2 tiles, and run again", "", len(requests_of(asked)), outcome))
    assert re.search(READY + r".*; 2 converted", outcome)


def test_all_tokens_become_invalid_while_the_job_is_followed(
    asked: LandCover, own_hub: LocalHub, rows: list[Row]
) -> None:
    folder = Path(asked.storage.destination) / SLUG / "eopatches"
    converted = lambda: any(folder.glob("*/meta_info/BATCH.json.gz"))  # noqa: E731

    def expire() -> None:
        until(converted, seconds=60)
        expire_tokens(own_hub)

    thread = threading.Thread(target=expire)
    thread.start()
    with faults(own_hub, tile_seconds=1.5):
        outcome = outcome_of(asked)
    thread.join()
    rows.append(("all tokens made invalid after the first EOPatch", 1, len(requests_of(asked)), outcome))
    assert re.search(SURVIVED, outcome)


def test_an_account_that_is_used_up_is_told_before_anything_is_bought(
    asked: LandCover, own_hub: LocalHub, rows: list[Row]
) -> None:
    set_balance(own_hub, 10)
    try:
        outcome = outcome_of(asked)
    finally:
        set_balance(own_hub, None)
    rows.append(("account with 10 PU", 1, len(requests_of(asked)), outcome))
    assert outcome.startswith("Failed: ")
    assert requests_of(asked) == []


def changed(parameters: LandCover, **changes: dict[str, Any]) -> LandCover:
    content = parameters.model_dump(mode="json")
    return LandCover.model_validate(content | {part: content[part] | change for part, change in changes.items()})


def outcome_of(parameters: LandCover) -> str:
    """The run's final state and message, without its path and ids."""
    state = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields}, return_state=True)
    said = " ".join(f"{state.name}: {state.message}".split()).partition(" limits.min_success asks")[0]
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "R", said.replace("Flow run encountered an exception: ", ""))


def together(faults: Iterable[Fields]) -> Fields:
    """All faults at once: lists one after the other, the database's in one."""
    found: Fields = {}
    for name, value in ((name, value) for fields in faults for name, value in fields.items()):
        match value:
            case list():
                found[name] = [*found.get(name, []), *value]
            case dict():
                found[name] = found.get(name, {}) | value
            case _:
                found[name] = value
    return found


def times_met(fields: Fields, log: str, store: RecordingProxy) -> int | None:
    """How many requests an API's fault has happened to, or torn copies were read; None where the outcome tells."""
    if "torn_uploads" in fields.get("database", {}):
        copies = [seen for seen in store.exchanges if seen.status == 200 and is_database(seen.target)]
        return sum(is_torn(seen.response_body) for seen in copies)
    if "api" not in fields:
        return None
    (fault,) = (ApiFault.model_validate(one) for one in fields["api"])
    return log.count(f"Fault of a request to {fault.operation}: {fault.model_dump_json(exclude_defaults=True)}\n")


def is_database(target: str) -> bool:
    return re.search(r"/execution-[^/]+\.sqlite$", target.partition("?")[0]) is not None


def is_torn(content: bytes) -> bool:
    """Whether a copy of the database is shorter than its header says (SQLite, "Database File Format", 1.3)."""
    page_size, pages = int.from_bytes(content[16:18], "big"), int.from_bytes(content[28:32], "big")
    return 0 < len(content) < page_size * pages
