"""Following a job: each tile is converted when it has been delivered, and labelled when it has been converted.

The flow sleeps between two looks at the job; no task does. Tiles in flight are bounded, whatever the number of tiles.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque

from flows.order import Order
from flows.progress import tell, tell_failure
from flows.spending import Spending
from flows.workers import LOST, Workers
from tasks.conversion import ConversionRecord, TileFiles, convert, convert_chunk
from tasks.errors import DeliveryError, EopatchFlowError, TileError, Unavailable
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.quality import LabelQuality
from tasks.reference import LabelRecord, PreparedReference, rasterise_chunk, rasterise_reference
from tasks.service import Job
from tasks.tiles import Manifest, Snapshot, TileStatus, is_current, left_seconds, merged, poll, poll_seconds

PROCESSING, CONVERSION, LABELLING = "Process", "Convert", "Label"
"""Names of the stages that a person watches."""


MAX_TASK_RUNS = 1000
"""Task runs of a stage; beyond so many tiles, one run does several: each costs the Prefect server some milliseconds."""

DIED_TWICE = (
    "the process that worked on it died twice, the second time with no other tile at work, probably for want of "
    "memory. Give the machine more, or choose a coarser resolution or a shorter period."
)

T = TypeVar("T")


def _taken(queue: deque[T], count: int) -> list[T]:
    """Take the first items of a queue, up to ``count``."""
    return [queue.popleft() for _ in range(min(count, len(queue)))]


class Pipeline:
    """Converts and labels tiles as they are offered, a bounded number at a time.

    Args:
        order: what was asked for.
        reference: prepared polygons; None without.
        records: what exists already, one a tile.
    """

    def __init__(self, order: Order, reference: PreparedReference | None, records: Iterable[TileRecord]) -> None:
        self.order = order
        self.reference = reference
        self.records = {record.tile.name: record for record in records}
        self.request_id = ""
        self._offered: deque[tuple[Tile, TileFiles]] = deque()
        self._unlabelled: deque[Tile] = deque()
        self._alone: deque[Callable[[], None]] = deque()
        self._lost: set[str] = set()
        self._workers = Workers(order.parameters.run)
        self._running: dict[UUID, tuple[PrefectFuture[Any], Sequence[tuple[Tile, Callable[[], None]]]]] = {}
        self._ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
        self._total = {CONVERSION: 0, LABELLING: 0}  # tiles that this run has to do
        self._done = {CONVERSION: 0, LABELLING: 0}
        self.converted = 0
        self.labelled = 0
        self.touched: set[str] = set()
        self.quality: dict[str, LabelQuality] = {}
        self.damaged: set[str] = set()
        self.repairs: list[Job] = []
        self._first_reasons: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._workers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no more tiles, and wait for those in flight: the work is not given back while they are written.

        What has ended already is not asked for: a signal may have cut off whoever was about to note it.
        """
        try:
            for future, _ in self._running.values():
                with suppress(Exception):  # of workers that were lost; the end of the run tells of those
                    future.wait()
        finally:
            self._workers.__exit__(kind, error, trace)

    @property
    def pending(self) -> list[Tile]:
        """Tiles that have to be delivered."""
        return self.in_state(TileState.PENDING)

    def adopt(self, manifest: Manifest) -> None:
        """Take the request's tiles for the planned ones: the service's rule is binding.

        Planned tiles that the request does not have fail.
        """
        planned = self.records
        ordered = {tile.name: self._ordered(tile) for tile in manifest.tiles}
        kept = {name: record for name, record in planned.items() if record.state is not TileState.PENDING}
        self.records = planned | ordered | kept
        self._expect(CONVERSION, len(self.pending))
        self._expect(LABELLING, len(self.pending))
        for name in sorted(planned.keys() - ordered.keys() - kept.keys()):
            reason = f"Request {self.request_id} does not have it, though it overlaps the area"
            self.close(planned[name].tile, TileState.FAILED, reason)

    def _ordered(self, tile: Tile) -> TileRecord:
        planned = self.records.get(tile.name)
        return replace(planned, tile=tile) if planned is not None else TileRecord(tile, TileState.PENDING)

    def in_state(self, *states: TileState) -> list[Tile]:
        """Tiles that are in one of ``states``."""
        return [record.tile for record in self.records.values() if record.state in states]

    def resume(self) -> None:
        """Label what an earlier run has converted but not labelled."""
        tiles = self.in_state(TileState.CONVERTED) if self.reference is not None else []
        self._expect(LABELLING, len(tiles))
        self._unlabelled.extend(tiles)
        self._start()

    def offer(self, tile: Tile, files: TileFiles) -> None:
        """Take a delivered tile to be converted."""
        self.note(tile, state=TileState.PROCESSED, attempts=self.records[tile.name].attempts + 1)
        self._offered.append((tile, files))

    def reopen(self, names: Iterable[str]) -> None:
        """Have failed tiles delivered by another request; the reasons are kept."""
        for name in names:
            record = self.records[name]
            self.damaged.discard(name)
            self._first_reasons[name] = record.reason
            self.note(record.tile, state=TileState.PENDING, reason="", attempts=max(record.attempts, 1))

    def close(self, tile: Tile, state: TileState, reason: str, *, damaged: bool = False) -> None:
        """Record that there will be no EOPatch for a tile: it failed, or has no data.

        Args:
            tile: which one.
            state: its end.
            reason: why.
            damaged: whether it may help to order it again.
        """
        if damaged:
            self.damaged.add(tile.name)
        if state is TileState.FAILED and tile.name in self._first_reasons:
            reason = f"{self._first_reasons[tile.name].rstrip('.')}; ordered again: {reason}"
            self.note(tile, attempts=max(self.records[tile.name].attempts, 2))
        if self.records[tile.name].state is not TileState.CONVERTED:
            self._count(CONVERSION)
        self._count(LABELLING)
        self.note(tile, state=state, reason=reason)
        if state is TileState.FAILED:
            tell_failure(tile.name, reason)

    def note(self, tile: Tile, **changes: Any) -> None:
        """Change the record of a tile."""
        self.records[tile.name] = replace(self.records[tile.name], **changes)

    def work_until(self, deadline: float) -> None:
        """Convert and label until a point of time (of the monotonic clock)."""
        self._start()
        while (left := deadline - time.monotonic()) > 0:
            try:
                future = self._ended.get(timeout=left)
            except Empty:
                return
            self._conclude(future)
            self._start()

    def work_until_empty(self) -> None:
        """Convert and label all that has been offered."""
        self._start()
        while self._running:
            self._conclude(self._ended.get())
            self._start()

    def _start(self) -> None:
        """Label what is converted, and convert what is offered: as many task runs as may be in flight."""
        if self._running and (self._workers.broken or self._alone):
            return
        self._workers.renew()
        if self._alone:
            self._alone.popleft()()
            return
        at_once = self.order.parameters.run.tiles_at_once
        while self._unlabelled and len(self._running) < at_once:
            self._label(_taken(self._unlabelled, self._chunk_size))
        while self._offered and len(self._running) < at_once:
            share = math.ceil(len(self._offered) / (at_once - len(self._running)))
            self._convert(_taken(self._offered, min(self._chunk_size, share)))

    @property
    def _chunk_size(self) -> int:
        """Tiles of one task run: one, unless there are too many of them."""
        return math.ceil(len(self.records) / MAX_TASK_RUNS)

    def _convert(self, chunk: Sequence[tuple[Tile, TileFiles]]) -> None:
        parameters, tiles = self.order.parameters, [tile for tile, _ in chunk]
        urls = [self.order.patch_url(tile) for tile in tiles]
        common: dict[str, Any] = {
            "storage": parameters.storage,
            "mapping": self.order.mapping,
            "options": parameters.patches,
            "provenance": self.order.provenance(self.request_id),
        }
        submit = self._workers.submit
        if len(chunk) == 1:
            future = submit(convert, tile=tiles[0], delivered=chunk[0][1], patch_url=urls[0], **common)
        else:
            files = [files for _, files in chunk]
            lists = {"tiles": opaque(tiles), "delivered": opaque(files), "patch_urls": opaque(urls)}
            future = submit(convert_chunk, **lists, **common)
        self._watch(tiles, future, [partial(self._convert, [one]) for one in chunk])

    def _label(self, tiles: Sequence[Tile]) -> None:
        parameters = self.order.parameters
        urls = [self.order.patch_url(tile) for tile in tiles]
        common: dict[str, Any] = {
            "prepared": self.reference,
            "storage": parameters.storage,
            "file_format": parameters.patches.file_format,
        }
        submit = self._workers.submit
        if len(tiles) == 1:
            future = submit(rasterise_reference, tile=tiles[0], patch_url=urls[0], **common)
        else:
            future = submit(rasterise_chunk, tiles=opaque(tiles), patch_urls=opaque(urls), **common)
        self._watch(tiles, future, [partial(self._label, [tile]) for tile in tiles])

    def _watch(self, tiles: Sequence[Tile], future: PrefectFuture[Any], again: Sequence[Callable[[], None]]) -> None:
        self._running[future.task_run_id] = future, list(zip(tiles, again, strict=True))
        future.add_done_callback(self._ended.put)

    def _conclude(self, future: PrefectFuture[Any]) -> None:
        """Record what became of tiles' conversion or label, or have them done again, each alone."""
        _, tiles = self._running.pop(future.task_run_id)
        outcome = self._workers.outcome(future)
        if outcome is LOST:
            for tile, again in tiles:
                self._lose(tile, again)
            return
        outcomes = outcome if isinstance(outcome, list) else [outcome] * len(tiles)
        for (tile, _), one in zip(tiles, outcomes, strict=True):
            self._conclude_tile(tile, one)

    def _lose(self, tile: Tile, again: Callable[[], None]) -> None:
        """Do a tile again whose process died; one that dies with no other tile at work will not do better."""
        if tile.name in self._lost:
            self._conclude_tile(tile, TileError(f"Tile {tile.name}: {DIED_TWICE}"))
            return
        self._lost.add(tile.name)
        self._alone.append(again)

    def _conclude_tile(self, tile: Tile, outcome: object) -> None:
        self.touched.add(tile.name)
        self._lost.discard(tile.name)
        record = self.records[tile.name]
        match outcome:
            case ConversionRecord(outcome="no data", bytes_written=0):
                self._bill(tile, outcome.samples)
                self.close(tile, TileState.NO_DATA, "No valid sample in the period")
            case ConversionRecord():
                self._bill(tile, outcome.samples)
                self._converted(tile, outcome)
            case LabelRecord():
                self._labelled(record, outcome)
            case _:
                told = isinstance(outcome, EopatchFlowError)
                damaged = isinstance(outcome, DeliveryError)
                self.close(tile, TileState.FAILED, str(outcome) if told else repr(outcome), damaged=damaged)

    def _bill(self, tile: Tile, samples: int | None) -> None:
        """Record what the service charges for a tile."""
        self.records[tile.name] = self.order.billed(self.records[tile.name], samples)

    def _converted(self, tile: Tile, outcome: ConversionRecord) -> None:
        self.converted += 1
        self._count(CONVERSION)
        if outcome.note:
            tell(CONVERSION, self._done[CONVERSION], self._total[CONVERSION], f"{tile.name}: {outcome.note}")
        self.note(
            tile,
            state=TileState.CONVERTED,
            bytes_read=outcome.bytes_read,
            bytes_written=outcome.bytes_written,
            seconds=outcome.seconds,
        )
        if self.reference is not None:
            self._unlabelled.append(tile)

    def _labelled(self, record: TileRecord, outcome: LabelRecord) -> None:
        self.labelled += 1
        self._count(LABELLING)
        self.quality[outcome.tile] = outcome.quality
        written, seconds = record.bytes_written + outcome.bytes_written, record.seconds + outcome.seconds
        self.note(record.tile, state=TileState.LABELLED, bytes_written=written, seconds=seconds)

    def _expect(self, stage: str, tiles: int) -> None:
        if stage == CONVERSION or self.reference is not None:
            self._total[stage] += tiles

    def _count(self, stage: str) -> None:
        """Tell that one more tile has come through a stage, or will not."""
        if self._total[stage]:
            self._done[stage] += 1
            tell(stage, self._done[stage], self._total[stage])


