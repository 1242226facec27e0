"""Following a job: each tile is converted when it has been delivered, and labelled when it has been converted.

The flow sleeps between two looks at the job; no task does. Tiles in flight are bounded, whatever the number of tiles.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from prefect import unmapped
from prefect.futures import PrefectFuture

from flows.order import Order
from flows.progress import tell
from tasks.conversion import ConversionRecord, TileFiles, convert
from tasks.errors import EopatchFlowError, Unavailable
from tasks.evalscript import USERDATA
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.reference import LabelRecord, PreparedReference, rasterise_reference
from tasks.service import Job
from tasks.tiles import Manifest, Snapshot, TileStatus, poll, poll_seconds

PROCESSING, CONVERSION, LABELLING = "Process", "Convert", "Label"
"""Names of the stages that a person watches."""


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
        self._running: dict[UUID, Tile] = {}
        self._ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
        self._total = {CONVERSION: 0, LABELLING: 0}  # tiles that this run has to do
        self._done = {CONVERSION: 0, LABELLING: 0}
        self.converted = 0
        self.labelled = 0
        self.touched: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no more tiles, and wait for those in flight: the work is not given back while they are written."""
        while self._running:
            self._running.pop(self._ended.get().task_run_id)

    @property
    def pending(self) -> list[Tile]:
        """Tiles that have to be delivered."""
        return self.in_state(TileState.PENDING)

    def adopt(self, manifest: Manifest) -> None:
        """Take the request's tiles for the planned ones: the service's rule is binding.

        Planned tiles that the request does not have fail.
        """
        planned, ordered = self.records, {tile.name: TileRecord(tile, TileState.PENDING) for tile in manifest.tiles}
        kept = {name: record for name, record in planned.items() if record.state is not TileState.PENDING}
        self.records = planned | ordered | kept
        self._expect(CONVERSION, len(self.pending))
        self._expect(LABELLING, len(self.pending))
        for name in sorted(planned.keys() - ordered.keys() - kept.keys()):
            reason = f"Request {self.request_id} does not have it, though it overlaps the area"
            self.close(planned[name].tile, TileState.FAILED, reason)

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

    def close(self, tile: Tile, state: TileState, reason: str) -> None:
        """Record that there will be no EOPatch for a tile: it failed, or has no data."""
        if self.records[tile.name].state is not TileState.CONVERTED:
            self._count(CONVERSION)
        self._count(LABELLING)
        self.note(tile, state=state, reason=reason)

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
            self._conclude(self._running.pop(future.task_run_id), future)
            self._start()

    def work_until_empty(self) -> None:
        """Convert and label all that has been offered."""
        self._start()
        while self._running:
            future = self._ended.get()
            self._conclude(self._running.pop(future.task_run_id), future)
            self._start()

    def _start(self) -> None:
        """Label what is converted, and map a conversion over offered tiles: as many as may be in flight."""
        at_once = self.order.parameters.run.tiles_at_once
        while self._unlabelled and len(self._running) < at_once:
            self._label(self._unlabelled.popleft())
        free = at_once - len(self._running)
        batch = [self._offered.popleft() for _ in range(min(free, len(self._offered)))]
        if not batch:
            return
        tiles = [tile for tile, _ in batch]
        futures = convert.map(
            tiles,
            [files for _, files in batch],
            unmapped(self.order.parameters.storage),
            [self.order.patch_url(tile) for tile in tiles],
            mapping=unmapped(self.order.mapping),
            options=unmapped(self.order.parameters.patches),
            provenance=unmapped(self.order.provenance(self.request_id)),
        )
        for tile, future in zip(tiles, futures, strict=True):
            self._watch(tile, future)

    def _label(self, tile: Tile) -> None:
        future = rasterise_reference.submit(
            tile,
            cast(PreparedReference, self.reference),
            self.order.parameters.storage,
            self.order.patch_url(tile),
            file_format=self.order.parameters.patches.file_format,
        )
        self._watch(tile, future)

    def _watch(self, tile: Tile, future: PrefectFuture[Any]) -> None:
        self._running[future.task_run_id] = tile
        future.add_done_callback(self._ended.put)

    def _conclude(self, tile: Tile, future: PrefectFuture[Any]) -> None:
        """Record what became of a tile's conversion or label."""
        self.touched.add(tile.name)
        outcome = future.result(raise_on_failure=False)
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
                self.close(tile, TileState.FAILED, str(outcome) if told else repr(outcome))

    def _bill(self, tile: Tile, samples: int | None) -> None:
        """Record what the service charges for a tile."""
        self.records[tile.name] = self.order.billed(self.records[tile.name], samples)

    def _converted(self, tile: Tile, outcome: ConversionRecord) -> None:
        self.converted += 1
        self._count(CONVERSION)
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


