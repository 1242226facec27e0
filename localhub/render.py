"""From scenes to results on a tile's grid: which scenes count, their samples, and the script over them.

Memory is bounded by a block of rows, not by the tile.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from localhub.archive import DATA_MASK, Archive, ArchiveSource, Scene
from localhub.engine import Dataset, Evalscript, Plan, SceneInfo, Setup
from localhub.engine.bands import no_band
from localhub.payload import Data, Processing
from localhub.pricing import Read
from localhub.reader import Methods, mask_held, read_band, read_data_mask
from localhub.spool import NO_DATA_DTYPE, Spool
from tasks.grid import Tile, lonlat_shape

SEARCH_SECONDS = 10
"""Time after which a search or a Process API request looks for new scenes."""
_SAMPLE_BYTES = 2
"""Of most files."""


@lru_cache(maxsize=4)
def open_archive(source: ArchiveSource, _reading: str) -> Archive:
    """Return the archive, read once for each `_reading` and process: scenes added meanwhile count for later ones."""
    return Archive.open(source.place, source.withheld)


def reading_now(seconds: float = SEARCH_SECONDS) -> str:
    """Return a `_reading` for `open_archive` that stays the same for so many seconds."""
    return f"{seconds:g} s, {time.monotonic() // seconds}"


@dataclass(frozen=True, slots=True)
class Selection:
    """A collection of a request, and what of it meets a tile."""

    data: Data
    scenes: tuple[Scene, ...]
    """In mosaicking order."""

    @property
    def dataset(self) -> Dataset:
        """The same as the script's engine knows it."""
        infos = [
            SceneInfo(scene.datetime, scene.cloud_cover, scene.data_path, scene.footprint) for scene in self.scenes
        ]
        period = self.data.data_filter.time_range
        return Dataset(infos, period.from_, period.to, self.data.type, self.data.id)


def check_bands(setup: Setup, collections: Sequence[Data], archive: Archive) -> None:
    """Check that each of a request's collections has what the script reads of it.

    Raises:
        EvalscriptError: the script reads a band, unit or collection that there is not; in the service's words.
        UnknownCollection: the archive has no scene of a collection.
    """
    sources = setup.sources([data.id for data in collections])
    for source, data in zip(sources, collections, strict=True):
        held = archive.bands(data.type)
        for band in source.factors(data.type):
            if band not in held:
                raise no_band(data.type, band)


def select(archive: Archive, collections: Iterable[Data], tile: Tile) -> tuple[Selection, ...]:
    """Return the scenes of each of a request's collections that meet a tile."""
    return tuple(Selection(data, _scenes(archive, data, tile)) for data in collections)


def _scenes(archive: Archive, data: Data, tile: Tile) -> tuple[Scene, ...]:
    wanted = data.data_filter
    found = archive.search(
        data.type,
        wanted.time_range.from_,
        wanted.time_range.to,
        lonlat_shape(tile),
        wanted.max_cloud_coverage,
        wanted.mosaicking_order,
    )
    return tuple(found)


def prepare(script: Evalscript, selections: Iterable[Selection], requested: set[str]) -> Plan:
    """Let the script see its scenes and choose among them; `requested` are the ids of the rasters to make."""
    return script.prepare([selection.dataset for selection in selections], requested=requested)


def render(
    script: Evalscript,
    plan: Plan,
    selections: Sequence[Selection],
    tile: Tile,
    block_bytes: int,
    write: Callable[[int, Mapping[str, NDArray[Any]]], None],
    scratch: Path | None = None,
) -> None:
    """Evaluate the script in blocks of rows.

    Args:
        script: prepared.
        plan: what `prepare` returned.
        selections: of each collection.
        tile: the grid.
        block_bytes: of samples or results to hold at a time.
        write: gets the first row, and (bands, rows, columns) by output id.
        scratch: folder for samples where they do not fit; None = the system's.
    """
    for window, bands in sample_blocks(plan, selections, tile, block_bytes, scratch):
        write(window.row_off, script.evaluate(bands))


def sample_blocks(
    plan: Plan, selections: Sequence[Selection], tile: Tile, block_bytes: int, scratch: Path | None = None
) -> Iterator[tuple[Window, list[dict[str, NDArray[Any]]]]]:
    """Yield blocks of rows with the samples of each collection; arguments as for `render`."""
    windows = tuple(_row_blocks(tile, _row_bytes(tile, plan), block_bytes))
    with ExitStack() as opened:
        readings: list[_Reading] = []
        for selection, samples, factors in zip(selections, plan.samples, plan.bands, strict=True):
            larger = tuple(_row_blocks(tile, tile.width * _SAMPLE_BYTES * len(factors), block_bytes))
            if len(larger) < len(windows):
                spool = opened.enter_context(Spool(len(samples), tile.width, scratch))
                readings.append(_spooled(spool, selection, samples, factors, tile, larger))
            else:
                readings.append(partial(read_samples, selection, samples, factors, tile))
        for window in windows:
            yield window, [reading(window) for reading in readings]


_Reading = Callable[[Window], dict[str, NDArray[Any]]]
"""Gives a window's samples of one collection."""


def _spooled(
    spool: Spool,
    selection: Selection,
    samples: Sequence[Sequence[int]],
    factors: Mapping[str, float],
    tile: Tile,
    windows: Iterable[Window],
) -> _Reading:
    """Read everything now, one sample at a time, in windows that are larger than those of all samples can be."""
    for window in windows:
        for number, members in enumerate(samples):
            found = _with_data(selection, [members], factors, tile, window)
            spool.add(number, window.row_off, {band: values[0] for band, values in found.items()})
    return lambda window: {band: spool.rows(band, window.row_off, window.height) for band in factors}


