"""The guard of the money while a job runs."""

from collections import deque
from collections.abc import Sequence

from tasks.batch import Limits
from tasks.errors import BudgetExceeded
from tasks.pricing import MIN_REQUEST_PU
from tasks.service import Job


class Spending:
    """Compares a job's bill with the cap, look after look.

    Args:
        paid_pu: what earlier requests for the same work have cost, processing units.
    """

    def __init__(self, paid_pu: float = 0.0) -> None:
        self._paid_pu = paid_pu
        self._bills: deque[tuple[float, float]] = deque(maxlen=10)

    def check(self, job: Job, now: float, pause: float, limits: Limits) -> None:
        """Refuse to let a job go on that passes the cap before the next look.

        Args:
            job: as it is now.
            now: time of the look, seconds.
            pause: time to the next look, seconds.
            limits: the cap.

        Raises:
            BudgetExceeded: with the figures.
        """
        self._bills.append((now, job.cost_pu))
        expected = expected_pu(self._bills, job.percent, pause)
        spent = self._paid_pu + job.cost_pu
        if not job.ended and spent + expected > limits.max_pu:
            raise BudgetExceeded(
                f"Request {job.id} has cost {job.cost_pu:,.1f} PU at {job.percent:.0f} %"
                + (f", after {self._paid_pu:,.1f} PU for earlier requests" if self._paid_pu else "")
                + f", and {expected:,.1f} PU more are expected before the next look in {pause:.0f} s: more than "
                f"limits.max_pu of {limits.max_pu:,.10g}. It is stopped. Raise the cap and run again to take up what "
                "was delivered and go on."
            )


def expected_pu(bills: Sequence[tuple[float, float]], percent: float, pause: float) -> float:
    """What a job will cost until the next look: at the pace of the last looks, and no more than what is left of it.

    Up to the least that a request costs the bill does not tell of the pace.

    Args:
        bills: time, seconds, and bill then, processing units, of the last looks.
        percent: share of the tiles that have ended.
        pause: time to the next look, seconds.
    """
    (before, earlier_pu), (now, spent_pu) = bills[0], bills[-1]
    if spent_pu <= MIN_REQUEST_PU or now <= before or not percent:
        return 0.0
    left_pu = spent_pu * (100 - percent) / percent
    return max(0.0, min((spent_pu - earlier_pu) / (now - before) * pause, left_pu))
