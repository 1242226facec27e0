"""Approval of a price: who is asked, by a real Prefect server, on a real terminal; and what is remembered."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import CreatedBy, FlowRun
from prefect.flow_engine import run_flow
from prefect.utilities.callables import parameter_schema

from flows import approval
from flows.approval import Approved, Question, Situation, approve, approved_pu, how_to_ask, question_text, situation_of
from flows.land_cover import land_cover
from flows.parameters import LandCover
from tasks.batch import Limits
from tasks.errors import BudgetExceeded
from tasks.ledger import TileState
from tasks.pricing import Range
from tasks.storage import Storage

NOBODY, UI, TERMINAL = Situation(), Situation(deployed=True), Situation(terminal=True)
UNATTENDED = Situation(deployed=True, unattended=True, terminal=True)


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:  # noqa: ARG001 - needed to be there
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def question(tmp_path: Path) -> Question:
    limits = Limits(max_pu=200, ask_above_pu=100)
    return Question("r1", "Small, 2019-01-01 to 2019-03-10", 4, Range(90.2, 120, 145.3), limits, str(tmp_path))


@pytest.mark.parametrize(
    ("price", "above", "approved", "situation", "way"),
    [
        (500.0, None, 0.0, UNATTENDED, "no need"),
        (100.0, 100.0, 0.0, UNATTENDED, "no need"),
        (100.1, 100.0, 0.0, UNATTENDED, "refuse"),
        (100.1, 100.0, 0.0, UI, "pause in UI"),
        (100.1, 100.0, 0.0, replace(UI, terminal=True), "pause in UI"),
        (100.1, 100.0, 0.0, TERMINAL, "ask on terminal"),
        (100.1, 100.0, 0.0, NOBODY, "refuse"),
        (0.1, 0.0, 0.0, NOBODY, "refuse"),
        (0.0, 0.0, 0.0, NOBODY, "no need"),
        (150.0, 100.0, 150.0, UNATTENDED, "no need"),
        (150.1, 100.0, 150.0, UNATTENDED, "refuse"),
        (150.1, 100.0, 150.0, UI, "pause in UI"),
        (90.0, 100.0, 50.0, NOBODY, "no need"),
    ],
)
def test_who_is_asked_depends_on_price_limit_earlier_approval_and_situation(
    price: float, above: float | None, approved: float, situation: Situation, way: str
):
    assert how_to_ask(price, above, approved, situation) == way


def test_an_approval_counts_for_its_request_alone():
    once = Approved("r1", 100, 150, "Ada", "terminal", "", "2026-01-01T00:00:00+00:00")
    approvals = [once, replace(once, cap_pu=120), replace(once, request_id="r2", cap_pu=999)]
    assert approved_pu(approvals, "r1") == 150
    assert approved_pu(approvals, "r3") == 0


def test_the_question_has_price_tiles_limits_and_place(question: Question):
    text = question_text(question)
    for part in ("Small, 2019-01-01 to 2019-03-10", "4 tiles", "90 |", "120 |", "**146**", "100 |", "200 |", "`r1`"):
        assert part in text
    assert question.folder in text


def test_a_limit_to_ask_above_the_cap_makes_no_sense():
    with pytest.raises(ValueError, match="ask_above_pu is 300, but above max_pu of 200 all is refused"):
        Limits(max_pu=200, ask_above_pu=300)


# ---- in the UI ----


@flow
def asking(question: dict[str, Any]) -> None:
    """Only asks."""
    told = Question(**question | {"price": Range(**question["price"]), "limits": Limits(**question["limits"])})
    approve(told, Storage())


def test_a_person_approves_in_the_ui_and_is_remembered(
    client: SyncPrefectClient, question: Question, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 1)
    with answered(client, run := deployed(client, asking, question), {"approve": True, "by": "Ada", "cap_pu": 150}):
        run_flow(asking, flow_run=run)
    kept = json.loads((Path(question.folder) / "report/approvals.json").read_text())
    assert [(one["request_id"], one["by"], one["cap_pu"], one["flow_run"]) for one in kept] == [
        ("r1", "Ada", 150.0, str(run.id))
    ]
    run_flow(asking, flow_run=automated(client, asking, question))  # need not ask: it would be refused


def test_the_form_in_the_ui_tells_the_price_and_takes_no_cap_outside_of_price_and_limit(
    client: SyncPrefectClient, question: Question, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 1)
    run = deployed(client, asking, question)
    refused: list[str] = []

    def answer() -> None:
        keys = paused_keys(client, run.id)
        assert json.loads(client.read_flow_run_input(run.id, keys["description"])) == question_text(question)
        outside = [{"approve": True, "cap_pu": cap} for cap in (145, 201)]
        refused.extend(str(client.resume_flow_run(run.id, run_input=answer).details) for answer in outside)
        client.resume_flow_run(run.id, run_input={"approve": True, "cap_pu": 146})

    with meanwhile(answer):
        run_flow(asking, flow_run=run)
    assert "145 is less than the minimum of 145.3" in refused[0]
    assert "201 is greater than the maximum of 200" in refused[1]


def test_a_person_who_does_not_approve_ends_the_run(
    client: SyncPrefectClient, question: Question, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 1)
    with (
        pytest.raises(BudgetExceeded, match="which Ada did not approve; nothing was bought"),
        answered(client, run := deployed(client, asking, question), {"by": "Ada", "cap_pu": 150}),
    ):
        run_flow(asking, flow_run=run)
    assert not (Path(question.folder) / "report/approvals.json").exists()


def test_a_run_that_nobody_answers_ends_with_its_own_words(
    client: SyncPrefectClient, question: Question, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 1)
    hasty = replace(question, limits=question.limits.model_copy(update={"approval_hours": 1 / 3600}))
    run = deployed(client, asking, hasty)
    with pytest.raises(BudgetExceeded, match="which nobody approved within"):
        run_flow(asking, flow_run=run)
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_failed()
    assert "which nobody approved within" in str(state.message)


def test_a_run_of_an_automation_is_refused_at_once(client: SyncPrefectClient, question: Question):
    run = automated(client, asking, question)
    begin = time.monotonic()
    with pytest.raises(BudgetExceeded, match=r"may cost up to 146 PU, more than limits.ask_above_pu of 100"):
        run_flow(asking, flow_run=run)
    assert "Paused" not in [state.name for state in client.read_flow_run_states(run.id)]
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("kind", ["SCHEDULE", "AUTOMATION", "DEPLOYMENT"])
def test_a_run_that_a_machine_has_created_is_unattended(kind: Any):
    by = CreatedBy(id=uuid4(), type=kind, display_value="CronSchedule")
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4())
    assert situation_of(run, terminal=False) == UI
    for machine in (run.model_copy(update={"created_by": by}), run.model_copy(update={"auto_scheduled": True})):
        assert situation_of(machine, terminal=True) == UNATTENDED


def test_a_run_of_a_schedule_is_unattended(client: SyncPrefectClient, question: Question):
    deployment = deployment_of(client, asking, {"question": as_json(question)})
    client._client.post(f"/deployments/{deployment}/schedules", json=[{"schedule": {"interval": 3600}}])
    client._client.post(f"/deployments/{deployment}/schedule", json={"max_runs": 2}).raise_for_status()
    wanted = {"deployments": {"id": {"any_": [str(deployment)]}}}
    runs = [
        client.read_flow_run(UUID(run["id"])) for run in client._client.post("/flow_runs/filter", json=wanted).json()
    ]
    assert {situation_of(run, terminal=True) for run in runs} == {UNATTENDED}
    client.delete_deployment(deployment)


def test_a_run_within_another_flow_is_refused(prefect_server: None, question: Question):  # noqa: ARG001
    @flow
    def outer() -> None:
        asking(as_json(question))

    with pytest.raises(BudgetExceeded, match="another flow"):
        outer()


def test_the_whole_flow_pauses_before_it_buys_and_goes_on_when_it_is_approved(
    client: SyncPrefectClient, parameters: LandCover, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 1)
    limits = parameters.limits.model_copy(update={"ask_above_pu": 1.0})
    content = parameters.model_copy(update={"limits": limits}).model_dump(mode="json")
    run = created(client, land_cover, content, enforced=True)
    with answered(client, run, {"approve": True, "by": "Ada", "cap_pu": 500}):
        summary = cast(Any, run_flow(land_cover, flow_run=run))
    assert {record.state for record in summary.records} == {TileState.LABELLED}
    assert summary.job.cost_pu > 0
    kept = json.loads((Path(summary.folder) / "report/approvals.json").read_text())
    assert (kept[0]["request_id"], kept[0]["cap_pu"]) == (summary.job.id, 500)
    assert client.read_flow_run(run.id).name == "land-cover Small 2019-01-01 to 2019-03-10"


def test_without_a_terminal_nothing_is_started(prefect_server: None, parameters: LandCover):  # noqa: ARG001
    limits = parameters.limits.model_copy(update={"ask_above_pu": 1.0})
    arguments = {name: getattr(parameters, name) for name in LandCover.model_fields} | {"limits": limits}
    with pytest.raises(BudgetExceeded, match=r"or has no terminal\. Nothing was bought"):
        land_cover(**arguments)


# ---- on a terminal ----

PROGRAM = """
import sys
from flows.approval import *
from flows.terminal import watched
from flows.progress import tell
from tasks.storage import Storage
question = Question("r1", "Small", 4, Range(90, 120, 145.3), Limits(ask_above_pu=100), sys.argv[1])
with watched():
    tell("Plan", 4, 4)
    try:
        approve(question, Storage())
        print("APPROVED")
    except BudgetExceeded as error:
        print("REFUSED:", error)