def follow(pipeline: Pipeline, job: Job, manifest: Manifest, check: Callable[[], None], paid_pu: float = 0.0) -> Job:
    """Hand over each tile to the pipeline once it is delivered, until all tiles have an end; the job's last state.

    Args:
        pipeline: converts and labels.
        job: as it was started.
        manifest: its tiles and files.
        check: raises when the run has to end, and is called at each look at the job.
        paid_pu: what earlier requests for the same work have cost, processing units.

    Raises:
        Unavailable: the service has not answered for ``run.patience_minutes``; the job goes on without us.
        BudgetExceeded: the job costs more than ``limits.max_pu`` allows, or will have before the next look.
    """
    pipeline.request_id = job.id
    pipeline.adopt(manifest)
    watch = Watch(pipeline, job, manifest, paid_pu)
    while True:
        check()
        pause = watch.look()
        if watch.over:
            return watch.job
        pipeline.work_until(time.monotonic() + pause)


class Watch:
    """What is known of a job and its tiles, look after look.

    Args:
        pipeline: takes what has been delivered.
        job: as it was started.
        manifest: its tiles and files.
        paid_pu: what earlier requests for the same work have cost, processing units.
    """

    def __init__(self, pipeline: Pipeline, job: Job, manifest: Manifest, paid_pu: float = 0.0) -> None:
        self.job = job
        self.over = False
        self._pipeline = pipeline
        self._manifest = manifest
        self._names = {tile.name for tile in manifest.tiles}
        self._tiles: dict[str, TileStatus] = {}
        self._spending = Spending(paid_pu)
        self._jitter = random.Random(job.id)  # noqa: S311 - spreads polls, and is the same each time
        self._begin = self._answered = self._moved = time.monotonic()
        self._failures = 0
        self._told = ""

    def look(self) -> float:
        """Ask once, hand over what has come, and give the seconds to the next look; errors as in :func:`follow`."""
        order = self._pipeline.order
        snapshot: Snapshot = poll(order.parameters.storage, order.parameters.service, self.job)
        now = time.monotonic()
        self._note(snapshot, now)
        open_tiles = self._pipeline.pending
        self._tell(len(open_tiles), snapshot.problem, now)
        self._failures = self._failures + 1 if snapshot.problem else 0
        elapsed = now - self._begin
        pause = poll_seconds(
            elapsed,
            order.parameters.run.poll_seconds,
            left_seconds=left_seconds(elapsed, self._tiles, len(self._names)),
            failures=self._failures,
            retry_after=snapshot.retry_after_seconds,
            jitter=self._jitter.random(),
        )
        self.over = not open_tiles
        if open_tiles:
            self._judge(open_tiles, snapshot.problem, now)
        if not self.over:
            self._spending.check(self.job, now, pause, order.parameters.limits)
        return pause

    def _note(self, snapshot: Snapshot, now: float) -> None:
        """Keep what a snapshot tells: a copy of the database that has other tiles is another request's."""
        settled, percent = 0, self.job.percent
        self.job = snapshot.job
        if snapshot.tiles.keys() <= self._names:
            self._tiles = merged(self._tiles, snapshot.tiles)
            settled = settle(self._pipeline, self._tiles, self._manifest)
        if settled or not (snapshot.problem or self.job.ended):
            self._answered = now
        if settled or self.job.percent != percent:
            self._moved = now

    def _judge(self, open_tiles: list[Tile], problem: str, now: float) -> None:
        """End the watch when nothing more will come, or nobody answers."""
        minutes = self._pipeline.order.parameters.run.patience_minutes
        is_late = now - self._answered > minutes * 60
        complete = is_current(self.job, self._tiles, len(self._names))
        if (self.job.status in {"FAILED", "STOPPED"} and complete and not problem) or (self.job.ended and is_late):
            _give_up(self._pipeline, open_tiles, self.job)
            self.over = True
        elif is_late:
            raise Unavailable(
                f"No answer for {minutes:g} minutes ({problem}). Request {self.job.id} goes on; run again to take "
                "it up."
            )

    def _tell(self, open_tiles: int, problem: str, now: float) -> None:
        """Tell how far the job is; the note is not told again while it stays the same."""
        total = len(self._names)
        cost = f", {self.job.cost_pu:,.0f} PU so far" if self.job.cost_pu else ""
        note = problem or f"{self.job.status}{cost}{self._standstill(now)}"
        tell(PROCESSING, total - open_tiles, total, "" if note == self._told else note)
        self._told = note

    def _standstill(self, now: float) -> str:
        """Say that a job has not come any further for longer than patience allows; once for each such time."""
        minutes = self._pipeline.order.parameters.run.patience_minutes
        times = 0 if self.job.ended else int((now - self._moved) / 60 / minutes)
        return f", no progress for {times * minutes:g} minutes" if times else ""


