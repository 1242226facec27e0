from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from localhub.errors import ApiError
from localhub.faults import Faults
from localhub.jobs import (
    Action,
    Job,
    Status,
    StopReason,
    act,
    analysed,
    described,
    done,
    failed,
    is_active,
    processing,
    reason_to_stop,
    stopped,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=29)
MUCH_LATER = NOON + timedelta(minutes=30)
HALF_AN_HOUR = 1800


def job(status: Status = Status.CREATED, action: Action = Action.NONE) -> Job:
    return Job("an-id", "an-account", {}, NOON, NOON, status=status, action=action, action_updated=NOON)


N, A, S, P = Action.NONE, Action.ANALYSE, Action.START, Action.STOP
REACHABLE = {
    Status.CREATED: (N,),
    Status.ANALYSING: (A, S, P),
    Status.ANALYSIS_DONE: (A, S),
    Status.PROCESSING: (S, P),
    Status.STOPPED: (S, P),
    Status.DONE: (S, P),
    Status.FAILED: (A, S, P),
}
"""The last actions with which a job can have each status."""

ACCEPTED = {
    (Status.CREATED, N, A): Status.ANALYSING,
    (Status.CREATED, N, S): Status.ANALYSING,
    (Status.ANALYSING, A, A): Status.ANALYSING,
    (Status.ANALYSING, S, A): Status.ANALYSING,
    (Status.ANALYSING, P, A): Status.ANALYSING,
    (Status.ANALYSING, A, S): Status.ANALYSING,
    (Status.ANALYSING, S, S): Status.ANALYSING,
    (Status.ANALYSING, A, P): Status.ANALYSING,
    (Status.ANALYSING, S, P): Status.ANALYSING,
    (Status.ANALYSING, P, P): Status.ANALYSING,
    (Status.ANALYSIS_DONE, A, S): Status.ANALYSIS_DONE,
    (Status.ANALYSIS_DONE, S, S): Status.ANALYSIS_DONE,
    (Status.ANALYSIS_DONE, A, P): Status.STOPPED,
    (Status.ANALYSIS_DONE, S, P): Status.STOPPED,
    (Status.PROCESSING, S, P): Status.PROCESSING,
    (Status.PROCESSING, P, P): Status.PROCESSING,
    (Status.STOPPED, S, S): Status.ANALYSIS_DONE,
    (Status.STOPPED, P, S): Status.ANALYSIS_DONE,
}
"""What each accepted action leads to, by status and last action; all others are refused."""

ANALYSE_CHANGES_NOTHING = {(Status.ANALYSING, last, A) for last in (A, S, P)}
"""It is being analysed already; what was asked for beyond that still holds."""


@pytest.mark.parametrize(
    ("status", "last", "action"),
    [(status, last, action) for status, lasts in REACHABLE.items() for last in lasts for action in (A, S, P)],
)
def test_every_action_is_accepted_or_refused_in_every_status_as_the_diagram_says(
    status: Status, last: Action, action: Action
) -> None:
    before = job(status, last)
    expected = ACCEPTED.get((status, last, action))
    if expected is None:
        with pytest.raises(
            ApiError, match=f"Action {action} is not possible for request an-id with status {status}"
        ) as error:
            act(before, action, MUCH_LATER, HALF_AN_HOUR)
        assert error.value.status == 400
        return
    after = act(before, action, MUCH_LATER, HALF_AN_HOUR)
    assert after.status is expected
    assert after.action is (last if (status, last, action) in ANALYSE_CHANGES_NOTHING else action)
    if (status, last) == (expected, action):  # a repeat
        assert after == before


@pytest.mark.parametrize("last", [S, P])
@pytest.mark.parametrize(
    ("step", "status"),
    [
        (lambda job: analysed(job, LATER), Status.ANALYSING),
        (lambda job: processing(job, LATER), Status.ANALYSIS_DONE),
        (lambda job: done(job, LATER), Status.PROCESSING),
        (lambda job: stopped(job, StopReason.UNHEALTHY, LATER), Status.PROCESSING),
        (lambda job: failed(job, "why", LATER), Status.ANALYSING),
        (lambda job: failed(job, "why", LATER), Status.PROCESSING),
    ],
)
def test_the_services_own_steps_are_edges_of_the_diagram(
    step: Callable[[Job], Job], status: Status, last: Action
) -> None:
    edges = {
        (Status.ANALYSING, Status.ANALYSIS_DONE),
        (Status.ANALYSING, Status.FAILED),
        (Status.ANALYSING, Status.STOPPED),  # by way of ANALYSIS_DONE, when STOP was asked meanwhile
        (Status.ANALYSIS_DONE, Status.PROCESSING),
        (Status.ANALYSIS_DONE, Status.ANALYSIS_DONE),  # not started
        (Status.PROCESSING, Status.DONE),
        (Status.PROCESSING, Status.STOPPED),
        (Status.PROCESSING, Status.FAILED),  # the description's `error` covers processing too
    }
    after = step(job(status, last))
    assert (status, after.status) in edges
    assert (after.stopped_reason is not None) == (after.status is Status.STOPPED)
    assert (after.error is not None) == (after.status is Status.FAILED)