"""


@pytest.mark.parametrize(("typed", "outcome"), [("y\n", "APPROVED"), ("\n", "REFUSED"), ("nay\n", "REFUSED")])
def test_a_person_at_a_terminal_is_asked_below_the_progress(typed: str, outcome: str, tmp_path: Path):
    shown = on_terminal([sys.executable, "-c", PROGRAM, str(tmp_path)], "[y/N]", typed)
    assert "4 tiles (Small) may cost up to 146 PU (likely 120). Buy them? [y/N]" in shown.replace("\r\n", "")
    assert outcome in shown
    file = tmp_path / "report/approvals.json"
    assert file.exists() == (outcome == "APPROVED")
    if file.exists():
        assert json.loads(file.read_text())[0]["how"] == "terminal"


def on_terminal(command: list[str], prompt: str, typed: str) -> str:
    """Run a command on a terminal of its own, and type a line when it has shown the prompt; all that it shows."""
    ours, theirs = pty.openpty()
    wide = os.environ | {"COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=wide) as process:
        os.close(theirs)
        shown = ""
        while chunk := _read(ours):
            shown += chunk
            if typed and prompt in shown:
                os.write(ours, typed.encode())
                typed = ""
        process.wait(30)
    os.close(ours)
    return shown


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # the other side has gone
        return ""


# ---- runs of deployments ----


def as_json(question: Question) -> dict[str, Any]:
    price, limits = question.price, question.limits
    return {
        "request_id": question.request_id,
        "title": question.title,
        "tiles": question.tiles,
        "price": {"low": price.low, "likely": price.likely, "high": price.high},
        "limits": limits.model_dump(),
        "folder": question.folder,
    }


def deployment_of(client: SyncPrefectClient, of: Any, parameters: dict[str, Any], *, enforced: bool = False) -> UUID:
    schema = parameter_schema(of).model_dump_for_openapi()
    return client.create_deployment(
        client.create_flow(of),
        f"test-{uuid4().hex[:8]}",
        parameters=parameters,
        parameter_openapi_schema=schema,
        enforce_parameter_schema=enforced,
    )


def created(client: SyncPrefectClient, of: Any, parameters: dict[str, Any], *, enforced: bool = False) -> FlowRun:
    """A run as a person creates it."""
    deployment = deployment_of(client, of, {}, enforced=enforced)
    return client.create_flow_run_from_deployment(deployment, parameters=parameters)


def deployed(client: SyncPrefectClient, of: Any, question: Question) -> FlowRun:
    return created(client, of, {"question": as_json(question)})


def automated(client: SyncPrefectClient, of: Any, question: Question) -> FlowRun:
    """A run as an automation creates it."""
    deployment = deployment_of(client, of, {"question": as_json(question)})
    name = "V2hlbiBzY2VuZXMgYXJyaXZl"  # base64
    headers = {"prefect-automation-id": str(uuid4()), "prefect-automation-name": name}
    answer = client._client.post(f"/deployments/{deployment}/create_flow_run", json={}, headers=headers)
    return client.read_flow_run(UUID(answer.json()["id"]))


def paused_keys(client: SyncPrefectClient, run_id: UUID) -> dict[str, str]:
    """Wait until the run has paused and its form is there; the names of its parts."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = client.read_flow_run(run_id).state
        if state is not None and state.is_paused():
            keys = state.state_details.run_input_keyset or {}
            answer = client._client.post(f"/flow_runs/{run_id}/input/filter", json={"prefix": keys["description"]})
            if answer.json():
                return keys
        time.sleep(0.2)
    raise AssertionError("the run has not paused")


@contextmanager
def answered(client: SyncPrefectClient, run: FlowRun, answer: dict[str, Any]) -> Iterator[None]:
    """Fill in the form of the run when it has paused."""

    def resume() -> None:
        paused_keys(client, run.id)
        client.resume_flow_run(run.id, run_input=answer)

    with meanwhile(resume):
        yield


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do some work in another thread; its error is raised at the end."""
    errors: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(guarded,))
    thread.start()
    try:
        yield
    finally:
        thread.join(90)
    if errors:
        raise errors[0]
