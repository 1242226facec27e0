"""The threads that compute, shared by all tiles of a process: as many as there are processors, however many tiles.

What is given to them must release Python's lock while it works, and never wait for another of their jobs.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def workers() -> ThreadPoolExecutor:
    """The process's threads."""
    return ThreadPoolExecutor(processors(), thread_name_prefix="worker")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork


LARGEST_ROOM = 2**26
"""Bytes that are kept at most, for each thread and use."""
_rooms = threading.local()


def room(shape: tuple[int, ...], dtype: np.dtype[Any], use: Literal["numbers", "coded"] = "numbers") -> NDArray[Any]:
    """Give room for an array, not initialised: the same each time for a thread and a use, as new memory costs."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size > LARGEST_ROOM:
        return np.empty(shape, dtype)
    kept: NDArray[np.uint8] | None = getattr(_rooms, use, None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.uint8)
        setattr(_rooms, use, kept)
    return kept[:size].view(dtype).reshape(shape)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], at_once: int | None = None
) -> Generator[Result, None, None]:
    """Give the result for each item in the items' order; only a few are ahead, so that memory stays bounded.

    Nothing is at work any more when it ends, even by an error: what the work uses may then be taken away.

    Args:
        work: on an item.
        items: of any number.
        at_once: how many are at work, or wait for it, at most; by default what keeps all processors busy.

    Raises:
        Exception: what the work on an item raises; work that has not begun is given up.
    """
    ahead: deque[Future[Result]] = deque()
    most = min(at_once or sys.maxsize, 2 * processors() + 1)
    try:
        for item in items:
            ahead.append(workers().submit(work, item))
            if len(ahead) == most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        wait([future for future in ahead if not future.cancel()])
