"""Worker processes of their own for requests that somebody waits for: jobs do not keep them busy."""

import threading
from concurrent.futures import Future

from localhub.pool import WorkerPool
from localhub.process import Processed, ProcessTask, process
from localhub.settings import Settings


class Renderer:
    """Takes requests from the first one on; workers start with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    def submit(self, task: ProcessTask) -> Future[Processed]:
        """Process a request in a worker."""
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(self._settings.workers, self._settings.limits)
            return self._pool.submit(process, task)

    def close(self) -> None:
        """End the workers, also in the middle of a request."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
