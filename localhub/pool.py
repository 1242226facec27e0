"""The worker processes: each is replaced when it dies, and all end with their owner however that ends."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Final, TypeVar

from localhub.engine import EvalscriptError
from localhub.engine.errors import stopped, used_more_than
from localhub.engine.isolate import has_abandoned
from localhub.engine.limits import DEFAULTS, Limits, impose, resident_bytes

Task = TypeVar("Task")
Result = TypeVar("Result")

_PRELOADED = ["localhub.analysis", "localhub.process", "localhub.worker"]

_EXCESS: Final = 1.25
"""Share of the limit of memory at which a process ends. At the limit itself its script is interrupted, which may need
a moment, and may not help: what has come out of V8, or what GDAL does, takes memory too."""
_LEFT_BEHIND: Final = 0.5
"""Share of the limit of memory that a process may have between tasks; with more it is replaced."""
_LOOK_SECONDS: Final = 0.05
_GDAL_CACHE_MB: Final = 128
"""Rows of blocks of a few files; GDAL's default is 5 % of the machine's memory for each process."""


class PoolClosed(Exception):
    """The pool has been closed."""


class WorkerPool:
    """Worker processes, forked from a server that has imported what they need and runs no threads.

    Tasks wait in one queue, first come, first served. Each process is an executor of its own, so that one that dies
    breaks its own task and no other: that future raises BrokenProcessPool, or EvalscriptError where the process
    ended itself because of its memory.

    Args:
        processes: how many.
        limits: of scripts, and of the memory of each process.
    """

    def __init__(self, processes: int, limits: Limits = DEFAULTS) -> None:
        start_fork_server()
        self._workers = [_Worker(limits) for _ in range(processes)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="worker")

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Run `function(task)` in the next free worker."""
        try:
            return self._threads.submit(self._run, function, task)
        except RuntimeError as error:  # shut down
            raise PoolClosed from error

    def _run(self, function: Callable[[Task], Result], task: Task) -> Result:
        worker = self._idle.get()
        try:
            return worker.run(function, task)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the workers at once, also in the middle of a task."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=True)


class _Worker:
    """One process at a time, and the next one when it has died, or is not fit for another task."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._ended = False
        self._lifeline, self._executor = _started(limits)

    def run(self, function: Callable[[Task], Result], task: Task) -> Result:
        """Run a task and wait for it.

        Raises:
            EvalscriptError: the process has ended itself, and says why.
            BrokenProcessPool: it has died of the task.
            PoolClosed: after `end`.
        """
        try:
            result = self._submitted(function, task).result()
        except BrokenProcessPool as error:
            if last_words := self._last_words():
                raise EvalscriptError(last_words) from error
            raise
        finally:
            self._replace_unfit()
        return result

    def _submitted(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        with self._lock:
            if self._ended:
                raise PoolClosed
            try:
                return self._executor.submit(function, task)
            except BrokenProcessPool:  # it died of an earlier task, or while it was idle
                self._replace()
                return self._executor.submit(function, task)

    def _last_words(self) -> str:
        """Return why the process has ended itself; nothing where it has not."""
        with self._lock:
            return self._lifeline.recv_bytes().decode() if not self._ended and self._lifeline.poll() else ""

    def _replace_unfit(self) -> None:
        """Have the next task find a process that the last one has left nothing in."""
        with suppress(BrokenProcessPool, CancelledError, PoolClosed):
            if not self._submitted(_is_fit, self._limits).result():
                with self._lock:
                    if not self._ended:
                        self._replace()

    def _replace(self) -> None:
        self._close()
        self._lifeline, self._executor = _started(self._limits)

    def end(self) -> None:
        """End the process for good."""
        with self._lock:
            self._ended = True
            self._close()

    def _close(self) -> None:
        self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _started(limits: Limits) -> tuple[Connection, ProcessPoolExecutor]:
    """Return an executor of one process, and the end of the pipe whose closing ends it; it tells its last words."""
    owner, lifeline = Pipe()
    executor = ProcessPoolExecutor(
        1, mp_context=get_context("forkserver"), initializer=_live_with, initargs=(owner, limits)
    )
    executor.submit(os.getpid)  # the first task starts the process
    return lifeline, executor


def start_fork_server() -> None:
    """Start the process that workers are forked from; it imports for some seconds, so it is worth to begin early."""
    get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def _live_with(owner: Connection, limits: Limits) -> None:
    """Set up this process: it ends as soon as its owner closes the other end of the pipe, or dies, or at its limit."""

    def watch() -> None:
        owner.poll(None)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
    if limits.memory_bytes is not None:
        watched = (owner, limits.memory_bytes)
        threading.Thread(target=_watch_memory, args=watched, daemon=True, name="memory-watch").start()
    impose(limits)
    os.environ["TZ"] = "UTC"  # evalscripts see the service's time zone
    os.environ.setdefault("GDAL_CACHEMAX", str(_GDAL_CACHE_MB))


def _watch_memory(owner: Connection, limit_bytes: int) -> None:
    """End this process with a word to its owner when it has far more memory than it may."""
    while resident_bytes() <= limit_bytes * _EXCESS:
        time.sleep(_LOOK_SECONDS)
    owner.send_bytes(str(stopped(used_more_than(limit_bytes))).encode())
    os._exit(1)


def _is_fit(limits: Limits) -> bool:
    """Tell whether a task has left this process as it should be."""
    is_small = limits.memory_bytes is None or resident_bytes() <= limits.memory_bytes * _LEFT_BEHIND
    return is_small and not has_abandoned()
