"""The execution database of a job in its bucket, with what is wrong with it on demand."""

import threading
from collections.abc import Callable

from localhub.faults import FaultBook
from localhub.featurefiles import execution_database, execution_key
from localhub.jobs import Job
from localhub.objectstore import Bucket
from localhub.payload import parse_create_request
from localhub.store import Store
from localhub.timetable import Timetable

_MEND_SECONDS = 0.5
"""Time after which a torn copy is replaced, if nothing replaces it before."""


class ExecutionFile:
    """The copies that a job's bucket gets, one after the other; it never goes back to an older one.

    Each copy is made of what localhub remembers, and none is ever read: a fault of the copy gets no further.

    Args:
        job: whose database it is.
        bucket: where it goes.
        caught_up: is called after an upload that leaves nothing to be shown, from any thread.
    """

    def __init__(
        self,
        job: Job,
        bucket: Bucket,
        store: Store,
        faults: FaultBook,
        timetable: Timetable,
        caught_up: Callable[[], None],
    ) -> None:
        self._job_id = job.id
        self._root = parse_create_request(job.request).template.root
        self._bucket = bucket
        self._store = store
        self._faults = faults
        self._timetable = timetable
        self._caught_up = caught_up
        self._lock = threading.Lock()
        self._made = 0
        self._shown = 0
        self._uploads = 0
        self._torn = False

    @property
    def lags(self) -> bool:
        """Whether the copy in the bucket is torn, or older than the last one that was published."""
        with self._lock:
            return self._torn or self._shown < self._made

    def publish(self) -> None:
        """Bring what is true now into the bucket: at once, or later where the copy is to lag."""
        with self._lock:
            content = execution_database(self._store.features(self._job_id))
            self._made += 1
            number = self._made
        stale_seconds = self._faults.current.database.stale_seconds
        if stale_seconds:
            self._timetable.after(stale_seconds, lambda: self._show(number, content))
        else:
            self._show(number, content)

    def _show(self, number: int, content: bytes) -> None:
        """Upload a copy unless a newer one has been; the first ones torn if told so, and then again."""
        with self._lock:
            if number <= self._shown:
                return
            fault = self._faults.current.database
            self._shown = number
            self._torn = self._uploads < fault.torn_uploads
            self._uploads += 1
            key = execution_key(self._root, self._job_id, fault.place)
            self._bucket.write(key, content[: len(content) // 2] if self._torn else content)
        if self._torn:
            self._timetable.after(_MEND_SECONDS, self.publish)
        elif not self.lags:
            self._caught_up()
