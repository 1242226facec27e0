"""The work behind the API: a thread for each active job feeds the worker processes and records what they say."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from localhub import jobs
from localhub.analysis import AnalysisTask, analyse
from localhub.errors import RequestFailed, StoreError
from localhub.faults import FaultBook
from localhub.featurefiles import execution_database
from localhub.jobs import Action, Job, Status
from localhub.objectstore import Bucket
from localhub.payload import parse_create_request
from localhub.pool import PoolClosed, WorkerPool
from localhub.providers import archive_source
from localhub.settings import Settings
from localhub.store import Feature, Store
from localhub.worker import FeatureTask, Outcome, process_feature

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
_ANALYSIS_TRIES = 3
_WORKER_DIED = "A worker process ended without an answer; it may have run out of memory."
_POOL_LOST = (BrokenProcessPool, CancelledError, PoolClosed)


def now() -> datetime:
    """Return the time, aware, UTC."""
    return datetime.now(UTC)


@dataclass
class _Run:
    """One pass of a job through PROCESSING."""

    job: Job
    task: Callable[[Feature], FeatureTask]
    bucket: Bucket
    execution_key: str
    running: dict[Future[Outcome], Feature] = field(default_factory=dict)
    retry: list[Feature] = field(default_factory=list)
    last_number: int = 0
    last_upload: float = 0.0


class Runner:
    """Carries jobs on. `wake` it after every user action; it resumes what was active when it starts."""

    def __init__(self, settings: Settings, store: Store, faults: FaultBook) -> None:
        self._settings = settings
        self._store = store
        self._faults = faults
        self._scratch = settings.data_dir / "scratch"
        self._pool: WorkerPool | None = None
        self._active: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def start(self) -> None:
        """Start the workers, clear what a crash has left, and resume every active job."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._pool = WorkerPool(self._settings.workers)
        for job in self._store.all_jobs():
            self.wake(job.id)

    def close(self) -> None:
        """End workers and threads at once; the jobs go on at the next start."""
        self._closing.set()
        self._workers.close()
        with self._lock:
            threads = list(self._active.values())
        for thread in threads:
            thread.join()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _workers(self) -> WorkerPool:
        if self._pool is None:
            raise RuntimeError("The runner has not been started.")
        return self._pool

    def wake(self, job_id: str) -> None:
        """See to it that a job with something to do has a thread."""
        with self._lock:
            if job_id not in self._active and self._next(job_id) and not self._closing.is_set():
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
        except (RequestFailed, StoreError) as error:
            self._fail(job, str(error))
        except _POOL_LOST:
            self._fail(job, _WORKER_DIED)
        except Exception:  # noqa: BLE001 (logged; a job must not stay active for ever)
            _LOG.exception("Job %s failed by a fault of localhub", job.id)
            self._fail(job, "Internal error of localhub; see its log.")

    def _fail(self, job: Job, error: str) -> None:
        """End the job as FAILED; not while the server closes, which may be the cause: the next start tries again."""
        if self._closing.is_set():
            return
        self._store.change(job.id, lambda current: jobs.failed(current, error, now()))
        self._store.forget_access(job.id)
        _LOG.warning("Job %s FAILED: %s", job.id, error)

    def _analyse(self, job: Job) -> None:
        task = AnalysisTask(
            job.id,
            parse_create_request(job.request),
            self._store.access(job.id),
            archive_source(self._settings),
            self._scratch,
        )
        self._store.set_features(job.id, self._analysed(task))
        status = self._store.change(job.id, lambda current: jobs.analysed(current, now())).status
        _LOG.info("Job %s %s", job.id, status)

    def _analysed(self, task: AnalysisTask) -> list[Feature]:
        """Analyse in a worker; again when the pool broke, which another job may have caused."""
        for _ in range(_ANALYSIS_TRIES - 1):
            try:
                return self._workers.submit(analyse, task).result()
            except BrokenProcessPool:
                if self._closing.is_set():
                    raise
        return self._workers.submit(analyse, task).result()

    def _process(self, job: Job) -> None:
        if self._store.change(job.id, lambda current: jobs.processing(current, now())).status is not Status.PROCESSING:
            return
        run = self._run(job)
        self._upload_execution(run)
        while self._feed(run):
            finished, _ = wait(run.running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                self._record(run, future)
            if finished and time.monotonic() - run.last_upload >= self._settings.upload_seconds:
                self._upload_execution(run)
        self._upload_execution(run)
        self._end(job)

    def _run(self, job: Job) -> _Run:
        request = parse_create_request(job.request)
        access = self._store.access(job.id)["output"]
        settings = self._settings

        def task(feature: Feature) -> FeatureTask:
            return FeatureTask(
                job_id=job.id,
                request=request,
                access=access,
                tile=feature.tile,
                begun=feature.begun,
                archive=archive_source(settings),
                scratch=self._scratch,
                block_bytes=settings.block_mb * 2**20,
                deliver_zeros=settings.no_data_output == "zeros",
            )

        template = request.template
        return _Run(job, task, Bucket(template.bucket, access), f"{template.root}execution-{job.id}.sqlite")

    def _feed(self, run: _Run) -> bool:
        """Give the workers features up to one each, none after a STOP; tell whether any are running."""
        if not self._is_stopping(run.job.id):
            while len(run.running) < self._settings.workers and (feature := self._next_feature(run)):
                begun = replace(feature, begun=True)
                self._store.set_feature(run.job.id, begun)
                run.running[self._workers.submit(process_feature, run.task(feature))] = begun
        return bool(run.running)

    def _is_stopping(self, job_id: str) -> bool:
        job = self._store.job(job_id)
        return job is not None and job.action is Action.STOP

    def _next_feature(self, run: _Run) -> Feature | None:
        for feature in self._store.pending(run.job.id, run.last_number, 1):
            run.last_number = feature.number
            return feature
        return run.retry.pop(0) if run.retry else None

    def _record(self, run: _Run, future: Future[Outcome]) -> None:
        """Keep what became of a feature. Raises when the job as a whole cannot go on, or the server closes."""
        feature = run.running.pop(future)
        try:
            outcome = future.result()
        except RequestFailed:
            raise
        except Exception as error:
            if self._closing.is_set():
                raise PoolClosed from error
            self._record_failure(run, feature, error)
            return
        self._store.set_feature(
            run.job.id,
            replace(
                feature,
                status="DONE",
                error=outcome.error,
                delivered=outcome.delivered,
                cost_pu=outcome.cost_pu,
            ),
        )

    def _record_failure(self, run: _Run, feature: Feature, error: Exception) -> None:
        tries = feature.tries + 1
        text = _WORKER_DIED if isinstance(error, BrokenProcessPool) else str(error) or type(error).__name__
        _LOG.warning("Job %s feature %s failed (try %d): %s", run.job.id, feature.tile.name, tries, text)
        if tries < self._settings.feature_tries:
            failed = replace(feature, tries=tries)
            run.retry.append(failed)
        elif isinstance(error, StoreError):
            raise RequestFailed(text) from error
        else:
            failed = replace(feature, tries=tries, status="FATAL", error=text)
        self._store.set_feature(run.job.id, failed)

    def _upload_execution(self, run: _Run) -> None:
        run.bucket.write(run.execution_key, execution_database(self._store.features(run.job.id)))
        run.last_upload = time.monotonic()

    def _end(self, job: Job) -> None:
        """Finish the job: DONE when nothing is pending, even if STOP came last; else STOPPED."""
        if self._store.pending(job.id, 0, 1):
            self._store.change(job.id, lambda current: jobs.stopped(current, now()))
        else:
            self._store.change(job.id, lambda current: jobs.done(current, now()))
            self._store.forget_access(job.id)
        _LOG.info("Job %s ended", job.id)
