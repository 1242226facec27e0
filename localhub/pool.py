"""The worker processes: a pool that replaces itself when a process dies, and ends with its owner however that ends."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_PRELOADED = ["localhub.analysis", "localhub.worker"]


class PoolClosed(Exception):
    """The pool has been closed."""


class WorkerPool:
    """Worker processes, forked from a server that has imported what they need and runs no threads.

    Each task gets to one process; a process that dies breaks all tasks under way, and the next task starts a new pool.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        start_fork_server()
        self._lock = threading.Lock()
        self._closed = False
        self._executor = self._started()

    def _started(self) -> ProcessPoolExecutor:
        reader, self._lifeline = Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            self._processes, mp_context=get_context("forkserver"), initializer=_live_with, initargs=(reader,)
        )
        executor.submit(os.getpid)  # the first task starts a process
        return executor

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Run `function(task)` in a worker; a pool that lost a process is replaced first."""
        with self._lock:
            if self._closed:
                raise PoolClosed
            try:
                return self._executor.submit(function, task)
            except BrokenProcessPool:
                self._end()
                self._executor = self._started()
                return self._executor.submit(function, task)

    def close(self) -> None:
        """End the workers at once, also in the middle of a task."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


def start_fork_server() -> None:
    """Start the process that workers are forked from; it imports for some seconds, so it is worth to begin early."""
    get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def _live_with(owner: Connection) -> None:
    """End this process as soon as its owner closes the other end of the pipe, or dies. Runs first in each worker."""

    def watch() -> None:
        owner.poll(None)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="owner-watch").start()
    os.environ["TZ"] = "UTC"  # evalscripts see the service's time zone
