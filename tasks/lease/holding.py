"""Taking a lease, keeping it while the work goes on, and giving it back.

A holder may do what the lease protects until ``lease_seconds`` after it began its last renewal that succeeded, by a
clock that also counts while the machine is suspended. Another one may take the lease when the file is older than that
by the store's clock, which began later. So both never hold it at once, however wrong the machines' clocks are.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from tasks.errors import LeaseHeld, LeaseLost, ServiceError
from tasks.lease.store import ConditionalFile, Stored, Tell, conditional_file
from tasks.lease.value import Lease, is_dead

RENEWALS_PER_LEASE = 4
RETRIES_PER_LEASE = 12
"""How often a renewal that failed is tried again within the lease's time."""
TRIES = 5
"""How often a lease that is free may be refused to whoever does not wait."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PAUSE_FACTOR = 0.2, 10.0, 1.5
"""Pauses between two looks at a lease that somebody else has."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A lease as it was found.

    Attributes:
        lease: what the file says.
        age_seconds: since it was written, at least, by the store's clock.
    """

    lease: Lease
    age_seconds: float

    @property
    def expired_for(self) -> timedelta:
        """For how long nobody has held it; negative while somebody does."""
        lasts = 0.0 if self.lease.released else self.lease.lease_seconds
        return timedelta(seconds=self.age_seconds - lasts)

    @property
    def free(self) -> bool:
        """Whether it may be taken over: it was released, or has expired, or its process has ended for sure."""
        return self.lease.released or self.expired_for > timedelta(0) or is_dead(self.lease.process)


def read_lease(files: AbstractFileSystem, path: str) -> Found | None:
    """Read the lease at ``path`` of a local or an S3 file system; None when there is none."""
    return _found(conditional_file(files, path, logger.warning).read())


class Holding:
    """A lease that this process has; a thread renews it until it is released. Made by :func:`held`.

    Attributes:
        lease: as it was written last.
        before: what was found and taken over, with its request; None where there was nothing.
    """

    def __init__(
        self, file: ConditionalFile, lease: Lease, version: str, began: float, before: Found | None, tell: Tell
    ) -> None:
        self.lease = lease
        self.before = before
        self._file = file
        self._tell = tell
        self._version: str | None = version
        self._began = began
        self._lost = ""
        self._failure = ""
        self._busy = threading.Lock()
        self._released = threading.Event()
        target = copy_context().run
        self._thread = threading.Thread(target=target, args=(self._keep,), name="lease", daemon=True)

    def begin(self) -> None:
        """Begin to renew the lease."""
        self._thread.start()

    def check(self) -> None:
        """Check that nobody else can have the lease; asks nobody, and is cheap.

        Raises:
            LeaseLost: somebody else has it, or it could not be renewed in time.
        """
        if self._lost:
            raise LeaseLost(self._lost)
        since = _clock() - self._began
        if since >= self.lease.lease_seconds:
            raise LeaseLost(
                f"The lease lasts {self.lease.lease_seconds:g} s and was renewed {since:.0f} s ago "
                f"({self._failure or 'this process or the store stood still'}); another run may do the work now. Run "
                "again to take it up."
            )

    def renew(self) -> None:
        """Renew the lease now, so that all of its time lies ahead: before a step that must not be done twice.

        Raises:
            LeaseLost: somebody else has it.
            OSError: the store did not answer.
        """
        with self._busy:
            self._write(lambda: self.lease.renewed(_now()))

    def note_request(self, request_id: str) -> None:
        """Say in the lease which batch request the work is; errors as in :meth:`renew`."""
        with self._busy:
            self._write(lambda: self.lease.renewed(_now(), request_id))

    def release(self) -> None:
        """Give the lease back, if it is still ours; where the store does not answer, it expires."""
        self._released.set()
        try:
            with self._busy:
                self._write(lambda: self.lease.ended(_now()))
        except LeaseLost as error:
            self._tell(f"The lease was not released. {error}")
        except (OSError, BotoCoreError, ServiceError) as error:
            self._tell(f"The lease could not be released and ends in {self.lease.lease_seconds:g} s: {error}")
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        """Renew until the lease is released or lost; a renewal that fails is tried again sooner."""
        pause = self.lease.lease_seconds / RENEWALS_PER_LEASE
        while not self._released.wait(pause):
            try:
                with self._busy:
                    if self._released.is_set():
                        return
                    self._write(lambda: self.lease.renewed(_now()))
            except LeaseLost as error:
                self._tell(str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever it was: it is tried again, or check() tells it
                if not self._failure:
                    self._tell(f"The lease could not be renewed, which is tried again: {error!r}")
                self._failure = repr(error)
                pause = self.lease.lease_seconds / RETRIES_PER_LEASE
            else:
                pause = self.lease.lease_seconds / RENEWALS_PER_LEASE

    def _write(self, change: Callable[[], Lease]) -> None:
        """Write a changed lease over our last one."""
        if self._lost:
            raise LeaseLost(self._lost)
        for _ in range(TRIES):
            began, lease = _clock(), change()
            version = self._file.swap(lease.to_json(), self._version)
            if version is not None:
                self.lease, self._version, self._began, self._failure = lease, version, began, ""
                return
            self._adopt()
        raise ServiceError(
            f"The store has refused {TRIES} times to renew a lease that is ours; see what else writes to it."
        )

    def _adopt(self) -> None:
        """Take the stored version for ours: of a write whose answer was lost, or none when the file was removed."""
        stored = self._file.read()
        found = _found(stored)
        if found is not None and found.lease.holder != self.lease.holder:
            self._lost = (
                f"The lease was taken over by {found.lease.owner}: it was not renewed in time, or was removed. That "
                "run does the work now; see what it does."
            )
            raise LeaseLost(self._lost)
        self._version = stored.version if stored else None


@contextmanager
def held(
    files: AbstractFileSystem, path: str, lease: Lease, *, wait_seconds: float = 0.0, tell: Tell = logger.warning
) -> Iterator[Holding]:
    """Hold the lease at ``path`` within the block.

    Args:
        files: a local or an S3 file system.
        path: of the lease's file.
        lease: what to write, of :func:`tasks.lease.new_lease`.
        wait_seconds: how long to wait for another holder to end; 0 refuses at once.
        tell: hears who is waited for, once a holder; whose lease was taken over; and what goes wrong, from a thread
            with the caller's context.

    Raises:
        LeaseHeld: somebody else has it, still after ``wait_seconds``.
        ServiceError: the store keeps refusing to write a lease that is free.
        OSError: the store does not answer, or refuses.
    """
    holding = _take(conditional_file(files, path, tell), lease, path, wait_seconds, tell)
    try:
        holding.begin()
        _tell_of_take_over(holding.before, tell)
        yield holding
    finally:
        holding.release()


def _take(file: ConditionalFile, lease: Lease, path: str, wait_seconds: float, tell: Tell) -> Holding:
    deadline, waiting_for, refused = _clock() + wait_seconds, None, 0
    for pause in _pauses():
        stored = file.read()
        found = _found(stored)
        if found is None or found.free:
            holding = _try(file, lease, stored, tell)
            if holding is not None:
                return holding
            refused += 1
            _check_refusals(refused, path, deadline)
            time.sleep(pause if refused > 1 else 0)
        else:
            if _clock() >= deadline:
                raise LeaseHeld(_refusal(found, path))
            if found.lease.holder != waiting_for:
                tell(f"Waiting. {_refusal(found, path)}")
            waiting_for = found.lease.holder
            time.sleep(max(min(pause, -found.expired_for.total_seconds(), deadline - _clock()), FIRST_PAUSE_SECONDS))
    raise AssertionError("pauses do not end")


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE_SECONDS)


def _check_refusals(refused: int, path: str, deadline: float) -> None:
    """A write that lost against another one shows that one in the next reading; many in a row mean something else."""
    if refused >= TRIES and _clock() >= deadline:
        raise ServiceError(
            f"The lease {path} is free, but the store has refused {refused} times to write it; look whether something "
            "else writes there, or changes ETags on the way."
        )


def _try(file: ConditionalFile, wish: Lease, stored: Stored | None, tell: Tell) -> Holding | None:
    """Write our lease over a free one; None when somebody else was faster."""
    found = _found(stored)
    began, lease = _clock(), wish.taken(_now(), found.lease if found else None)
    version = file.swap(lease.to_json(), stored.version if stored else None)
    if version is None:
        return None
    return Holding(file, lease, version, began, found, tell)


def _tell_of_take_over(found: Found | None, tell: Tell) -> None:
    if found is not None and not found.lease.released:
        tell(f"Took over the work of {found.lease.owner}, last renewed {found.age_seconds:.0f} s ago.")


def _refusal(found: Found, path: str) -> str:
    left = max(-found.expired_for.total_seconds(), 0)
    until = _now() + timedelta(seconds=left)
    return (
        f"The work in {path.rpartition('/')[0]} is being done by {found.lease.owner}, renewed "
        f"{found.age_seconds:.0f} s ago, until {until:%Y-%m-%d %H:%M:%S} UTC "
        "unless it renews again; wait for it, or stop it."
    )


def _found(stored: Stored | None) -> Found | None:
    return None if stored is None else Found(Lease.from_json(stored.content), stored.age_seconds)


def _now() -> datetime:
    return datetime.now(UTC)


def _clock() -> float:
    """Seconds of a clock that nobody sets, and that counts while the machine is suspended (clock_gettime(2))."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
