"""One feature, from scenes to files in the bucket. Runs in a worker process; memory is bounded by blocks of rows."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from localhub.archive import DATA_MASK, Archive, Scene
from localhub.engine import Evalscript, Plan, SceneInfo, Setup
from localhub.errors import RequestFailed
from localhub.objectstore import Access, Bucket
from localhub.payload import CreateRequest, Processing
from localhub.pricing import feature_cost
from localhub.raster import RasterStack, zeros
from localhub.reader import ResamplingName, read_band, read_data_mask
from localhub.sentinel2 import resampling
from tasks.grid import Tile, lonlat_outline

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
    archive: Path
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
    scenes = find_scenes(task)
    period = task.request.process_request.input.data[0].data_filter.time_range
    with (
        Evalscript(task.request.process_request.evalscript) as script,
        tempfile.TemporaryDirectory(dir=task.scratch) as folder,
    ):
        infos = [_info(scene) for scene in scenes]
        plan = script.prepare(infos, period.from_, period.to, requested=_requested(task))
        if not scenes:
            return _without_data(task, plan, Path(folder))
        _evaluate(task, script, plan, scenes, Path(folder))
        return Outcome(None, delivered=True, cost_pu=_cost(task, script.setup, plan))


def find_scenes(task: FeatureTask) -> list[Scene]:
    """Return the scenes of the request that meet the feature, in mosaicking order."""
    data = task.request.process_request.input.data[0]
    return open_archive(task.archive, task.job_id).search(
        data.type,
        data.data_filter.time_range.from_,
        data.data_filter.time_range.to,
        lonlat_outline(task.tile),
        data.data_filter.max_cloud_coverage,
        data.data_filter.mosaicking_order,
    )


@lru_cache(maxsize=4)
def open_archive(folder: Path, _job_id: str) -> Archive:
    """Return the archive, read once for each job and process: scenes added meanwhile count for later jobs."""
    return Archive.open(folder)


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


def _info(scene: Scene) -> SceneInfo:
    return SceneInfo(scene.datetime, scene.cloud_cover, f"localhub://{scene.collection}/{scene.id}")


def _requested(task: FeatureTask) -> set[str]:
    """Return the ids of the rasters to deliver."""
    return {r.identifier for r in task.request.process_request.output.responses if r.format.type == "image/tiff"}


def _evaluate(task: FeatureTask, script: Evalscript, plan: Plan, scenes: Sequence[Scene], folder: Path) -> None:
    """Evaluate the script block by block of rows, then deliver the files."""
    bands = list(script.setup.bands)
    processing = task.request.process_request.input.data[0].processing
    stack = RasterStack(folder, task.tile, plan.outputs)
    with stack:
        for window in _row_blocks(task.tile, _row_bytes(task.tile, plan, len(bands)), task.block_bytes):
            samples = read_samples(scenes, plan.samples, bands, task.tile, window, processing)
            stack.write(window.row_off, script.evaluate(samples))
    _deliver(task, stack, script.user_data())


def _row_bytes(tile: Tile, plan: Plan, bands: int) -> int:
    """Estimate the bytes of one row of samples, or of results where these are more; samples are 16-bit at most."""
    inputs = 2 * bands * len(plan.samples)
    outputs = sum(output.bands * output.dtype.itemsize for output in plan.outputs)
    return int(tile.width * max(inputs, outputs))


def _row_blocks(tile: Tile, row_bytes: int, block_bytes: int) -> Iterator[Window]:
    rows = max(1, block_bytes // max(1, row_bytes))
    for first in range(0, tile.height, rows):
        yield Window(0, first, tile.width, min(rows, tile.height - first))


def read_samples(
    scenes: Sequence[Scene],
    samples: Sequence[Sequence[int]],
    bands: Sequence[str],
    tile: Tile,
    window: Window,
    processing: Processing,
) -> dict[str, NDArray[Any]]:
    """Return (samples, height, width) for each band, as stored, and 0 where there is no data.

    A sample's scenes mosaic in their order: each pixel is the first scene's that has data there.
    """
    shape = (len(samples), int(window.height), int(window.width))
    methods = _methods(bands, tile, processing)
    result: dict[str, NDArray[Any]] = {}
    for position, members in enumerate(samples):
        missing = np.ones(shape[1:], bool)
        for scene in (scenes[index] for index in members):
            fill = missing & (read_data_mask(scene, tile, window) != 0)
            if fill.any():
                _fill(result, shape, position, fill, scene, methods, tile, window)
                missing &= ~fill
            if not missing.any():
                break
    return {band: result.get(band, np.zeros(shape, np.uint16)) for band in bands}


def _methods(bands: Sequence[str], tile: Tile, processing: Processing) -> dict[str, ResamplingName]:
    resolution = min(tile.resolution)
    return {band: resampling(band, resolution, processing.upsampling, processing.downsampling) for band in bands}


def _fill(
    result: dict[str, NDArray[Any]],
    shape: tuple[int, int, int],
    position: int,
    fill: NDArray[np.bool_],
    scene: Scene,
    methods: Mapping[str, ResamplingName],
    tile: Tile,
    window: Window,
) -> None:
    """Copy a scene's pixels into one sample of every band, where `fill` says so."""
    for band, method in methods.items():
        values = fill.astype(np.uint8) if band == DATA_MASK else read_band(scene, band, tile, window, resampling=method)
        kept = result.get(band)
        if kept is None:
            kept = result[band] = np.zeros(shape, values.dtype)
        elif not np.can_cast(values.dtype, kept.dtype):
            kept = result[band] = kept.astype(np.promote_types(kept.dtype, values.dtype))
        np.copyto(kept[position], values, where=fill)


def _without_data(task: FeatureTask, plan: Plan, folder: Path) -> Outcome:
    if task.deliver_zeros:
        stack = RasterStack(folder, task.tile, plan.outputs)
        with stack:
            stack.write(0, {output.id: zeros(output, task.tile) for output in plan.outputs})
        _deliver(task, stack, {})
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
