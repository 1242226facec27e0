"""One feature, from scenes to files in the bucket. Runs in a worker process."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localhub.archive import ArchiveSource
from localhub.engine import Evalscript, Plan
from localhub.errors import RequestFailed
from localhub.faults import TileFault, first_of
from localhub.objectstore import Access, Bucket
from localhub.payload import CreateRequest, RasterOutput, ZarrOutput
from localhub.pricing import feature_cost
from localhub.raster import RasterStack
from localhub.render import Selection, notes_on, open_archive, prepare, reads_of, render, select
from localhub.results import ResultFile, keep, upload
from localhub.zarroutput.group import group_of
from tasks.grid import Tile

NO_DATA = "No data"
"""Error text of a feature that had nothing to process."""


@dataclass(frozen=True, slots=True)
class FeatureTask:
    """What a worker needs to know about one feature of a job."""

    job_id: str
    request: CreateRequest
    access: Access
    """To the delivery's object store."""
    tile: Tile
    begun: bool
    """It was begun before: files at its targets may be its own and are replaced."""
    archive: ArchiveSource
    cog_block_px: int
    """Side of the blocks of cloud optimised GeoTIFFs, where the request does not say."""
    scratch: Path
    block_bytes: int
    deliver_zeros: bool
    """Whether a feature without data delivers rasters of zeros."""
    kept: Path
    """Folder for files that are to be delivered later; it does not exist yet, or from a try before a crash."""
    tries: int = 0
    """Failed tries before this one."""
    faults: tuple[TileFault, ...] = ()
    """What goes wrong with this tile, on demand."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A feature that was processed."""

    error: str | None
    """None or `No data`."""
    delivered: bool
    """Its outputs are in the bucket."""
    cost_pu: float
    late_seconds: float | None = None
    """Its files are kept and to be delivered after this time."""
    notes: tuple[str, ...] = ()
    """What the script's author should know, a line an output."""


class FaultOnDemand(Exception):
    """A try that fails because somebody asked for it."""


def process_feature(task: FeatureTask) -> Outcome:
    """Compute and deliver one feature.

    Raises:
        EvalscriptError: the script failed.
        ArchiveError: a scene cannot be read.
        StoreError: the bucket cannot be written.
        RequestFailed: a file exists that the request does not allow to overwrite.
        FaultOnDemand: the tile has the fault `fatal`.
    """
    _refuse_existing(task)
    _fail_on_demand(task)
    selections = _selections(task)
    with (
        Evalscript(task.request.process_request.evalscript) as script,
        tempfile.TemporaryDirectory(dir=task.scratch) as folder,
    ):
        plan = prepare(script, selections, _requested(task))
        if not any(selection.scenes for selection in selections):
            return _without_data(task, script, plan, Path(folder))
        return _evaluated(task, script, plan, selections, Path(folder))


def targets(request: CreateRequest, job_id: str, tile: Tile) -> dict[str, str]:
    """Return the key in the bucket of each of a tile's files, by response identifier; for raster output."""
    template = request.template
    return {
        response.identifier: template.path(job_id, tile, response.identifier, response.format.type)
        for response in request.process_request.output.responses
    }


def _refuse_existing(task: FeatureTask) -> None:
    """Check again what the analysis has checked: somebody else may have written there since.

    The folder of a Zarr group was taken at analysis.
    """
    output = task.request.output
    if isinstance(output, ZarrOutput) or output.overwrite or task.begun:
        return
    bucket = _bucket(task)
    for key in targets(task.request, task.job_id, task.tile).values():
        if key in bucket.keys(key):
            raise RequestFailed(
                f"File s3://{bucket.name}/{key} exists already; allow overwrite or choose another path."
            )


def _fail_on_demand(task: FeatureTask) -> None:
    fault = first_of("fatal", task.faults)
    if fault is not None and (fault.times is None or task.tries < fault.times):
        raise FaultOnDemand(f"Tile {task.tile.name} fails on demand; see the fault 'fatal' of localhub's settings.")


def _selections(task: FeatureTask) -> tuple[Selection, ...]:
    collections = task.request.process_request.input.data
    if first_of("no_data", task.faults):
        return tuple(Selection(data, ()) for data in collections)
    return select(open_archive(task.archive, task.job_id), collections, task.tile)


def _bucket(task: FeatureTask) -> Bucket:
    return Bucket(task.request.template.bucket, task.access)


def _requested(task: FeatureTask) -> set[str]:
    """Return the ids of the rasters to deliver."""
    responses = task.request.process_request.output.responses
    return {response.identifier for response in responses if response.format.type != "application/json"}


def _evaluated(
    task: FeatureTask, script: Evalscript, plan: Plan, selections: Sequence[Selection], folder: Path
) -> Outcome:
    """Evaluate the script, then deliver the files."""
    stack = RasterStack(folder, task.tile, plan.outputs)
    with stack:
        render(script, plan, selections, task.tile, task.block_bytes, stack.write, folder)
    files = _files(task, stack, script.user_data(), folder)
    cost_pu = feature_cost(task.tile, reads_of(plan), float_output=plan.has_floats)
    return _delivered(task, files, Outcome(None, delivered=True, cost_pu=cost_pu, notes=notes_on(script, plan)))


def _without_data(task: FeatureTask, script: Evalscript, plan: Plan, folder: Path) -> Outcome:
    if not task.deliver_zeros:
        return Outcome(NO_DATA, delivered=False, cost_pu=0.0)
    stack = RasterStack(folder, task.tile, plan.outputs)
    with stack:
        stack.write_zeros()
    files = _files(task, stack, script.user_data(), folder)
    return _delivered(task, files, Outcome(NO_DATA, delivered=True, cost_pu=0.0))


def _files(task: FeatureTask, stack: RasterStack, user_data: Any, folder: Path) -> list[ResultFile]:
    """Write the files to deliver below `folder`."""
    match task.request.output:
        case ZarrOutput():
            return group_of(task.request, task.job_id, task.access).chunk_files(task.tile, stack, folder)
        case RasterOutput() as output:
            return _raster_files(task, output, stack, user_data, folder)


def _raster_files(
    task: FeatureTask, output: RasterOutput, stack: RasterStack, user_data: Any, folder: Path
) -> list[ResultFile]:
    paths = stack.export(output.cog_parameters.with_blocks(task.cog_block_px) if output.cog_output else None)
    keys = targets(task.request, task.job_id, task.tile)
    if keys.keys() - paths.keys():
        paths["userdata"] = folder / "userdata.json"
        paths["userdata"].write_text(json.dumps(user_data))
    return [ResultFile(identifier, key, paths[identifier]) for identifier, key in keys.items()]


def _delivered(task: FeatureTask, files: Sequence[ResultFile], outcome: Outcome) -> Outcome:
    """Bring the files into the bucket, or into the state that a fault wants; return what is then true of them."""
    files = _spoilt(files, task.faults)
    late = first_of("undelivered", task.faults)
    if late is None:
        upload(files, _bucket(task))
        return outcome
    if late.seconds is not None:
        keep(files, task.kept)
    return replace(outcome, delivered=False, late_seconds=late.seconds)


def _spoilt(files: Sequence[ResultFile], faults: Sequence[TileFault]) -> list[ResultFile]:
    """Cut the files in half that a fault wants truncated; leave out those that it wants missing."""
    for file in files:
        if first_of("truncated", faults, file.output):
            os.truncate(file.path, file.path.stat().st_size // 2)
    return [file for file in files if not first_of("missing", faults, file.output)]
