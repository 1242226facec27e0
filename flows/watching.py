"""What people see of a run while it goes on: lines of its log, artifacts that are kept up to date, and events.

The log tells the story in few lines, however many tiles there are: figures stand in artifacts, and what failed is
grouped by its reason.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from httpx import HTTPError
from prefect.logging import get_run_logger

from flows.events import emit
from flows.follow import CONVERSION, LABELLING, PROCESSING, Pipeline
from flows.progress import Progress, current_listener, listening, log_progress, tell
from tasks.errors import BudgetExceeded
from tasks.ledger import TileState
from tasks.reasons import Failures, kind_of
from tasks.report import Board, status_map
from tasks.service import Job

PROGRESS_SECONDS, MAP_SECONDS = 15.0, 60.0
"""How often the artifacts of progress, and of tiles, are renewed at most."""
MAP_SHARE = 0.05
"""Share of the run's time that drawing maps may take."""
SAME_NOTE_SECONDS = 600.0
"""A note that differs from an earlier one in figures alone is not logged again for so long."""
STEPS = 10
"""Lines of log between nothing and all tiles."""


# ---- the log ----


class Story:
    """Lines of log about a run's stages: tiles in ten steps, notes when they say something new."""

    def __init__(self, last_stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._last_stage = last_stage
        self._clock = clock
        self._begin = clock()
        self._done: dict[str, int] = {}
        self._step = 0
        self._noted: dict[str, float] = {}

    def line(self, progress: Progress) -> str:
        """Give the line that tells of a change, or nothing when it is not worth one."""
        if progress.stage == PROCESSING and PROCESSING not in self._done:
            self._begin = self._clock()  # before that, a person may have thought about the price for hours
        self._done[progress.stage] = progress.done
        if progress.stage == self._last_stage:
            return self._tiles(progress)
        if progress.stage == PROCESSING:
            return self._note(progress)
        return ""

    def _tiles(self, progress: Progress) -> str:
        step = STEPS * progress.done // max(progress.total, 1)
        if step == self._step:
            return ""
        self._step = step
        before = [
            f"{self._done[stage]:,} {word}"
            for stage, word in ((CONVERSION, "converted"), (PROCESSING, "processed"))
            if stage != self._last_stage and self._done.get(stage, 0) > progress.done
        ]
        counts = ", ".join([f"{progress.done:,} of {progress.total:,} tiles done", *before])
        return f"{counts}; {pace(progress.done, progress.total, self._clock() - self._begin)}"

    def _note(self, progress: Progress) -> str:
        kind, now = re.sub(r"[\d.,]+", "#", progress.note), self._clock()
        if not progress.note or now - self._noted.get(kind, -SAME_NOTE_SECONDS) < SAME_NOTE_SECONDS:
            return ""
        self._noted[kind] = now
        return f"Request: {progress.done:,} of {progress.total:,} tiles processed, {progress.note}"


def pace(done: int, total: int, seconds: float) -> str:
    """Say how fast tiles go, and for how long still."""
    rate = done / max(seconds, 1e-3)
    a_minute = f"{rate * 60:,.3g} tiles a minute"
    if done >= total or not done:
        return a_minute
    return f"{a_minute}, about {_span((total - done) / rate)} left"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tell_request(job: Job) -> None:
    """Log which request does the work, and whether it is a new one."""
    tell("Request", note=f"{job.id} {f'found, {job.status}: no other one is made' if job.found else 'created'}")


# ---- a run that goes on ----


@dataclass
class _Due:
    """When something is to be done again."""

    every: float
    at: float = 0.0

    def now(self) -> bool:
        return time.monotonic() >= self.at

    def done(self, took: float = 0.0) -> None:
        self.at = time.monotonic() + max(self.every, took / MAP_SHARE)


class Watcher:
    """Listens to a run; see :func:`shown`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.board = Board(pipeline.order.parameters.area.name)
        self.failures = Failures()
        self._pipeline = pipeline
        self._outer = current_listener()
        self._story = Story(CONVERSION if pipeline.reference is None else LABELLING)
        self._progress_due, self._map_due = _Due(PROGRESS_SECONDS), _Due(MAP_SECONDS)

    def hear(self, progress: Progress) -> None:
        """Pass on what is told, and renew artifacts that are due."""
        if progress.tile:
            self._failed(progress)
        elif self._outer is not None:
            self._outer(progress)
        elif progress.stage in {PROCESSING, CONVERSION, LABELLING}:
            if line := self._story.line(progress):
                get_run_logger().info(line)
        else:
            log_progress(progress)
        self._renew()

    def close(self) -> None:
        """Tell what failed, grouped, and how far it came."""
        ended = Failures()
        for record in self._pipeline.records.values():
            if record.state is TileState.FAILED:
                ended.add(record.tile.name, record.reason)
        if self._outer is None:
            for line in ended.lines():
                get_run_logger().warning(line)
        self._progress_due.at = 0.0
        self._renew()

    def show_progress(self) -> None:
        """Renew the artifact of progress."""
        records = self._pipeline.records.values()
        goal = self._pipeline.order.goal
        ends = {goal, TileState.LABELLED, TileState.NO_DATA, TileState.FAILED}
        done = sum(record.state in ends for record in records)
        about = f"{self._pipeline.order.title}: {done:,} of {len(records):,} tiles have ended"
        failed = sum(record.state is TileState.FAILED for record in records)
        self.board.progress(100 * done / max(len(records), 1), about + (f", {failed:,} failed" if failed else ""))

    def _failed(self, progress: Progress) -> None:
        text = self.failures.add(progress.tile, progress.note)
        if not text:
            return
        if self._outer is None:
            get_run_logger().warning(text)
        else:
            self._outer(Progress(progress.stage, note=text, tile=progress.tile))
        kind = kind_of(progress.note, progress.tile)
        names = self.failures.tiles[kind]
        emit(self._pipeline.order, "tile.failed", reason=kind, tiles=len(names), examples=names[:5])

    def _renew(self) -> None:
        """Renew what is due; a server that does not take it is no reason to end a run."""
        try:
            if self._progress_due.now():
                self._progress_due.done()
                self.show_progress()
            if self._map_due.now():
                begin = time.monotonic()
                self._show_tiles()
                self._map_due.done(time.monotonic() - begin)
        except HTTPError as error:
            self._map_due.done()
            get_run_logger().warning("Artifacts could not be renewed: %r. The run goes on.", error)

    def _show_tiles(self) -> None:
        order, records = self._pipeline.order, list(self._pipeline.records.values())
        if records:
            self.board.tiles(order.title, records, status_map(records, order.area, order.title))


@contextmanager
def shown(pipeline: Pipeline) -> Iterator[Board]:
    """Show the run within the block to people, by log, artifacts and events; its artifacts, for the end."""
    watcher = Watcher(pipeline)
    with listening(watcher.hear):
        try:
            yield watcher.board
        except BudgetExceeded as error:
            emit(pipeline.order, "budget.exceeded", message=str(error))
            raise
        finally:
            watcher.close()
