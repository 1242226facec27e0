"""How many requests an account may make: a token bucket, which the service's documentation says it uses.

The bucket of a policy of n requests a minute holds n tokens and gets one more each 1/n minute; what does not fit in is
lost, so unused requests do not pile up. It is kept as one number, the time at which the bucket will be full again (the
generic cell rate algorithm, ITU-T I.371): exact, in whole nanoseconds, without a timer.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_MINUTE_NS = 60_000_000_000
_MS_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Policy:
    """A limit on requests."""

    requests_per_minute: int

    @property
    def refill_ns(self) -> int:
        """Time in which the bucket gets a token, rounded up."""
        return -(-_MINUTE_NS // self.requests_per_minute)


def admit(policy: Policy, full_at_ns: int, now_ns: int) -> tuple[int, int]:
    """Return (time at which the bucket will be full again, nanoseconds to wait) of a request at `now_ns`.

    A request that has to wait is not admitted and takes no token; 0 admits it.
    """
    full_after_ns = max(full_at_ns, now_ns) + policy.refill_ns
    wait_ns = full_after_ns - now_ns - policy.requests_per_minute * policy.refill_ns
    return (full_at_ns, wait_ns) if wait_ns > 0 else (full_after_ns, 0)


class RateLimiter:
    """A bucket for each account. Safe to use from several threads.

    Args:
        policy: that holds for each account.
        clock_ns: a clock that never goes back.
    """

    def __init__(self, policy: Policy, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.policy = policy
        self._clock_ns = clock_ns
        self._full_at_ns: dict[str, int] = {}
        self._lock = threading.Lock()

    def wait_ms(self, account_id: str) -> int:
        """Return 0 for a request that is admitted, else the milliseconds, rounded up, after which one will be."""
        with self._lock:
            now_ns = self._clock_ns()
            full_at_ns, wait_ns = admit(self.policy, self._full_at_ns.get(account_id, now_ns), now_ns)
            self._full_at_ns[account_id] = full_at_ns
        return -(-wait_ns // _MS_NS)
