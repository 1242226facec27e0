"""The worker processes: each is replaced when it dies, and all end with their owner however that ends."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_PRELOADED = ["localhub.analysis", "localhub.process", "localhub.worker"]


class PoolClosed(Exception):
    """The pool has been closed."""


class WorkerPool:
    """Worker processes, forked from a server that has imported what they need and runs no threads.

    Tasks wait in one queue, first come, first served. Each process is an executor of its own, so that one that dies
    breaks its own task and no other: that future raises BrokenProcessPool.
    """

    def __init__(self, processes: int) -> None:
        start_fork_server()
        self._workers = [_Worker() for _ in range(processes)]
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
    """One process at a time, and the next one when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._lifeline, self._executor = _started()

    def run(self, function: Callable[[Task], Result], task: Task) -> Result:
        """Run a task and wait for it; raise BrokenProcessPool when the process dies of it, PoolClosed after `end`."""
        return self._submitted(function, task).result()

    def _submitted(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        with self._lock:
            if self._ended:
                raise PoolClosed
            try:
                return self._executor.submit(function, task)
            except BrokenProcessPool:  # it died of an earlier task, or while it was idle
                self._close()
                self._lifeline, self._executor = _started()
                return self._executor.submit(function, task)

    def end(self) -> None:
        """End the process for good."""
        with self._lock:
            self._ended = True
            self._close()

    def _close(self) -> None:
        self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _started() -> tuple[Connection, ProcessPoolExecutor]:
    """Return an executor of one process, and the end of the pipe whose closing ends it."""
    reader, lifeline = Pipe(duplex=False)
    executor = ProcessPoolExecutor(1, mp_context=get_context("forkserver"), initializer=_live_with, initargs=(reader,))
    executor.submit(os.getpid)  # the first task starts the process
    return lifeline, executor


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