def reads_of(plan: Plan) -> tuple[Read, ...]:
    """Return what a plan reads of each collection, for which the request is charged."""
    return tuple(Read(bands, len(samples)) for bands, samples in zip(plan.bands, plan.samples, strict=True))


def notes_on(script: Evalscript, plan: Plan) -> tuple[str, ...]:
    """Return what the script's author should know of what it has evaluated, a line for each output concerned."""
    declared = {output.id: output.bands for output in plan.outputs}
    return tuple(
        f"Output '{name}': {pixels:,} pixels returned another number of values than the declared {declared[name]}; "
        "missing ones are 0, surplus ones are dropped."
        for name, pixels in script.wrong_lengths().items()
    )


def _row_bytes(tile: Tile, plan: Plan) -> int:
    """Estimate the bytes of one row of samples, or of results where these are more."""
    inputs = sum(
        _SAMPLE_BYTES * len(bands) * len(samples) for bands, samples in zip(plan.bands, plan.samples, strict=True)
    )
    outputs = sum(output.bands * output.dtype.itemsize for output in plan.outputs)
    return int(tile.width * max(inputs, outputs))


def _row_blocks(tile: Tile, row_bytes: int, block_bytes: int) -> Iterator[Window]:
    rows = max(1, block_bytes // max(1, row_bytes))
    for first in range(0, tile.height, rows):
        yield Window(0, first, tile.width, min(rows, tile.height - first))


def read_samples(
    selection: Selection,
    samples: Sequence[Sequence[int]],
    factors: Mapping[str, float],
    tile: Tile,
    window: Window,
) -> dict[str, NDArray[Any]]:
    """Return (samples, height, width) for each band of `factors`, in DN, and 0 where there is no data.

    There is none where a pixel's centre lies outside of the tile's outline. A sample's scenes mosaic in their order:
    each pixel is the first scene's that has data there.

    Args:
        selection: a collection and its scenes.
        samples: indices of the scenes of each sample, preferred first.
        factors: bands, and the factor from DN to the unit that the script asks for; 1 = DN.
        tile: the whole grid.
        window: the part of it to read.
    """
    found = _with_data(selection, samples, factors, tile, window)
    empty = (len(samples), int(window.height), int(window.width))
    return {band: found[band] if band in found else np.zeros(empty, NO_DATA_DTYPE) for band in factors}


def _with_data(
    selection: Selection,
    samples: Sequence[Sequence[int]],
    factors: Mapping[str, float],
    tile: Tile,
    window: Window,
) -> dict[str, NDArray[Any]]:
    """Return what `read_samples` does, without the bands that have no data in any sample."""
    shape = (len(samples), int(window.height), int(window.width))
    inside = _inside(tile, window)
    reader = _Reader(selection.data.processing, factors, tile, window)
    result: dict[str, NDArray[Any]] = {}
    for position, members in enumerate(samples):
        missing = inside.copy()
        for scene in (selection.scenes[index] for index in members):
            with mask_held(scene):
                fill = missing & (read_data_mask(scene, tile, window) != 0)
                if fill.any():
                    _fill(result, shape, position, fill, scene, reader)
                    missing &= ~fill
            if not missing.any():
                break
    return result


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a collection's bands as a request wants them."""

    processing: Processing
    factors: Mapping[str, float]
    tile: Tile
    window: Window

    def read(self, scene: Scene, band: str) -> NDArray[Any]:
        """Return a band's values; those of Sentinel-2's optical bands as `harmonizeValues` and the unit say."""
        methods = Methods(self.processing.upsampling, self.processing.downsampling)
        stored = read_band(scene, band, self.tile, self.window, methods)
        added = scene.added_dn.get(band, 0)
        as_in_the_file = self.factors[band] == 1 and not self.processing.harmonize_values
        if not added or as_in_the_file:
            return stored
        return without_added(stored, added, negative=not self.processing.harmonize_values)


def without_added(stored: NDArray[Any], added_dn: int, *, negative: bool) -> NDArray[Any]:
    """Take off what a file adds to its values; 0 stays 0, which is no data.

    Interpolated values lose it as the pixels would have before: the weights of an interpolation sum to 1.

    Args:
        stored: integers, or floats where they are interpolated as such.
        added_dn: what to take off.
        negative: let values below 0 stand, as 32 bits; else they are 0.
    """
    wide = stored if stored.dtype.kind == "f" else stored.astype(np.int32)
    values: NDArray[Any] = np.where(stored == 0, 0, wide - added_dn).astype(wide.dtype)
    return values if negative else np.maximum(values, 0).astype(stored.dtype)


def _inside(tile: Tile, window: Window) -> NDArray[np.bool_]:
    """Whether a pixel can have data: its centre lies within the tile's outline."""
    shape = (int(window.height), int(window.width))
    if tile.outline is None:
        return np.ones(shape, bool)
    inside: NDArray[np.bool_] = geometry_mask(
        [tile.shape], shape, window_transform(window, tile.transform), invert=True
    )
    return inside


def _fill(
    result: dict[str, NDArray[Any]],
    shape: tuple[int, int, int],
    position: int,
    fill: NDArray[np.bool_],
    scene: Scene,
    reader: _Reader,
) -> None:
    """Copy a scene's pixels into one sample of every band, where `fill` says so."""
    for band in reader.factors:
        values = fill.astype(np.uint8) if band == DATA_MASK else reader.read(scene, band)
        kept = result.get(band)
        if kept is None:
            kept = result[band] = np.zeros(shape, values.dtype)
        elif not np.can_cast(values.dtype, kept.dtype):
            kept = result[band] = kept.astype(np.promote_types(kept.dtype, values.dtype))
        np.copyto(kept[position], values, where=fill)
