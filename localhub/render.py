"""From scenes to results on a tile's grid: which scenes count, their samples, and the script over them.

Memory is bounded by a block of rows, not by the tile.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from localhub.archive import DATA_MASK, Archive, ArchiveSource, Scene
from localhub.engine import Dataset, Evalscript, Plan, SceneInfo, Setup
from localhub.engine.errors import invalid
from localhub.payload import Data, Processing
from localhub.reader import ResamplingName, read_band, read_data_mask
from localhub.sentinel2 import resampling
from tasks.grid import Tile, lonlat_shape

SEARCH_SECONDS = 10
"""Time after which a search or a Process API request looks for new scenes."""


@lru_cache(maxsize=4)
def open_archive(source: ArchiveSource, _reading: str) -> Archive:
    """Return the archive, read once for each `_reading` and process: scenes added meanwhile count for later ones."""
    return Archive.open(source.place, source.withheld)


def reading_now(seconds: float = SEARCH_SECONDS) -> str:
    """Return a `_reading` for `open_archive` that stays the same for so many seconds."""
    return f"{seconds:g} s, {time.monotonic() // seconds}"


def check_bands(setup: Setup, data: Data, archive: Archive) -> None:
    """Raise EvalscriptError, in the service's words, when the script reads a band or unit that there is not."""
    held = archive.bands(data.type)
    (source,) = setup.sources([data.id])
    for band in source.factors(data.type):
        if band not in held:
            raise invalid(f"Collection '{data.type}' has no band '{band}'.")


def find_scenes(archive: Archive, data: Data, tile: Tile) -> list[Scene]:
    """Return the scenes of a request's collection that meet a tile, in mosaicking order."""
    wanted = data.data_filter
    return archive.search(
        data.type,
        wanted.time_range.from_,
        wanted.time_range.to,
        lonlat_shape(tile),
        wanted.max_cloud_coverage,
        wanted.mosaicking_order,
    )


def prepare(script: Evalscript, data: Data, scenes: Sequence[Scene], requested: set[str]) -> Plan:
    """Let the script see its scenes and choose among them; `requested` are the ids of the rasters to make."""
    infos = [SceneInfo(scene.datetime, scene.cloud_cover, scene.data_path) for scene in scenes]
    period = data.data_filter.time_range
    return script.prepare([Dataset(infos, period.from_, period.to, data.type, data.id)], requested=requested)


def render(
    script: Evalscript,
    plan: Plan,
    scenes: Sequence[Scene],
    tile: Tile,
    processing: Processing,
    block_bytes: int,
    write: Callable[[int, Mapping[str, NDArray[Any]]], None],
) -> None:
    """Evaluate the script in blocks of rows; `write` gets the first row, and (bands, rows, columns) by output id."""
    (members,), (factors,) = plan.samples, plan.bands
    bands = list(factors)
    for window in _row_blocks(tile, _row_bytes(tile, plan), block_bytes):
        samples = read_samples(scenes, members, bands, tile, window, processing)
        write(window.row_off, script.evaluate([samples]))


def _row_bytes(tile: Tile, plan: Plan) -> int:
    """Estimate the bytes of one row of samples, or of results where these are more; samples are 16-bit at most."""
    inputs = sum(2 * len(bands) * len(samples) for bands, samples in zip(plan.bands, plan.samples, strict=True))
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

    There is none where a pixel's centre lies outside of the tile's outline. A sample's scenes mosaic in their order:
    each pixel is the first scene's that has data there.
    """
    shape = (len(samples), int(window.height), int(window.width))
    inside = _inside(tile, window)
    methods = _methods(bands, tile, processing)
    result: dict[str, NDArray[Any]] = {}
    for position, members in enumerate(samples):
        missing = inside.copy()
        for scene in (scenes[index] for index in members):
            fill = missing & (read_data_mask(scene, tile, window) != 0)
            if fill.any():
                _fill(result, shape, position, fill, scene, methods, tile, window)
                missing &= ~fill
            if not missing.any():
                break
    return {band: result.get(band, np.zeros(shape, np.uint16)) for band in bands}


def _inside(tile: Tile, window: Window) -> NDArray[np.bool_]:
    """Whether a pixel can have data: its centre lies within the tile's outline."""
    shape = (int(window.height), int(window.width))
    if tile.outline is None:
        return np.ones(shape, bool)
    inside: NDArray[np.bool_] = geometry_mask(
        [tile.shape], shape, window_transform(window, tile.transform), invert=True
    )
    return inside


def _methods(bands: Sequence[str], tile: Tile, processing: Processing) -> dict[str, ResamplingName]:
    resolution = min(tile.resolution_m)
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
