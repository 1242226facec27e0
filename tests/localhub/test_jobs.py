from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from localhub.errors import ApiError
from localhub.jobs import Action, Job, Status, StopReason, act, analysed, described, is_active, processing, stopped

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=29)
MUCH_LATER = NOON + timedelta(minutes=30)
HALF_AN_HOUR = 1800


def job(status: Status = Status.CREATED, action: Action = Action.NONE) -> Job:
    return Job("an-id", "an-account", {}, NOON, NOON, status=status, action=action, action_updated=NOON)


@pytest.mark.parametrize(
    ("status", "last", "action", "expected"),
    [
        (Status.CREATED, Action.NONE, Action.ANALYSE, Status.ANALYSING),
        (Status.CREATED, Action.NONE, Action.START, Status.ANALYSING),
        (Status.ANALYSING, Action.ANALYSE, Action.ANALYSE, Status.ANALYSING),
        (Status.ANALYSING, Action.ANALYSE, Action.START, Status.ANALYSING),
        (Status.ANALYSING, Action.START, Action.START, Status.ANALYSING),
        (Status.ANALYSING, Action.ANALYSE, Action.STOP, Status.ANALYSING),
        (Status.ANALYSIS_DONE, Action.ANALYSE, Action.START, Status.ANALYSIS_DONE),
        (Status.ANALYSIS_DONE, Action.START, Action.START, Status.ANALYSIS_DONE),
        (Status.ANALYSIS_DONE, Action.ANALYSE, Action.STOP, Status.STOPPED),
        (Status.PROCESSING, Action.START, Action.STOP, Status.PROCESSING),
        (Status.PROCESSING, Action.STOP, Action.STOP, Status.PROCESSING),
    ],
)
def test_an_accepted_action_leads_where_the_diagram_says(
    status: Status, last: Action, action: Action, expected: Status
) -> None:
    changed = act(job(status, last), action, LATER, HALF_AN_HOUR)
    assert (changed.status, changed.action) == (expected, action)


@pytest.mark.parametrize(
    ("status", "last", "action"),
    [
        (Status.CREATED, Action.NONE, Action.STOP),
        (Status.ANALYSING, Action.STOP, Action.START),
        (Status.ANALYSIS_DONE, Action.ANALYSE, Action.ANALYSE),
        (Status.PROCESSING, Action.START, Action.ANALYSE),
        (Status.PROCESSING, Action.START, Action.START),
        (Status.STOPPED, Action.STOP, Action.ANALYSE),
        (Status.STOPPED, Action.STOP, Action.STOP),
        *((status, Action.START, action) for status in (Status.DONE, Status.FAILED) for action in list(Action)[1:]),
    ],
)
def test_any_other_action_is_answered_with_400_and_changes_nothing(
    status: Status, last: Action, action: Action
) -> None:
    with pytest.raises(
        ApiError, match=f"Action {action} is not possible for request an-id with status {status}"
    ) as error:
        act(job(status, last), action, LATER, HALF_AN_HOUR)
    assert error.value.status == 400


def test_a_stopped_job_can_be_started_again_after_half_an_hour_and_not_before() -> None:
    halted = stopped(job(Status.PROCESSING, Action.STOP), StopReason.USER_ACTION, NOON)
    with pytest.raises(ApiError, match="it can be started again from 2026-01-01T12:30:00Z"):
        act(halted, Action.START, LATER, HALF_AN_HOUR)
    started = act(halted, Action.START, MUCH_LATER, HALF_AN_HOUR)
    assert (started.status, started.stopped_reason) == (Status.ANALYSIS_DONE, None)
    assert processing(started, MUCH_LATER).status is Status.PROCESSING


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
