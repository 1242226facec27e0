"""What people see of a run: its log, artifacts and events, as Prefect's server has them."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import geopandas as gpd
import pytest
import shapely
import yaml
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log, State
from prefect.events.schemas.automations import AutomationCore

from flows.events import emit
from flows.follow import CONVERSION, LABELLING, PROCESSING
from flows.land_cover import land_cover
from flows.order import prepare
from flows.parameters import LandCover
from flows.progress import Progress
from flows.watching import SAME_NOTE_SECONDS, Story, pace
from localhub.server import LocalHub
from tasks.reasons import Failures
from tests.conftest import ROOT
from tests.flows.conftest import EXTENT
from tests.flows.test_land_cover import RED
from tests.localhub.watching import faults

LINES_ON_A_SCREEN = 40


@pytest.fixture(scope="session")
def hundred_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoPackage with tiles h00 to h99, 10 x 10 pixels of 20 m, in a square."""
    corners = [(EXTENT.west + 1000 + 200 * i, EXTENT.north - 1000 - 200 * j) for j in range(10) for i in range(10)]
    boxes = [shapely.box(x, y - 200, x + 200, y) for x, y in corners]
    names = [f"h{number:02d}" for number in range(100)]
    path = tmp_path_factory.mktemp("tiles") / "hundred.gpkg"
    columns = {"id": range(100), "identifier": names, "resolution": [20.0] * 100}
    gpd.GeoDataFrame(columns, geometry=boxes, crs=32633).to_file(path, layer="tiles", engine="pyogrio")
    return path


@pytest.mark.usefixtures("prefect_server")
def test_the_log_of_a_healthy_run_of_100_tiles_fits_on_a_screen_and_tells_the_story(
    parameters: LandCover, hundred_tiles: Path, tmp_path: Path
):
    script = tmp_path / "red.js"
    script.write_text(RED)
    state = run(
        changed(
            parameters,
            area={"name": "Hundred"},
            tiling={"geopackage": str(hundred_tiles)},
            imagery={"evalscript": str(script)},
            reference=None,
        )
    )
    assert state.is_completed()
    lines = log_of(state, "Finished in state Completed")
    assert len(lines) <= LINES_ON_A_SCREEN
    story = "\n".join(lines)
    milestones = [
        r"Plan 100/100: 100 new, ",
        r"created",
        r"\(binding\)",
        r"Request: \d+ of 100 tiles processed, ",
        r"of 100 tiles done",
        r"100 of 100 tiles done; ",
        r"Results: ",
        r"100 of 100 EOPatches are ready\. Request ",
    ]
    found = [re.search(pattern, story) for pattern in milestones]
    places = [match.start() for match in found if match]
    assert len(places) == len(milestones), story
    assert places == sorted(places)
    assert "tiles a minute" in story
    assert "h00" not in story
    assert Artifact.get("hundred-progress").data == 100
    assert [row["state"] for row in json.loads(str(Artifact.get("hundred-tiles").data))] == ["converted"] * 100
    done = event_of(state, "eopatch-flow.done")
    assert done["payload"] | {"tiles": 100, "ready": 100} == done["payload"]


@pytest.mark.usefixtures("prefect_server")
def test_tiles_that_fail_alike_are_one_line_one_event_and_one_row(parameters: LandCover, small_hub: LocalHub):
    broken = changed(parameters, area={"name": "Broken"}, limits={"min_success": 0.25})
    with faults(small_hub, tiles=[{"kind": "fatal", "tile": f"t{number}"} for number in (1, 2, 3)]):
        state = run(broken)
    assert state.is_completed()
    lines = log_of(state, "Finished in state Completed")
    told = [line for line in lines if " failed: " in line]
    assert [line.partition(": ")[0] for line in told] == ["Tile t1 failed"] * 2  # when ordered, and when ordered again
    grouped = [line for line in lines if line.startswith("Failed, 3 tiles (t1, t2, t3): ")]
    assert len(grouped) == 1
    failed = event_of(state, "eopatch-flow.tile.failed")
    assert failed["resource"]["prefect.resource.id"] == "eopatch-flow.area.broken"
    assert "fails on demand" in failed["payload"]["reason"]
    roles = {(one["prefect.resource.role"], one.get("prefect.resource.name")) for one in failed["related"]}
    assert ("flow", "land-cover") in roles
    assert event_of(state, "eopatch-flow.plan.ready")["payload"]["tiles"] == 4
    assert "| 3 | t1, t2, t3 |" in str(Artifact.get("broken-summary").data)


@pytest.mark.usefixtures("prefect_server")
def test_a_price_above_the_cap_is_an_event(parameters: LandCover):
    state = run(changed(parameters, area={"name": "Dear"}, limits={"max_pu": 1}))
    assert state.is_failed()
    event = event_of(state, "eopatch-flow.budget.exceeded")
    assert "limits.max_pu is 1" in event["payload"]["message"]
    lines = log_of(state, "Finished in state Failed")
    assert not [line for line in lines if "Traceback" in line]
    assert [line for line in lines if "limits.max_pu is 1" in line and "Finished" not in line] == [
        str(event["payload"]["message"])
    ]


