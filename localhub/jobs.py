"""The state machine of a batch request: which user action is accepted when, and what follows.

Pure: a job and an action in, a changed job out. The edges are those of the documented diagram::

    CREATED ──ANALYSE, START──> ANALYSING ──ok──> ANALYSIS_DONE ──START──> PROCESSING ──> DONE
                                    └──error──> FAILED   │ STOP               │ STOP, out of PU, unhealthy
                                                         └────> STOPPED <─────┘
                                          ANALYSIS_DONE <──START── STOPPED
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from localhub.errors import ApiError
from localhub.faults import Faults


class Status(StrEnum):
    """Status of a batch request, as the API spells it."""

    CREATED = "CREATED"
    ANALYSING = "ANALYSING"
    ANALYSIS_DONE = "ANALYSIS_DONE"
    PROCESSING = "PROCESSING"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class StopReason(StrEnum):
    """Why a batch request is STOPPED, as the API spells it."""

    USER_ACTION = "USER_ACTION"
    OUT_OF_PU = "OUT_OF_PU"
    UNHEALTHY = "UNHEALTHY"


class Action(StrEnum):
    """Last user action on a batch request, as the API spells it."""

    NONE = "NONE"
    ANALYSE = "ANALYSE"
    START = "START"
    STOP = "STOP"


@dataclass(frozen=True, slots=True)
class Job:
    """One batch request."""

    id: str
    account_id: str
    request: dict[str, Any]
    """The body it was created with, without credentials."""
    created: datetime
    updated: datetime
    status: Status = Status.CREATED
    error: str | None = None
    action: Action = Action.NONE
    action_updated: datetime | None = None
    stopped_reason: str | None = None


def act(job: Job, action: Action, now: datetime, restart_seconds: float) -> Job:
    """Return `job` after a user action; raise the API's 400 when its status does not accept it."""
    match action, job.status:
        case (Action.ANALYSE, Status.CREATED) | (Action.START, Status.CREATED):
            return _acted(job, action, now, status=Status.ANALYSING)
        case (Action.ANALYSE, Status.ANALYSING):
            return job
        case (Action.START, Status.ANALYSING | Status.ANALYSIS_DONE) if job.action is not Action.STOP:
            return job if job.action is Action.START else _acted(job, action, now)
        case (Action.START, Status.STOPPED):
            return _restarted(job, now, restart_seconds)
        case (Action.STOP, Status.ANALYSIS_DONE):
            return stopped(_acted(job, action, now), StopReason.USER_ACTION, now)
        case (Action.STOP, Status.ANALYSING | Status.PROCESSING):
            return job if job.action is Action.STOP else _acted(job, action, now)
    raise _refused(job, action, "wait for another status, or create a new request")


def _acted(job: Job, action: Action, now: datetime, *, status: Status | None = None) -> Job:
    return replace(job, status=status or job.status, action=action, action_updated=now, updated=now)


def _restarted(job: Job, now: datetime, restart_seconds: float) -> Job:
    """Continue a stopped job: not within 30 minutes of a stop by its user.

    The documentation ("Stopping the request") sets that time where it speaks of users who stop a request; a job that
    the service has stopped may be started as soon as its cause is gone.
    """
    allowed_from = (job.action_updated or job.updated) + timedelta(seconds=restart_seconds)
    if job.stopped_reason == StopReason.USER_ACTION and now < allowed_from:
        raise _refused(job, Action.START, f"it can be started again from {allowed_from:%Y-%m-%dT%H:%M:%SZ}")
    return replace(_acted(job, Action.START, now, status=Status.ANALYSIS_DONE), stopped_reason=None)


def _refused(job: Job, action: Action, advice: str) -> ApiError:
    pending = " that is being stopped" if job.action is Action.STOP and job.status is not Status.STOPPED else ""
    message = f"Action {action} is not possible for request {job.id} with status {job.status}{pending}; {advice}."
    return ApiError(400, message, "COMMON_BAD_PAYLOAD")


def analysed(job: Job, now: datetime) -> Job:
    """Return `job` after a successful analysis: stopped when STOP was asked meanwhile."""
    done = replace(job, status=Status.ANALYSIS_DONE, updated=now)
    return stopped(done, StopReason.USER_ACTION, now) if job.action is Action.STOP else done


def processing(job: Job, now: datetime) -> Job:
    """Return `job` as processing, when it is still one that was told to start."""
    if job.status is Status.ANALYSIS_DONE and job.action is Action.START:
        return replace(job, status=Status.PROCESSING, updated=now)
    return job


def reason_to_stop(job: Job, balance_pu: float | None, tiles: int, faults: Faults) -> StopReason | None:
    """Return why a job that is processed has to stop, None when it may go on.

    `balance_pu` is what its account has left, None for no end; `tiles` counts those that it has begun in this pass.
    """
    if job.action is Action.STOP:
        return StopReason.USER_ACTION
    if balance_pu is not None and balance_pu <= 0:
        return StopReason.OUT_OF_PU
    for reason, limit in (
        (StopReason.OUT_OF_PU, faults.out_of_pu_after_tiles),
        (StopReason.UNHEALTHY, faults.unhealthy_after_tiles),
    ):
        if limit is not None and tiles >= limit:
            return reason
    return None


def stopped(job: Job, reason: StopReason, now: datetime) -> Job:
    """Return `job` as stopped; a STOP of its user that came meanwhile is what counts."""
    if job.action is Action.STOP:
        reason = StopReason.USER_ACTION
    return replace(job, status=Status.STOPPED, stopped_reason=reason, updated=now)


def done(job: Job, now: datetime) -> Job:
    """Return `job` as finished."""
    return replace(job, status=Status.DONE, updated=now)


def failed(job: Job, error: str, now: datetime) -> Job:
    """Return `job` as failed as a whole, with the reason."""
    return replace(job, status=Status.FAILED, error=error, updated=now)


def described(job: Job, description: str | None, now: datetime) -> Job:
    """Return `job` with another description; None leaves it. Raise the API's 409 while it is or will be processed."""
    started = job.action is Action.START and job.status in {Status.ANALYSING, Status.ANALYSIS_DONE}
    if job.status is Status.PROCESSING or started:
        message = (
            f"Request {job.id} has status {job.status} and is being processed or about to be; it cannot be updated."
        )
        raise ApiError(409, message, "COMMON_BAD_PAYLOAD")
    if description is None:
        return job
    return replace(job, request={**job.request, "description": description}, updated=now)


def has_ended(job: Job) -> bool:
    """Tell whether nothing can be done with `job` any more."""
    return job.status in {Status.DONE, Status.FAILED}


def is_active(job: Job) -> bool:
    """Tell whether the service has something to do for `job` without a further user action."""
    started = job.status is Status.ANALYSIS_DONE and job.action is Action.START
    return started or job.status in {Status.ANALYSING, Status.PROCESSING}
