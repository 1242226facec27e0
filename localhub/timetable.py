"""What is to be done at a later time: one thread that sleeps until something is due."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

_LOG = logging.getLogger(__name__)


class Timetable:
    """Calls what is due, one after the other, in a thread of its own. What is left when it closes is dropped."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="timetable")
        self._thread.start()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` in so many seconds; equal times in the order in which they were given."""
        with self._changed:
            heapq.heappush(self._entries, (time.monotonic() + seconds, next(self._numbers), action))
            self._changed.notify()

    def close(self) -> None:
        """Drop what is not due yet, and wait for what is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while action := self._next_due():
            try:
                action()
            except Exception:  # noqa: BLE001 (logged; one failed errand must not end the others)
                _LOG.exception("A task of the timetable failed")

    def _next_due(self) -> Callable[[], None] | None:
        """Wait for the first entry to be due and return its action; None when the timetable is closed."""
        with self._changed:
            while not self._closed:
                seconds = self._entries[0][0] - time.monotonic() if self._entries else None
                if seconds is not None and seconds <= 0:
                    return heapq.heappop(self._entries)[2]
                self._changed.wait(seconds)
        return None
