"""The worker processes: a pool that replaces itself when a process dies, and ends with its owner however that ends."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def _live_with(owner: Connection) -> None:
    """Start a thread that ends this process as soon as the owner closes its end of the pipe, or dies."""

    def watch() -> None:
        owner.poll(None)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
    os.environ["TZ"] = "UTC"  # evalscripts see the service's time zone


def _nothing() -> None:
    """Do nothing: the first task starts a process."""


class WorkerPool:
    """Worker processes, started fresh (spawn) so that they share nothing with the server's threads."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._closed = False
        self._executor = self._started()

    def _started(self) -> ProcessPoolExecutor:
        reader, self._lifeline = Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            self._processes, mp_context=get_context("spawn"), initializer=_live_with, initargs=(reader,)
        )
        for _ in range(self._processes):
            executor.submit(_nothing)
        return executor

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Run `function(task)` in a worker; a pool that lost a process is replaced first."""
        with self._lock:
            if self._closed:
                raise PoolClosed
            try:
                return self._executor.submit(function, task)
            except BrokenProcessPool:
                self._end(self._executor)
                self._executor = self._started()
                return self._executor.submit(function, task)

    def close(self) -> None:
        """End the workers at once, also in the middle of a task."""
        with self._lock:
            self._closed = True
            self._end(self._executor)

    def _end(self, executor: ProcessPoolExecutor) -> None:
        self._lifeline.close()
        executor.shutdown(wait=True, cancel_futures=True)


class PoolClosed(Exception):
    """The pool has been closed."""
