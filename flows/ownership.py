"""Whose work it is: one run owns it at a time, and what a run has started it stops when it is cancelled.

A run that is cancelled in Prefect's UI gets SIGTERM, which Prefect turns into :class:`TerminationSignal` in the main
thread, wherever that is: in a poll, or waiting for a conversion. SIGTERM from elsewhere comes the same way, and Ctrl-C
as KeyboardInterrupt. The request is stopped on the way out, while the lease is still held. A killed process stops
nothing: the next run takes the request up, or the flow ``stop-orphans`` stops it.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from flows.order import Order
from flows.parameters import LandCover, Run
from flows.progress import tell
from tasks.batch import RESTART, restartable_from, start, stop_job
from tasks.errors import BudgetExceeded, EopatchFlowError, NotYet, RunTimedOut
from tasks.lease import LEASE_SECONDS, Holding, held, new_lease, read_lease
from tasks.plan import slug
from tasks.service import Job, Service, connect
from tasks.storage import open_filesystem

LEASE = "lease.json"
STAGE = "Ownership"
ABORTS = (KeyboardInterrupt, TerminationSignal, RunTimedOut)
"""What ends a run from outside; ``run.on_abort`` says what becomes of its request."""
STOP_ANSWER_SECONDS = 10.0
"""How long one answer to a stop may take: Prefect kills the process after 30 s."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PAUSE_FACTOR = 5.0, 60.0, 1.5
"""Pauses between two tries to start a request that was stopped lately."""


class Ownership:
    """What the one run may do that has the lease of the work. Made by :func:`owned`.

    Args:
        order: what was asked for.
        holding: the lease.
        deadline: of the whole run, by the monotonic clock; None for none.
    """

    def __init__(self, order: Order, holding: Holding, deadline: float | None) -> None:
        self._order = order
        self._holding = holding
        self._deadline = deadline

    def check(self) -> None:
        """Check that the work is still ours and that there is time left; cheap.

        Raises:
            LeaseLost: another run may have it.
            RunTimedOut: the run has lasted as long as it may.
        """
        self._holding.check()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise RunTimedOut(
                f"The run has lasted {self._run.timeout_hours:g} hours, as long as run.timeout_hours allows."
            )

    def renew(self) -> None:
        """Make sure that the work is ours for the whole time of a lease; errors as in :meth:`check`."""
        self.check()
        self._holding.renew()

    @property
    def noted_request(self) -> str:
        """Id of the request that does the work, of an earlier run as well; empty where none is known."""
        return self._holding.lease.request_id

    def note_request(self, job: Job) -> None:
        """Say in the lease which request does the work."""
        self._holding.note_request(job.id)

    def start(self, job: Job) -> Job:
        """Start an analysed or stopped request, which costs from here on; one that was stopped lately is waited for.

        Raises:
            NotYet: it cannot be started within ``run.patience_minutes``; the message says from when on.
        """
        self.renew()
        told, pause = "", FIRST_PAUSE_SECONDS
        while True:
            job = start(job, self._service)
            moment = restartable_from(job)
            if moment is None:
                return job
            if min(moment - datetime.now(UTC), RESTART) > timedelta(minutes=self._run.patience_minutes):
                raise NotYet(f"{_too_early_text(job, moment)} Run again then; what was delivered is kept.")
            if not told:
                told = f"{_too_early_text(job, moment)} Waiting."
                tell(STAGE, note=told)
            time.sleep(pause)
            pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE_SECONDS)
            self.check()

    @contextmanager
    def guarded(self, job: Job) -> Iterator[None]:
        """Within the block the request costs: when the run is aborted, stop the request or leave it, as was asked for.

        A request that was at work when this run came, and that no earlier run in this place had started, may be
        another one's: it is left. When the money is used up it is stopped in any case.
        """
        try:
            yield
        except BudgetExceeded:
            self._stop(job)
            raise
        except ABORTS as abort:
            text = self._end(job)
            if isinstance(abort, RunTimedOut):
                raise RunTimedOut(f"{abort} {text}") from abort
            abort.add_note(text)
            raise

    @property
    def _run(self) -> Run:
        return self._order.parameters.run

    @property
    def _service(self) -> Service:
        return self._order.parameters.service

    def _is_ours(self, job: Job) -> bool:
        """Whether this run has started the request, or an earlier one in this place, whose lease tells of the work."""
        before = self._holding.before
        ours = before is not None and before.lease.fingerprint == self._order.work.fingerprint
        return ours or not job.under_way

    def _end(self, job: Job) -> str:
        """Do with the request what was asked for; what was done, and how to go on."""
        if self._run.on_abort == "leave":
            text = f"Request {job.id} goes on and costs, as run.on_abort asks; run again to take it up."
        elif not self._is_ours(job):
            text = (
                f"Request {job.id} goes on: it was at work already, and no earlier run in {self._order.folder} had "
                "started it, so that another run may need it. Stop it in the service's dashboard if none does."
            )
        else:
            text = self._stop(job)
        tell(STAGE, 1, 1, text)
        return text

    def _stop(self, job: Job) -> str:
        with _undisturbed():
            try:
                return stopped_text(stop_job(connect(self._service, timeout_seconds=STOP_ANSWER_SECONDS), job))
            except EopatchFlowError as error:
                return (
                    f"Whether request {job.id} was stopped is not known ({error}). Look at it in the service's "
                    "dashboard: if it goes on, it costs; run again to take it up."
                )


