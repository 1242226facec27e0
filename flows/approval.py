"""The approval of a price by a person, after the analysis and before anything is bought.

`how_to_ask` decides; `approve` looks at what the run is, asks, and remembers the answer beside the data, so that a run
that was killed need not ask again for the same request.
"""

import getpass
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.states import Running
from pydantic import ConfigDict, Field, create_model

from flows.order import Order
from flows.planning import announce, binding_plan, request_text
from flows.progress import ask
from tasks.batch import Limits, check_budget
from tasks.errors import BudgetExceeded
from tasks.pricing import Range
from tasks.report import Plan
from tasks.service import Job
from tasks.storage import Storage, read_file, write_file
from tasks.tiles import Manifest, read_manifest

APPROVALS = "/report/approvals.json"
"""Where approvals are kept, below the folder of results: a list of `Approved`."""
LOOK_SECONDS = 5
"""Pause between two looks at whether a person has answered in the UI."""

Asking = Literal["no need", "pause in UI", "ask on terminal", "refuse"]


@dataclass(frozen=True, slots=True)
class Situation:
    """Whom a run can ask.

    Attributes:
        deployed: it is the run of a deployment, which people watch in Prefect's UI.
        unattended: a schedule, an automation or another flow has started it; nobody waits for it.
        terminal: a person sits before it.
    """

    deployed: bool = False
    unattended: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked.

    Attributes:
        request_id: the analysed request.
        title: area and period.
        tiles: number of tiles.
        price: processing units.
        limits: what may be spent unasked.
        folder: where the results go.
    """

    request_id: str
    title: str
    tiles: int
    price: Range
    limits: Limits
    folder: str


@dataclass(frozen=True, slots=True)
class Approved:
    """An approval as it is kept beside the data.

    Attributes:
        request_id: what was approved.
        price_pu: what it may cost, as the person saw it.
        cap_pu: what it may cost at most.
        by: who approved: a name given in the form, or the user of the terminal.
        how: where.
        flow_run: id of the run that asked.
        at: when, UTC.
    """

    request_id: str
    price_pu: float
    cap_pu: float
    by: str
    how: str
    flow_run: str
    at: str


class Approval(RunInput):
    """The form of a paused run."""

    model_config = ConfigDict(title="Approval", extra="forbid")

    approve: bool = Field(
        default=False, title="Buy it", description="Without this the run ends, and nothing is bought."
    )
    by: str = Field(default="", title="Your name", description="Is kept beside the data, with the price and the time.")
    cap_pu: float = Field(title="At most (PU)", description="Up to this, the same request is not asked about again.")


def how_to_ask(price_pu: float, ask_above_pu: float | None, approved_pu: float, situation: Situation) -> Asking:
    """Decide how a price is approved.

    Args:
        price_pu: what may have to be paid.
        ask_above_pu: up to here nobody is asked; None for never.
        approved_pu: what has been approved for the same request before.
        situation: whom the run can ask.
    """
    if ask_above_pu is None or price_pu <= max(ask_above_pu, approved_pu):
        return "no need"
    if situation.unattended:
        return "refuse"
    if situation.deployed:
        return "pause in UI"
    return "ask on terminal" if situation.terminal else "refuse"


def agree(order: Order, plan: Plan, job: Job) -> tuple[Manifest, Plan]:
    """Read what the analysis found, plan anew for it, and have its price approved while nothing has been started.

    Raises:
        BudgetExceeded: the price of the manifest's tiles is above ``limits.max_pu``, or nobody approves it.
    """
    manifest = read_manifest(order.parameters.storage, job.id)
    if not job.under_way:
        plan = replace(binding_plan(order, plan, manifest.tiles), request=request_text(job))
        announce(order, plan)
        price, limits = plan.price_pu, order.parameters.limits
        check_budget(price.high, len(manifest.tiles), limits)
        question = Question(job.id, order.title, len(manifest.tiles), price, limits, order.folder)
        approve(question, order.parameters.storage)
    return manifest, plan


def approve(question: Question, storage: Storage) -> None:
    """Have a price approved, if it has to be.

    Raises:
        BudgetExceeded: it is not.
    """
    earlier = earlier_approvals(question.folder, storage)
    approved = approved_pu(earlier, question.request_id)
    context = FlowRunContext.get()
    here = situation_of(context.flow_run if context else None, terminal=_has_terminal())
    way = how_to_ask(question.price.high, question.limits.ask_above_pu, approved, here)
    if way == "pause in UI":
        _remember(question.folder, storage, [*earlier, _pause(question)])
    elif way == "ask on terminal":
        _remember(question.folder, storage, [*earlier, _ask(question)])
    elif way == "refuse":
        raise BudgetExceeded(refusal(question))


def approved_pu(approvals: Iterable[Approved], request_id: str) -> float:
    """Give the highest price that was approved for a request; 0 for none."""
    return max((one.cap_pu for one in approvals if one.request_id == request_id), default=0.0)


def situation_of(run: FlowRun | None, *, terminal: bool) -> Situation:
    """Tell whom a run can ask.

    Args:
        run: as Prefect's server knows it; None outside of a run.
        terminal: whether a person sits before it.
    """
    if run is None:
        return Situation(terminal=terminal)
    by_machine = run.created_by is not None and run.created_by.type in {"SCHEDULE", "AUTOMATION", "DEPLOYMENT"}
    return Situation(
        deployed=run.deployment_id is not None,
        unattended=run.auto_scheduled or by_machine or run.parent_task_run_id is not None,
        terminal=terminal,
    )


def question_text(question: Question) -> str:
    """Say in markdown what is to be approved."""
    price, limits = question.price, question.limits
    return (
        f"**{question.title}**: {question.tiles:,} tiles would be bought.\n\n"
        "| | processing units (PU) |\n|---|---:|\n"
        f"| at least | {math.floor(price.low):,} |\n"
        f"| likely | {round(price.likely):,} |\n"
        f"| **at most** | **{math.ceil(price.high):,}** |\n"
        f"| asked above | {limits.ask_above_pu:,.10g} |\n"
        f"| never above | {limits.max_pu:,.10g} |\n\n"
        f"Request `{question.request_id}` has been analysed, which is free. Results go to:\n\n`{question.folder}`"
    )


def refusal(question: Question) -> str:
    """Say why a run ends that cannot ask."""
    return (
        f"{_offer(question)}, more than limits.ask_above_pu of {question.limits.ask_above_pu:,.10g}, and this run can "
        "ask nobody: it was started by a schedule, an automation or another flow, or has no terminal. Nothing was "
        "bought. Run it by hand to approve it, in the UI or on a terminal, raise limits.ask_above_pu, or ask for less."
    )


def _offer(question: Question) -> str:
    return f"{question.tiles:,} tiles ({question.title}) may cost up to {math.ceil(question.price.high):,} PU"


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _pause(question: Question) -> Approved:
    """Pause the run until a person has filled in the form."""
    hours = question.limits.approval_hours
    try:
        answer = pause_flow_run(
            wait_for_input=_form(question),
            timeout=math.ceil(hours * 3600),
            poll_interval=LOOK_SECONDS,
            key=f"approval-{uuid4().hex}",  # a run that is started again after it was killed asks anew
        )
    except FlowPauseTimeout as error:
        _wake()
        raise BudgetExceeded(
            f"{_offer(question)}, which nobody approved within {hours:g} hours; nothing was bought."
        ) from error
    if not answer.approve:
        raise BudgetExceeded(
            f"{_offer(question)}, which {answer.by or 'somebody'} did not approve; nothing was bought."
        )
    return _approved(question, answer.cap_pu, answer.by, "Prefect UI")


def _form(question: Question) -> type[Approval]:
    """The form with its limits, which the server enforces: at least the price, at most the cap."""
    least, most = float(math.ceil(question.price.high)), question.limits.max_pu
    told = Approval.model_fields["cap_pu"]
    cap: Any = Field(
        default=min(least, most), title=told.title, description=told.description, ge=question.price.high, le=most
    )
    form = create_model("Approval", __base__=Approval, cap_pu=(float, cap))
    return form.with_initial_data(description=question_text(question))


def _wake() -> None:
    """Have a run that has paused for too long running again: Prefect's server puts its own message in place of ours."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, Running(), force=True)


def _ask(question: Question) -> Approved:
    price = question.price
    offer = f"{_offer(question)} (likely {round(price.likely):,}). Buy them?"
    if not ask(offer):
        raise BudgetExceeded(f"{_offer(question)}, which was not approved; nothing was bought.")
    return _approved(question, price.high, getpass.getuser(), "terminal")


def _approved(question: Question, cap_pu: float, by: str, how: str) -> Approved:
    context = FlowRunContext.get()
    run = str(context.flow_run.id) if context and context.flow_run else ""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Approved(question.request_id, question.price.high, cap_pu, by, how, run, at)


def earlier_approvals(folder: str, storage: Storage) -> list[Approved]:
    """Approvals of earlier runs; none when the file is missing, or is not what a run writes."""
    try:
        return [Approved(**one) for one in json.loads(read_file(folder + APPROVALS, storage))]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def _remember(folder: str, storage: Storage, approvals: Iterable[Approved]) -> None:
    content = json.dumps([asdict(one) for one in approvals], indent=2)
    write_file(folder + APPROVALS, content.encode(), storage)