def test_a_stopped_job_can_be_started_again_after_half_an_hour_and_not_before() -> None:
    halted = stopped(job(Status.PROCESSING, Action.STOP), StopReason.USER_ACTION, NOON)
    with pytest.raises(ApiError, match="it can be started again from 2026-01-01T12:30:00Z"):
        act(halted, Action.START, LATER, HALF_AN_HOUR)
    started = act(halted, Action.START, MUCH_LATER, HALF_AN_HOUR)
    assert (started.status, started.stopped_reason) == (Status.ANALYSIS_DONE, None)
    assert processing(started, MUCH_LATER).status is Status.PROCESSING


@pytest.mark.parametrize("reason", [StopReason.OUT_OF_PU, StopReason.UNHEALTHY])
def test_a_job_that_the_service_has_stopped_may_be_started_at_once(reason: StopReason) -> None:
    halted = stopped(job(Status.PROCESSING, Action.START), reason, NOON)
    assert halted.stopped_reason == reason
    started = act(halted, Action.START, NOON, HALF_AN_HOUR)
    assert (started.status, started.stopped_reason) == (Status.ANALYSIS_DONE, None)


@pytest.mark.parametrize(
    ("last", "balance_pu", "tiles", "limits", "expected"),
    [
        (S, None, 9, {}, None),
        (S, 0.01, 9, {}, None),
        (S, 0.0, 0, {}, StopReason.OUT_OF_PU),
        (S, -50.0, 9, {}, StopReason.OUT_OF_PU),
        (P, -50.0, 9, {"unhealthy_after_tiles": 0}, StopReason.USER_ACTION),
        (S, None, 1, {"out_of_pu_after_tiles": 2}, None),
        (S, 5000.0, 2, {"out_of_pu_after_tiles": 2}, StopReason.OUT_OF_PU),
        (S, None, 2, {"unhealthy_after_tiles": 2}, StopReason.UNHEALTHY),
        (S, None, 0, {"unhealthy_after_tiles": 0}, StopReason.UNHEALTHY),
    ],
)
def test_a_job_stops_for_its_user_for_want_of_units_or_on_demand(
    last: Action, balance_pu: float | None, tiles: int, limits: dict[str, int], expected: StopReason | None
) -> None:
    processed = job(Status.PROCESSING, last)
    assert reason_to_stop(processed, balance_pu, tiles, Faults.model_validate(limits)) is expected


def test_a_users_stop_counts_more_than_the_services_that_came_first() -> None:
    assert stopped(job(Status.PROCESSING, Action.STOP), StopReason.OUT_OF_PU, NOON).stopped_reason == "USER_ACTION"


def test_a_stop_during_analysis_takes_effect_when_the_analysis_ends() -> None:
    ended = analysed(act(job(Status.ANALYSING, Action.START), Action.STOP, LATER, HALF_AN_HOUR), LATER)
    assert (ended.status, ended.stopped_reason) == (Status.STOPPED, "USER_ACTION")


def test_processing_begins_only_for_a_job_that_was_started() -> None:
    assert processing(job(Status.ANALYSIS_DONE, Action.ANALYSE), NOON).status is Status.ANALYSIS_DONE
    assert not is_active(job(Status.ANALYSIS_DONE, Action.ANALYSE))
    assert is_active(job(Status.ANALYSIS_DONE, Action.START))


@pytest.mark.parametrize(
    ("status", "action"),
    [(Status.PROCESSING, Action.START), (Status.ANALYSING, Action.START), (Status.ANALYSIS_DONE, Action.START)],
)
def test_a_job_that_is_or_will_be_processed_cannot_be_updated(status: Status, action: Action) -> None:
    with pytest.raises(ApiError) as error:
        described(job(status, action), "new", LATER)
    assert error.value.status == 409


def test_an_update_changes_the_description_and_an_empty_one_nothing() -> None:
    created = replace(job(), request={"description": "old"})
    assert described(created, "new", LATER).request == {"description": "new"}
    assert described(created, None, LATER) == created