def settle(pipeline: Pipeline, tiles: Mapping[str, TileStatus], manifest: Manifest) -> int:
    """Offer what has been delivered, record what has no data or failed; the number of tiles that moved on."""
    moved = 0
    for tile in pipeline.pending:
        status = tiles.get(tile.name)
        if status is not None and _settle_tile(pipeline, tile, status, manifest):
            moved += 1
    return moved


def _settle_tile(pipeline: Pipeline, tile: Tile, status: TileStatus, manifest: Manifest) -> bool:
    order = pipeline.order
    if status.status == "FATAL":
        pipeline.note(tile, price_pu=0.0)  # FATAL is free
        pipeline.close(tile, TileState.FAILED, f"The service could not process it: {status.error}", damaged=True)
    elif status.empty and order.parameters.patches.keep_empty:
        pipeline.offer(tile, order.files({}))
    elif status.empty:
        pipeline.note(tile, samples=0, price_pu=0.0)
        pipeline.close(tile, TileState.NO_DATA, "No scene in the period")
    elif status.ready:
        pipeline.offer(tile, order.files(manifest.paths[tile.name]))
    else:
        return False
    return True


def _give_up(pipeline: Pipeline, tiles: list[Tile], job: Job) -> None:
    reason = f"Request {job.id} ended {job.status}{f' ({job.reason})' if job.reason else ''} without delivering it"
    for tile in tiles:
        pipeline.close(tile, TileState.FAILED, reason, damaged=job.status == "DONE")