def follow(pipeline: Pipeline, job: Job, manifest: Manifest, check: Callable[[], None]) -> Job:
    """Hand over each tile to the pipeline once it is delivered, until all tiles have an end; the job's last state.

    Args:
        pipeline: converts and labels.
        job: as it was started.
        manifest: its tiles and files.
        check: raises when the run has to end, and is called at each look at the job.

    Raises:
        Unavailable: the service has not answered for ``run.patience_minutes``; the job goes on without us.
    """
    run, service = pipeline.order.parameters.run, pipeline.order.parameters.service
    patience = run.patience_minutes * 60
    pipeline.request_id = job.id
    pipeline.adopt(manifest)
    begin = progressed = time.monotonic()
    told = ""
    while True:
        check()
        snapshot: Snapshot = poll(pipeline.order.parameters.storage, service, job)
        now, job = time.monotonic(), snapshot.job
        settled = settle(pipeline, snapshot, manifest)
        if settled or not (snapshot.problem or job.ended):
            progressed = now
        open_tiles = pipeline.pending
        told = _tell(job, len(manifest.tiles), len(open_tiles), snapshot.problem, told)
        if not open_tiles:
            return job
        if job.status in {"FAILED", "STOPPED"} or (job.ended and now - progressed > patience):
            _give_up(pipeline, open_tiles, job)
            return job
        if now - progressed > patience:
            raise Unavailable(
                f"No answer for {run.patience_minutes:g} minutes ({snapshot.problem}). Request {job.id} goes on; run "
                "again to take it up."
            )
        pipeline.work_until(now + poll_seconds(now - begin, run.poll_seconds))


def settle(pipeline: Pipeline, snapshot: Snapshot, manifest: Manifest) -> int:
    """Offer what has been delivered, record what has no data or failed; the number of tiles that moved on."""
    moved = 0
    for tile in pipeline.pending:
        status = snapshot.tiles.get(tile.name)
        if status is not None and _settle_tile(pipeline, tile, status, manifest):
            moved += 1
    return moved


def _settle_tile(pipeline: Pipeline, tile: Tile, status: TileStatus, manifest: Manifest) -> bool:
    order = pipeline.order
    if status.status == "FATAL":
        pipeline.note(tile, price_pu=0.0)  # FATAL is free
        pipeline.close(tile, TileState.FAILED, f"The service could not process it: {status.error}")
    elif status.empty and order.parameters.patches.keep_empty:
        pipeline.offer(tile, TileFiles({}, None, order.dates))
    elif status.empty:
        pipeline.note(tile, samples=0, price_pu=0.0)
        pipeline.close(tile, TileState.NO_DATA, "No scene in the period")
    elif status.ready:
        paths = dict(manifest.paths[tile.name])
        userdata = paths.pop(USERDATA, None)
        pipeline.offer(tile, TileFiles(paths, userdata, order.dates))
    else:
        return False
    return True


def _give_up(pipeline: Pipeline, tiles: list[Tile], job: Job) -> None:
    reason = f"Request {job.id} ended {job.status}{f' ({job.reason})' if job.reason else ''} without delivering it"
    for tile in tiles:
        pipeline.close(tile, TileState.FAILED, reason)


def _tell(job: Job, total: int, open_tiles: int, problem: str, told: str) -> str:
    """Tell how far the job is; the note, which is not ``told`` again while it stays the same."""
    cost = f", {job.cost_pu:,.0f} PU so far" if job.cost_pu else ""
    note = problem or f"{job.status}{cost}"
    tell(PROCESSING, total - open_tiles, total, "" if note == told else note)
    return note
