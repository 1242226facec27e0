"""What has to get into the buckets besides tiles in time: execution databases, and files that are delivered late.

A job may have ended and still owe some of it. Its credentials are kept until it owes nothing.
"""

import logging
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

from localhub import jobs
from localhub.executionfile import ExecutionFile
from localhub.faults import FaultBook
from localhub.jobs import Job, Status
from localhub.objectstore import Bucket
from localhub.payload import parse_create_request
from localhub.results import kept, upload
from localhub.settings import Settings
from localhub.store import Store
from localhub.timetable import Timetable

_LOG = logging.getLogger(__name__)


class Shipping:
    """Brings what jobs owe into their buckets, now or when it is due, also after a restart."""

    def __init__(self, settings: Settings, store: Store, faults: FaultBook) -> None:
        self._kept = settings.data_dir / "kept"
        self._store = store
        self._faults = faults
        self._timetable = Timetable()
        self._lock = threading.Lock()
        self._databases: dict[str, ExecutionFile] = {}

    def close(self) -> None:
        """End; what is owed is brought after the next start."""
        self._timetable.close()

    def folder(self, job_id: str, number: int) -> Path:
        """Return where a worker keeps the files of a feature that are to be delivered late."""
        return self._kept / job_id / str(number)

    def database(self, job: Job) -> ExecutionFile:
        """Return the execution database of a job in its bucket."""
        with self._lock:
            if job.id not in self._databases:
                self._databases[job.id] = ExecutionFile(
                    job, self._bucket(job), self._store, self._faults, self._timetable, lambda: self.settle(job.id)
                )
            return self._databases[job.id]

    def deliver_at(self, job: Job, number: int, due: datetime) -> None:
        """Deliver a feature's kept files when they are due."""
        seconds = (due - datetime.now(UTC)).total_seconds()
        self._timetable.after(seconds, lambda: self._deliver(job, number))

    def _deliver(self, job: Job, number: int) -> None:
        """Bring the files, then say so: in this order, so that nobody is told of files that are not there."""
        folder = self.folder(job.id, number)
        upload(kept(folder), self._bucket(job))
        self._store.delivered(job.id, number)
        shutil.rmtree(folder)
        _LOG.info("Job %s feature %d delivered late", job.id, number)
        self.database(job).publish()

    def resume(self, job: Job) -> None:
        """Take up again what a job owed when localhub ended: deliveries, and a copy that had to catch up."""
        due = self._store.deliveries(job.id)
        self._drop_unrecorded(job.id, set(due))
        for number, time in due.items():
            self.deliver_at(job, number, time)
        if (jobs.has_ended(job) or job.status is Status.STOPPED) and self._store.has_access(job.id):
            self._timetable.after(0, lambda: self._catch_up(job))

    def _catch_up(self, job: Job) -> None:
        if self._store.progress(job.id).processed:
            self.database(job).publish()
        self.settle(job.id)

    def _drop_unrecorded(self, job_id: str, recorded: set[int]) -> None:
        """Delete the files of tries that a crash has made undone."""
        for folder in (self._kept / job_id).glob("*"):
            if not folder.name.isdecimal() or int(folder.name) not in recorded:
                shutil.rmtree(folder)

    def settle(self, job_id: str) -> None:
        """Forget a job's credentials if it has ended and owes nothing."""
        job = self._store.job(job_id)
        with self._lock:
            database = self._databases.get(job_id)
            owes = self._store.deliveries(job_id) or (database is not None and database.lags)
            if job is None or not jobs.has_ended(job) or owes:
                return
            self._databases.pop(job_id, None)
        self._store.forget_access(job_id)
        shutil.rmtree(self._kept / job_id, ignore_errors=True)

    def _bucket(self, job: Job) -> Bucket:
        return Bucket(parse_create_request(job.request).template.bucket, self._store.access(job.id)["output"])
