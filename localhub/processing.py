"""One pass of a job through PROCESSING: its features go to the workers, and what becomes of them is recorded."""

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from localhub import jobs
from localhub.errors import RequestFailed, StoreError
from localhub.faults import FaultBook
from localhub.jobs import Job, StopReason
from localhub.payload import parse_create_request
from localhub.pool import PoolClosed, WorkerPool
from localhub.providers import COG_BLOCK_PX, archive_source
from localhub.settings import Settings
from localhub.shipping import Shipping
from localhub.store import Feature, Store
from localhub.worker import FeatureTask, Outcome, process_feature

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
"""How often a tile that waits for its time looks whether the faults still hold it back."""

WORKER_DIED = "A worker process ended without an answer; it may have run out of memory."


@dataclass(frozen=True, slots=True)
class Workshop:
    """What jobs are processed with."""

    settings: Settings
    store: Store
    faults: FaultBook
    workers: WorkerPool
    shipping: Shipping
    scratch: Path
    """Folder for the workers' files; emptied at every start."""
    is_closing: Callable[[], bool]
    """Whether localhub ends: a broken worker is nobody's fault then."""


class Pass:
    """From START to the end of a job, or to its stop. One thread calls `run`; any may call `look`."""

    def __init__(self, job: Job, workshop: Workshop) -> None:
        self._job = job
        self._shop = workshop
        self._task = _task_maker(job, workshop)
        self._database = workshop.shipping.database(job)
        self._news: queue.SimpleQueue[Future[Outcome] | None] = queue.SimpleQueue()
        self._running: dict[Future[Outcome], Feature] = {}
        self._finished: deque[Future[Outcome]] = deque()
        """Answers of workers that are not recorded yet."""
        self._retry: deque[Feature] = deque()
        self._last_number = 0
        self._ended = 0
        self._ended_at = -math.inf
        self._shown_at = 0.0
        self._unshown = False
        self._stop_reason: StopReason | None = None
        self._failure: str | None = None
        self._notes: dict[str, tuple[str, int]] = {}
        """What the first tile has to say of the script, and how many have, by output."""

    def look(self) -> None:
        """See to it that the pass notices what has changed: the user has acted, or localhub ends."""
        self._news.put(None)

    def run(self) -> StopReason | None:
        """Process what is pending, and return why the job stops before its end; None when it has come to it.

        The execution database has then been published, so that who sees the job's last status finds the last copy.

        Raises:
            RequestFailed: the job as a whole cannot go on; what was under way has been recorded.
            PoolClosed: localhub ends.
        """
        self._show()
        while self._hand_out():
            self._await_news()
            if self._shop.is_closing():
                raise PoolClosed
            self._record_due()
            if self._unshown and self._seconds_to_show() <= 0:
                self._show()
        self._show()
        self._log_notes()
        if self._failure is not None:
            raise RequestFailed(self._failure)
        return self._stop_reason if self._shop.store.pending(self._job.id, 0, 1) else None

    def _hand_out(self) -> bool:
        """Give the workers features, up to one each; tell whether any has still to end."""
        while len(self._running) < self._shop.settings.workers and self._may_go_on() and (feature := self._next()):
            begun = replace(feature, begun=True)
            self._shop.store.set_feature(self._job.id, begun)
            future = self._shop.workers.submit(process_feature, self._task(feature))
            self._running[future] = begun
            future.add_done_callback(self._news.put)
        return bool(self._running)

    def _may_go_on(self) -> bool:
        """Tell whether another feature may begin; a reason to stop holds until the pass has ended."""
        if self._failure is None and self._stop_reason is None:
            job = self._shop.store.job(self._job.id) or self._job
            balance_pu = self._shop.store.balance(job.account_id)
            tiles = self._ended + len(self._running)
            self._stop_reason = jobs.reason_to_stop(job, balance_pu, tiles, self._shop.faults.current)
        return self._failure is None and self._stop_reason is None

    def _next(self) -> Feature | None:
        for feature in self._shop.store.pending(self._job.id, self._last_number, 1):
            self._last_number = feature.number
            return feature
        return self._retry.popleft() if self._retry else None

    def _await_news(self) -> None:
        """Wait until a worker has answered, somebody wants to be noticed, or something is due."""
        with suppress(queue.Empty):
            future = self._news.get(timeout=self._patience())
            if future is not None:
                self._finished.append(future)

    def _patience(self) -> float | None:
        """Return how many seconds there is nothing to do unless there are news; None for ever."""
        waits = []
        if self._finished:
            waits.append(min(self._seconds_to_end(), _LOOK_SECONDS))
        if self._unshown:
            waits.append(self._seconds_to_show())
        return max(0.0, min(waits)) if waits else None

    def _record_due(self) -> None:
        """Record the answers whose time has come: all of them, unless tiles are to end one by one."""
        while self._finished and self._seconds_to_end() <= 0:
            self._record(self._finished.popleft())

    def _record(self, future: Future[Outcome]) -> None:
        """Keep what became of a feature."""
        feature = self._running.pop(future)
        try:
            outcome = future.result()
        except RequestFailed as error:
            self._failure = str(error)
        except Exception as error:
            if self._shop.is_closing():
                raise PoolClosed from error
            self._record_failure(feature, error)
        else:
            self._record_outcome(feature, outcome)

    def _record_outcome(self, feature: Feature, outcome: Outcome) -> None:
        due = None
        if outcome.late_seconds is not None:
            due = datetime.now(UTC) + timedelta(seconds=outcome.late_seconds)
        done = replace(
            feature, status="DONE", error=outcome.error, delivered=outcome.delivered, cost_pu=outcome.cost_pu
        )
        self._end(done, due)
        for note in outcome.notes:
            output = note.partition(":")[0]
            first, tiles = self._notes.get(output, (note, 0))
            self._notes[output] = first, tiles + 1
        if due is not None:
            self._shop.shipping.deliver_at(self._job, feature.number, due)

    def _log_notes(self) -> None:
        for note, tiles in self._notes.values():
            _LOG.warning("Job %s: %s (Tiles with such a note: %d, this is the first.)", self._job.id, note, tiles)

    def _record_failure(self, feature: Feature, error: Exception) -> None:
        tries = feature.tries + 1
        is_last = tries >= self._shop.settings.feature_tries
        text = WORKER_DIED if isinstance(error, BrokenProcessPool) else str(error) or type(error).__name__
        level = logging.WARNING if is_last else logging.INFO
        _LOG.log(level, "Job %s feature %s failed (try %d): %s", self._job.id, feature.tile.name, tries, text)
        if is_last and not isinstance(error, StoreError):
            self._end(replace(feature, tries=tries, status="FATAL", error=text))
            return
        failed = replace(feature, tries=tries)
        self._shop.store.set_feature(self._job.id, failed)
        if not is_last:
            self._retry.append(failed)
        else:  # the bucket cannot be written: no other feature would fare better
            self._failure = text

    def _end(self, feature: Feature, due: datetime | None = None) -> None:
        self._shop.store.end_feature(self._job, feature, due)
        self._ended += 1
        self._ended_at = time.monotonic()
        self._unshown = True

    def _seconds_to_end(self) -> float:
        """Return the time until another tile may end."""
        return self._ended_at + self._shop.faults.current.tile_seconds - time.monotonic()

    def _seconds_to_show(self) -> float:
        return self._shown_at + self._shop.settings.upload_seconds - time.monotonic()

    def _show(self) -> None:
        """Publish the execution database; a bucket that does not take it fails the job."""
        try:
            self._database.publish()
        except StoreError as error:
            self._failure = str(error)
        self._shown_at = time.monotonic()
        self._unshown = False


def _task_maker(job: Job, shop: Workshop) -> Callable[[Feature], FeatureTask]:
    """Return what makes the workers' tasks of a job's features."""
    request = parse_create_request(job.request)
    access = shop.store.access(job.id)["output"]
    settings = shop.settings

    def task(feature: Feature) -> FeatureTask:
        return FeatureTask(
            job_id=job.id,
            request=request,
            access=access,
            tile=feature.tile,
            begun=feature.begun,
            archive=archive_source(settings),
            cog_block_px=COG_BLOCK_PX[settings.provider],
            scratch=shop.scratch,
            block_bytes=settings.block_mb * 2**20,
            deliver_zeros=settings.no_data_output == "zeros",
            kept=shop.shipping.folder(job.id, feature.number),
            tries=feature.tries,
            faults=shop.faults.current.of_tile(feature.tile.name),
        )

    return task