@contextmanager
def owned(order: Order) -> Iterator[Ownership]:
    """Own the work within the block: no other run does anything for it at this destination.

    Raises:
        LeaseHeld: another run has it, still after ``run.wait_minutes``; the message says which.
        OSError: the destination cannot be read or written.
    """
    parameters = order.parameters
    run = parameters.run
    deadline = None if run.timeout_hours is None else time.monotonic() + run.timeout_hours * 3600
    files, path = open_filesystem(f"{order.folder}/{LEASE}", parameters.storage)
    lease = new_lease(
        order.work.fingerprint,
        parameters.service.base_url,
        run_id=str(runtime.flow_run.id or ""),
        run_name=str(runtime.flow_run.name or ""),
        deployment=str(runtime.deployment.name or ""),
        on_abort=run.on_abort,
    )
    with held(files, path, lease, wait_seconds=run.wait_minutes * 60, tell=_tell) as holding:
        yield Ownership(order, holding, deadline)


def stop_what_was_left(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the request of a run that was cancelled and killed before it could do so itself: Prefect's second line.

    Prefect's runner calls it after the end of the process, with the parameters as JSON. A run that has ended in an
    orderly way has released its lease, and there is nothing to do.
    """
    del state
    parameters = LandCover.model_validate(flow_run.parameters)
    folder = folder_of(parameters, (flow_run.expected_start_time or datetime.now(UTC)).astimezone(UTC).date())
    files, path = open_filesystem(f"{folder}/{LEASE}", parameters.storage)
    found = read_lease(files, path)
    if (
        found is None
        or found.lease.run_id != str(flow_run.id)
        or found.lease.released
        or found.lease.on_abort == "leave"
    ):
        return
    logger = flow_run_logger(flow_run, flow)
    lease = new_lease(found.lease.fingerprint, found.lease.base_url, run_id=str(flow_run.id), run_name=flow_run.name)
    with held(files, path, lease, wait_seconds=LEASE_SECONDS + 10, tell=logger.warning) as holding:
        if holding.lease.request_id:
            client = connect(parameters.service)
            logger.warning(stopped_text(stop_job(client, Job(holding.lease.request_id, "PROCESSING"))))


def folder_of(parameters: LandCover, day: date) -> str:
    """Where the results of a run with these parameters go, on a day."""
    return f"{parameters.storage.destination}/{slug(parameters.area, parameters.period.on(day))}"


def _tell(text: str) -> None:
    tell(STAGE, note=text)


def _too_early_text(job: Job, moment: datetime) -> str:
    state = "was stopped" if job.ended else "was told to stop"
    return f"Request {job.id} {state} at {job.acted_at:%H:%M} UTC; it can be started again from {moment:%H:%M} UTC."


def stopped_text(job: Job) -> str:
    """Say how a request was ended, and how to go on."""
    cost = f" after {job.cost_pu:,.1f} PU" if job.cost_pu else ""
    moment = restartable_from(job)
    if moment is None:
        return f"Request {job.id} is {job.status}{cost}; run again to take up what it has delivered."
    return (
        f"Request {job.id} was stopped{cost}; tiles in the middle of it are finished and charged. What was delivered "
        f"is kept: run again from {moment:%Y-%m-%d %H:%M} UTC on, when the request can be started again."
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no further SIGTERM interrupt what is to be done; a second Ctrl-C still does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