@pytest.mark.usefixtures("prefect_server")
def test_prefect_takes_the_example_automations_and_the_end_of_a_run_starts_the_training(parameters: LandCover):
    examples = yaml.safe_load((ROOT / "deployments/automations.yaml").read_text())["automations"]
    order = prepare(changed(parameters, area={"name": "Trained"}))

    @flow
    def train(eopatches: str) -> str:
        return eopatches

    @flow(name="land-cover")
    def ends() -> None:
        emit(order, "done", message="all well")

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(train), name="train")
        for example in examples:
            [action] = example["actions"]
            action |= {"deployment_id": str(deployment)} if "deployment_id" in action else {}
            client.create_automation(AutomationCore.model_validate(example))
        ends()
        of_training = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))

        def started() -> list[FlowRun]:
            return client.read_flow_runs(deployment_filter=of_training)

        until(started)
        assert [run.parameters for run in started()] == [{"eopatches": f"{order.folder}/eopatches"}]


def test_the_story_tells_of_tiles_in_tenths_and_of_notes_once() -> None:
    now = 0.0
    story = Story(LABELLING, clock=lambda: now)
    lines = []
    for done in range(1, 1001):
        now = done * 0.6
        story.line(Progress(PROCESSING, done + 1, 1000))
        story.line(Progress(CONVERSION, done, 1000))
        lines.append(story.line(Progress(LABELLING, done, 1000)))
    told = [line for line in lines if line]
    assert len(told) == 10
    assert told[4].startswith("500 of 1,000 tiles done, 501 processed; 100 tiles a minute, about")
    notes = [story.line(Progress(PROCESSING, 1, 9, f"PROCESSING, {pu} PU so far")) for pu in range(50)]
    assert [bool(note) for note in notes] == [True] + [False] * 49
    now += SAME_NOTE_SECONDS
    assert story.line(Progress(PROCESSING, 1, 9, "PROCESSING, 99 PU so far")).endswith("PROCESSING, 99 PU so far")


def test_the_time_in_which_a_person_thinks_about_the_price_is_no_part_of_the_pace() -> None:
    now = 0.0
    story = Story(CONVERSION, clock=lambda: now)
    now = 3600.0
    story.line(Progress(PROCESSING, 0, 10))
    now += 60
    assert story.line(Progress(CONVERSION, 6, 10)) == "6 of 10 tiles done; 6 tiles a minute, about 40 s left"


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 9, 5, "0 tiles a minute"),
        (5, 10, 10, "30 tiles a minute, about 10 s left"),
        (1, 61, 60, "1 tiles a minute, about 60 min left"),
        (1, 601, 60, "1 tiles a minute, about 10.0 h left"),
        (10, 10, 60, "10 tiles a minute"),
    ],
)
def test_the_pace_is_told_in_units_that_fit(done: int, total: int, seconds: float, text: str) -> None:
    assert pace(done, total, seconds) == text


def test_ten_thousand_failures_of_one_kind_are_five_lines() -> None:
    failures = Failures()
    lines = [failures.add(f"t{number:05d}", f"t{number:05d}/B02.tif is missing") for number in range(10_000)]
    told = [line for line in lines if line]
    assert told[0] == "Tile t00000 failed: t00000/B02.tif is missing"
    assert told[-1] == "10,000 tiles failed so far for this reason: …/B02.tif is missing"
    assert len(told) == 5
    assert failures.lines() == [
        "Failed, 10,000 tiles (t00000, t00001, t00002, t00003, t00004 and 9,995 more): …/B02.tif is missing"
    ]


def changed(parameters: LandCover, **parts: dict[str, Any] | None) -> LandCover:
    content = parameters.model_dump(mode="json")
    for name, change in parts.items():
        content[name] = change if name in {"area", "tiling", "reference"} else content[name] | (change or {})
    return LandCover.model_validate(content)


def run(parameters: LandCover) -> State[Any]:
    return land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields}, return_state=True)


def flow_run_id(state: State[Any]) -> UUID:
    found = state.state_details.flow_run_id
    assert found is not None
    return found


def log_of(state: State[Any], last: str) -> list[str]:
    """All lines of a run's log, in the order of time, once the server has the last one."""
    run_filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id(state)]))
    with get_client(sync_client=True) as client:

        def read() -> list[Log]:
            return client.read_logs(run_filter, limit=200)

        until(lambda: any(last in one.message and one.task_run_id is None for one in read()))
        return [one.message for one in sorted(read(), key=lambda one: one.timestamp)]


def until(look: Callable[[], object], seconds: float = 30) -> None:
    """Look until there is something; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.2)


def event_of(state: State[Any], name: str) -> dict[str, Any]:
    """The first event of that name that is about a run."""
    related = {"id": [f"prefect.flow-run.{flow_run_id(state)}"]}
    with get_client(sync_client=True) as client:

        def read() -> list[dict[str, Any]]:
            body = {"filter": {"event": {"name": [name]}, "related": related, "order": "ASC"}, "limit": 50}
            found: list[dict[str, Any]] = client.request("POST", "/events/filter", json=body).json()["events"]
            return found

        until(read)
        return read()[0]
