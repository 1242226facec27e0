"""A job that costs more than was allowed is stopped before it does."""

import pytest

from flows.spending import Spending, expected_pu
from tasks.batch import Limits
from tasks.errors import BudgetExceeded
from tasks.service import Job

CAP = Limits(max_pu=1000)


def job(cost_pu: float, percent: float, status: str = "PROCESSING") -> Job:
    return Job("r1", status, percent=percent, cost_pu=cost_pu)


@pytest.mark.parametrize(
    ("bills", "percent", "pause", "expected"),
    [
        ([(0, 500)], 50, 60, 0),  # one look tells of no pace
        ([(0, 200), (10, 300)], 10, 60, 600),
        ([(0, 200), (10, 300)], 90, 60, 300 / 9),  # no more than what is left of the job
        ([(0, 0), (10, 100)], 5, 60, 0),  # the least that a request costs
        ([(0, 300), (10, 300)], 50, 60, 0),
        ([(0, 200), (10, 300)], 0, 60, 0),
    ],
)
def test_a_job_is_expected_to_go_on_at_its_pace_and_to_end(
    bills: list[tuple[float, float]], percent: float, pause: float, expected: float
) -> None:
    assert expected_pu(bills, percent, pause) == pytest.approx(expected)


def test_what_is_spent_and_what_will_be_until_the_next_look_must_stay_within_the_cap() -> None:
    spending = Spending()
    spending.check(job(300, 10), 0, 10, CAP)
    spending.check(job(600, 20), 10, 10, CAP)
    with pytest.raises(BudgetExceeded, match=r"has cost 800.0 PU at 30 %, and 250.0 PU more are expected .* 1,000"):
        spending.check(job(800, 30), 20, 10, Limits(max_pu=1000))


def test_earlier_requests_count_and_a_job_that_has_ended_costs_no_more() -> None:
    Spending(500).check(job(501, 100, "DONE"), 0, 10, CAP)
    with pytest.raises(BudgetExceeded, match=r"after 500.0 PU for earlier requests"):
        Spending(500).check(job(501, 50), 0, 10, CAP)
