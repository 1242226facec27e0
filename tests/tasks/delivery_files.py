"""Writes what Batch delivers for a tile: GeoTIFFs with the dates along the band axis, and userdata.json."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from tasks.conversion import FeatureMapping, Provenance, TileFiles, land_cover_mapping
from tasks.grid import Tile

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
INDICES = ("NDVI", "NDWI", "NDBI")
MAPPING: FeatureMapping = land_cover_mapping(BANDS, INDICES)
PROVENANCE = Provenance(request_id="request-1", fingerprint="print-1", evalscript_sha256="0" * 64)
TILE = Tile("33TVM_4_5", 32633, (440_000.0, 5_040_000.0, 440_640.0, 5_040_480.0), width=32, height=24)


def dates(count: int) -> list[datetime]:
    first = datetime(2019, 1, 1)  # noqa: DTZ001 - UTC without a zone, as eo-learn keeps it
    return [first + timedelta(days=15 * number) for number in range(count)]


def write_raster(path: Path, numbers: NDArray[Any], tile: Tile, **profile: Any) -> None:
    """A tiled and compressed GeoTIFF of (band, row, column)."""
    defaults = {
        "driver": "GTiff",
        "width": numbers.shape[2],
        "height": numbers.shape[1],
        "count": numbers.shape[0],
        "dtype": numbers.dtype,
        "crs": f"EPSG:{tile.epsg}",
        "transform": tile.transform,
        "compress": "deflate",
        "predictor": 2,
        "interleave": "pixel",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    with rasterio.open(path, "w", **defaults | profile) as raster:
        raster.write(numbers)


def random_outputs(tile: Tile, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Numbers of the land-cover script, smooth enough to compress as images do; bands are 0 where QUALITY is 0."""
    random = np.random.default_rng(seed)
    shape = (count, tile.height, tile.width)
    quality = random.choice(np.array([0, 1, 1, 1, 2], np.uint8), shape)
    outputs: dict[str, NDArray[Any]] = {"QUALITY": quality}
    for band in BANDS:
        walk = 2000 + random.normal(0, 30, shape).cumsum(axis=2)
        outputs[band] = np.where(quality > 0, walk.clip(1, 10_000).round(), 0).astype(np.uint16)
    for index in INDICES:
        encoded = random.normal(14_000, 800, shape).clip(0, 20_000).round()
        outputs[index] = np.where(quality > 0, encoded, 65_535).astype(np.uint16)
    outputs["VALID_COUNT"] = random.integers(0, 60, (1, tile.height, tile.width), np.uint16)
    return outputs


def deliver(
    folder: Path, outputs: Mapping[str, NDArray[Any]], tile: Tile, timestamps: Iterable[datetime], **profile: Any
) -> TileFiles:
    folder.mkdir(parents=True, exist_ok=True)
    for output, numbers in outputs.items():
        write_raster(folder / f"{output}.tif", numbers, tile, **profile)
    userdata = folder / "userdata.json"
    userdata.write_text(json.dumps({"timestamps": [f"{date.isoformat()}Z" for date in timestamps]}))
    return TileFiles({output: str(folder / f"{output}.tif") for output in outputs}, str(userdata))
