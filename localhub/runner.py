"""The work behind the API: a thread for each active job takes it from one status to the next."""

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime

from localhub import jobs
from localhub.analysis import AnalysisTask, analyse
from localhub.engine import EvalscriptError
from localhub.errors import RequestFailed, StoreError
from localhub.faults import FaultBook
from localhub.jobs import Job, Status
from localhub.payload import parse_create_request
from localhub.pool import PoolClosed, WorkerPool
from localhub.processing import WORKER_DIED, Pass, Workshop
from localhub.providers import archive_source
from localhub.settings import Settings
from localhub.shipping import Shipping
from localhub.store import Store

_LOG = logging.getLogger(__name__)
_POOL_LOST = (BrokenProcessPool, CancelledError, PoolClosed)


def now() -> datetime:
    """Return the time, aware, UTC."""
    return datetime.now(UTC)


class Runner:
    """Carries jobs on. `wake` it after every user action; it resumes what was active when it starts."""

    def __init__(self, settings: Settings, store: Store, faults: FaultBook) -> None:
        self._settings = settings
        self._store = store
        self._faults = faults
        self._scratch = settings.scratch_dir
        self._workshop: Workshop | None = None
        self._active: dict[str, threading.Thread] = {}
        self._passes: dict[str, Pass] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def start(self) -> None:
        """Start the workers, clear what a crash has left, and resume every job that is active or owes something."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._workshop = Workshop(
            settings=self._settings,
            store=self._store,
            faults=self._faults,
            workers=WorkerPool(self._settings.workers, self._settings.limits),
            shipping=Shipping(self._settings, self._store, self._faults),
            scratch=self._scratch,
            is_closing=self._closing.is_set,
        )
        for job in self._store.all_jobs():
            self._shop.shipping.resume(job)
            self.wake(job.id)

    def close(self) -> None:
        """End workers and threads at once; the jobs go on at the next start."""
        self._closing.set()
        self._shop.workers.close()
        with self._lock:
            threads = list(self._active.values())
            for started in self._passes.values():
                started.look()
        for thread in threads:
            thread.join()
        self._shop.shipping.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _shop(self) -> Workshop:
        if self._workshop is None:
            raise RuntimeError("The runner has not been started.")
        return self._workshop

    def wake(self, job_id: str) -> None:
        """See to it that a job with something to do has a thread, which notices what its user wants."""
        with self._lock:
            if job_id in self._passes:
                self._passes[job_id].look()
            elif job_id not in self._active and self._next(job_id) and not self._closing.is_set():
                thread = threading.Thread(target=self._carry_on, args=(job_id,), name=f"job-{job_id}")
                self._active[job_id] = thread
                thread.start()

    def _next(self, job_id: str) -> Job | None:
        """Return the job when the service has something to do for it."""
        job = self._store.job(job_id)
        return job if job is not None and jobs.is_active(job) else None

    def _carry_on(self, job_id: str) -> None:
        """Take a job's steps until a user has to act or the server closes. Runs in the job's thread."""
        while True:
            with self._lock:
                job = None if self._closing.is_set() else self._next(job_id)
                if job is None:
                    self._active.pop(job_id, None)
                    return
            self._step(job)

    def _step(self, job: Job) -> None:
        try:
            if job.status is Status.ANALYSING:
                self._analyse(job)
            else:
                self._process(job)
        except (RequestFailed, StoreError, EvalscriptError) as error:
            self._fail(job, str(error))
        except _POOL_LOST:
            self._fail(job, WORKER_DIED)
        except Exception:  # noqa: BLE001 (logged; a job must not stay active for ever)
            _LOG.exception("Job %s failed by a fault of localhub", job.id)
            self._fail(job, "Internal error of localhub; see its log.")

    def _fail(self, job: Job, error: str) -> None:
        """End the job as FAILED; not while the server closes, which may be the cause: the next start tries again."""
        if not self._closing.is_set():
            self._end(job, lambda current, time: jobs.failed(current, error, time))

    def _analyse(self, job: Job) -> None:
        task = AnalysisTask(
            job.id,
            parse_create_request(job.request),
            self._store.access(job.id),
            archive_source(self._settings),
            self._scratch,
        )
        self._store.set_features(job.id, self._shop.workers.submit(analyse, task).result())
        status = self._store.change(job.id, lambda current: jobs.analysed(current, now())).status
        _LOG.info("Job %s %s", job.id, status)

    def _process(self, job: Job) -> None:
        if self._store.change(job.id, lambda current: jobs.processing(current, now())).status is not Status.PROCESSING:
            return
        started = Pass(job, self._shop)
        with self._lock:
            self._passes[job.id] = started
        try:
            reason = started.run()
        finally:
            with self._lock:
                del self._passes[job.id]
        if reason is None:
            self._end(job, jobs.done)
        else:
            self._end(job, lambda current, time: jobs.stopped(current, reason, time))

    def _end(self, job: Job, rule: Callable[[Job, datetime], Job]) -> None:
        """Give a job its last status, for good or until it is started again."""
        ended = self._store.change(job.id, lambda current: rule(current, now()))
        self._shop.shipping.settle(job.id)
        level = logging.WARNING if ended.status is Status.FAILED else logging.INFO
        _LOG.log(level, "Job %s %s: %s", job.id, ended.status, ended.error or ended.stopped_reason or "as asked")
