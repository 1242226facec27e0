"""One feature, from scenes to files in the bucket. Runs in a worker process."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localhub.archive import ArchiveSource, Scene
from localhub.engine import Evalscript, Plan, Setup
from localhub.errors import RequestFailed
from localhub.objectstore import Access, Bucket
from localhub.payload import CreateRequest
from localhub.pricing import feature_cost
from localhub.raster import RasterStack, zeros
from localhub.render import find_scenes, open_archive, prepare, render
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
    scratch: Path
    block_bytes: int
    deliver_zeros: bool
    """Whether a feature without data delivers rasters of zeros."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A feature that was processed."""

    error: str | None
    """None or `No data`."""
    delivered: bool
    cost_pu: float


def process_feature(task: FeatureTask) -> Outcome:
    """Compute and deliver one feature.

    Raises:
        EvalscriptError: the script failed.
        ArchiveError: a scene cannot be read.
        StoreError: the bucket cannot be written.
        RequestFailed: a file exists that the request does not allow to overwrite.
    """
    _refuse_existing(task)
    data = task.request.process_request.input.data[0]
    scenes = find_scenes(open_archive(task.archive, task.job_id), data, task.tile)
    with (
        Evalscript(task.request.process_request.evalscript) as script,
        tempfile.TemporaryDirectory(dir=task.scratch) as folder,
    ):
        plan = prepare(script, data, scenes, _requested(task))
        if not scenes:
            return _without_data(task, script, plan, Path(folder))
        _evaluate(task, script, plan, scenes, Path(folder))
        return Outcome(None, delivered=True, cost_pu=_cost(task, script.setup, plan))


def targets(request: CreateRequest, job_id: str, tile_name: str) -> dict[str, str]:
    """Return the key in the bucket of each of a tile's outputs, by response identifier."""
    template = request.template
    return {
        response.identifier: template.path(job_id, tile_name, response.identifier, response.format.type)
        for response in request.process_request.output.responses
    }


def _refuse_existing(task: FeatureTask) -> None:
    """Check again what the analysis has checked: somebody else may have written there since."""
    if task.begun or task.request.output.overwrite:
        return
    bucket = _bucket(task)
    for key in targets(task.request, task.job_id, task.tile.name).values():
        if key in bucket.keys(key):
            raise RequestFailed(
                f"File s3://{bucket.name}/{key} exists already; allow overwrite or choose another path."
            )


def _bucket(task: FeatureTask) -> Bucket:
    return Bucket(task.request.template.bucket, task.access)


def _requested(task: FeatureTask) -> set[str]:
    """Return the ids of the rasters to deliver."""
    return {r.identifier for r in task.request.process_request.output.responses if r.format.type == "image/tiff"}


def _evaluate(task: FeatureTask, script: Evalscript, plan: Plan, scenes: Sequence[Scene], folder: Path) -> None:
    """Evaluate the script, then deliver the files."""
    processing = task.request.process_request.input.data[0].processing
    stack = RasterStack(folder, task.tile, plan.outputs)
    with stack:
        render(script, plan, scenes, task.tile, processing, task.block_bytes, stack.write)
    _deliver(task, stack, script.user_data())


def _without_data(task: FeatureTask, script: Evalscript, plan: Plan, folder: Path) -> Outcome:
    if task.deliver_zeros:
        stack = RasterStack(folder, task.tile, plan.outputs)
        with stack:
            stack.write(0, {output.id: zeros(output, task.tile) for output in plan.outputs})
        _deliver(task, stack, script.user_data())
    return Outcome(NO_DATA, delivered=task.deliver_zeros, cost_pu=0.0)


def _deliver(task: FeatureTask, stack: RasterStack, user_data: Any) -> None:
    output = task.request.output
    rasters = stack.export(output.cog_parameters if output.cog_output else None)
    bucket = _bucket(task)
    for identifier, key in targets(task.request, task.job_id, task.tile.name).items():
        if identifier in rasters:
            bucket.upload(key, rasters[identifier])
        else:
            bucket.write(key, json.dumps(user_data).encode())


def _cost(task: FeatureTask, setup: Setup, plan: Plan) -> float:
    is_float = any(output.sample_type == "FLOAT32" for output in plan.outputs)
    return feature_cost(task.tile, setup.bands, float_output=is_float, samples=len(plan.samples))
