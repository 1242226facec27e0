"""A tile as Batch delivers it: a made-up year whose numbers compress as those of real scenes do.

6 bands and 3 indices UINT16, QUALITY UINT8, 24 dates that are interpolated from cloudy acquisitions. Of the noise's
strength the real scenes in the tests' data were the measure: 9 to 12 bits a number with DEFLATE and predictor 2 for
bands of 10 m, 4 for those of 20 m.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.shutil import copy

from localhub.sample.noise import fractal
from tasks.conversion import TileFiles
from tasks.grid import Tile

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
INDICES = ("NDVI", "NDWI", "NDBI")
ACQUISITIONS, CLOUDY_SHARE = 14, 0.4
LEVELS = {"B02": 780, "B03": 660, "B04": 420, "B08": 2500, "B11": 1300, "B12": 570}
"""Mean of each band in the real scenes, reflectance times 10000."""
NOISE = {"B02": 15, "B03": 20, "B04": 22, "B08": 110, "B11": 60, "B12": 35}
"""Deviation of what differs from pixel to pixel and from day to day."""
COARSE = ("B11", "B12")
"""Bands of 20 m, whose numbers stand in 2 x 2 pixels each."""

Numbers = Mapping[str, NDArray[Any]]
"""Output -> numbers (date, row, column)."""


def dates(count: int) -> list[datetime]:
    """Every 15 days from New Year."""
    return [datetime(2019, 1, 1) + timedelta(days=15 * step) for step in range(count)]  # noqa: DTZ001 - as eo-learn's


def square(name: str, pixels: int) -> Tile:
    """A tile of 10 m pixels."""
    west, south, side = 500_000.0, 5_100_000.0, 10.0 * pixels
    return Tile(name, 32633, (west, south, west + side, south + side), pixels, pixels)


def numbers(pixels: int, count: int, seed: int = 7) -> Numbers:
    """All outputs of a tile."""
    random = np.random.default_rng(seed)
    seen = np.linspace(0, 15 * (count - 1), ACQUISITIONS + 2)[1:-1].round()
    clear = np.stack([fractal(random, pixels, 2.5) > np.quantile(random.normal(size=999), CLOUDY_SHARE) for _ in seen])
    clear[:, : pixels // 20, : pixels // 10] = False  # never seen
    pattern = fractal(random, pixels, 1.8)
    outputs = {band: _interpolated(_scenes(random, pattern, band, seen), clear, seen, count) for band in BANDS}
    outputs["QUALITY"] = _quality(clear, seen, count)
    no_data = outputs["QUALITY"] == 0
    for name, (plus, minus) in zip(INDICES, (("B08", "B04"), ("B03", "B08"), ("B11", "B08")), strict=True):
        a, b = outputs[plus].astype("float32"), outputs[minus].astype("float32")
        index = np.round(10_000 * ((a - b) / np.maximum(a + b, 1) + 1)).astype("uint16")
        outputs[name] = np.where(no_data, np.uint16(65_535), index)
    return outputs


def _scenes(random: np.random.Generator, pattern: NDArray[Any], band: str, seen: NDArray[Any]) -> NDArray[Any]:
    season = 1 + 0.3 * np.sin(seen / 365 * 2 * np.pi)[:, np.newaxis, np.newaxis]
    ground = LEVELS[band] * (1 + 0.18 * pattern) * season
    scenes = ground + random.normal(0, NOISE[band], ground.shape)
    if band in COARSE:
        scenes = scenes[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2)[:, : pattern.shape[0], : pattern.shape[1]]
    return np.clip(scenes, 1, 10_000).astype("float32")


def _interpolated(scenes: NDArray[Any], clear: NDArray[Any], seen: NDArray[Any], count: int) -> NDArray[Any]:
    result = np.zeros((count, *scenes.shape[1:]), "uint16")
    for step in range(count):
        before, after = _neighbours(clear, seen, 15.0 * step)
        first, last = (np.take_along_axis(scenes, side.clip(0)[np.newaxis], 0)[0] for side in (before, after))
        gap = np.maximum(seen[after] - seen[before], 1)
        share = ((15.0 * step - seen[before]) / gap).clip(0, 1)
        value = np.where(before < 0, last, np.where(after < 0, first, first + (last - first) * share))
        result[step] = np.where((before < 0) & (after < 0), 0, value.round())
    return result


def _neighbours(clear: NDArray[Any], seen: NDArray[Any], day: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions of the last clear scene until a day, and of the first one after it; -1 where there is none."""
    before, after = np.full(clear.shape[1:], -1), np.full(clear.shape[1:], -1)
    for position in range(len(seen)):
        if seen[position] <= day:
            before[clear[position]] = position
    for position in reversed(range(len(seen))):
        if seen[position] > day:
            after[clear[position]] = position
    return before, after


def _quality(clear: NDArray[Any], seen: NDArray[Any], count: int) -> NDArray[Any]:
    quality = np.zeros((count, *clear.shape[1:]), "uint8")
    for step in range(count):
        before, after = _neighbours(clear, seen, 15.0 * step)
        quality[step] = np.where((before >= 0) & (after >= 0), 1, np.where((before >= 0) | (after >= 0), 2, 0))
    return quality


def write_cog(path: Path, values: NDArray[Any], tile: Tile, block: int, interleave: str) -> None:
    """One output as a cloud optimised GeoTIFF: DEFLATE, predictor 2, overviews."""
    plain = path.with_suffix(".plain.tif")
    profile = {"width": tile.width, "height": tile.height, "count": len(values), "dtype": values.dtype}
    with rasterio.open(
        plain, "w", driver="GTiff", crs=tile.epsg, transform=tile.transform, interleave="band", **profile
    ) as raster:
        raster.write(values)
    if max(tile.width, tile.height) > block:
        with rasterio.open(plain, "r+") as raster:
            raster.build_overviews([2, 4], Resampling.nearest)
    options = {"BLOCKXSIZE": block, "BLOCKYSIZE": block, "INTERLEAVE": interleave, "NUM_THREADS": "ALL_CPUS"}
    with rasterio.Env(GDAL_CACHEMAX=2048):  # MB; with less, blocks of all bands are read again and again
        copy(
            plain,
            path,
            driver="GTiff",
            TILED="YES",
            COMPRESS="DEFLATE",
            PREDICTOR=2,
            COPY_SRC_OVERVIEWS="YES",
            **options,
        )
    plain.unlink()


def deliver(folder: Path, outputs: Numbers, tile: Tile, block: int, interleave: str, count: int = 0) -> TileFiles:
    """Write a tile's files to a local folder.

    Args:
        folder: new.
        outputs: their numbers.
        tile: the raster.
        block: rows and columns of a block.
        interleave: PIXEL or BAND.
        count: of dates; where there are not as many, those that there are come again, with noise. 0: as they are.
    """
    folder.mkdir(parents=True)
    for name, values in outputs.items():
        write_cog(folder / f"{name}.tif", _prolonged(values, count) if count else values, tile, block, interleave)
    userdata = folder / "userdata.json"
    stamps = [date.isoformat() for date in dates(count or len(next(iter(outputs.values()))))]
    userdata.write_text(json.dumps({"timestamps": stamps}))
    return TileFiles({name: str(folder / f"{name}.tif") for name in outputs}, str(userdata))


def _prolonged(values: NDArray[Any], count: int) -> NDArray[Any]:
    result = np.resize(values, (count, *values.shape[1:]))
    if values.dtype == "uint16":
        random = np.random.default_rng(7)
        for step in range(count):
            result[step] += random.integers(0, 60, values.shape[1:], "uint16")
    return result
