"""Exit statuses: what a script that calls the command line can decide by them."""

import pytest

from flows.exits import EXITS, exit_help, exit_status
from tasks import errors

BY_DECISION = {
    errors.InvalidInput: 1,
    errors.AccessDenied: 1,
    errors.ServiceError: 1,
    FileNotFoundError: 1,
    errors.BudgetExceeded: 3,
    errors.JobFailed: 4,
    errors.TooFewTiles: 4,
    errors.Unavailable: 5,
    errors.NotYet: 5,
    errors.LeaseHeld: 5,
    errors.LeaseLost: 5,
    errors.RunTimedOut: 5,
    KeyboardInterrupt: 130,
}


@pytest.mark.parametrize(("error", "status"), BY_DECISION.items(), ids=lambda value: getattr(value, "__name__", value))
def test_each_decision_has_a_status(error: type[Exception], status: int):
    assert exit_status(error("what came")) == status


def test_the_help_names_every_status_once():
    assert [int(line.split()[0]) for line in exit_help().splitlines()[1:]] == [one.status for one in EXITS]
    assert len({one.status for one in EXITS}) == len(EXITS)
