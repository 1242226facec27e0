"""Polygons are burned into one tile and added to its EOPatch."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from sentinelhub import CRS, BBox

from tasks.eopatches import (
    RETRIES,
    RETRY_DELAY_SECONDS,
    FileFormat,
    Verdict,
    add_features,
    check_marker,
    marker_path,
    network_failed,
    outcome_of,
)
from tasks.errors import TileError
from tasks.grid import Tile
from tasks.reference.polygons import ID_COLUMN, NAME_COLUMN, ROW_COLUMN, PreparedReference, ReferenceSource
from tasks.storage import Storage, open_filesystem

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # rasterize() hides it, but not from other threads

MARKER = "REFERENCE"
"""META_INFO feature that commits a tile's reference."""
CONVERTED_MARKER = "BATCH"
"""META_INFO feature that an EOPatch must have before it gets a reference."""


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """What rasterising a tile did.

    Attributes:
        tile: name.
        coverage: share of pixels with a class other than 0, 0 to 1.
        pixels: number of pixels by class id, 0 among them, without the classes that do not occur.
        polygons: number of polygons that intersect the tile.
        bytes_written: size of the added files.
        seconds: time that it took.
    """

    tile: str
    coverage: float
    pixels: Mapping[int, int]
    polygons: int
    bytes_written: int
    seconds: float


def is_labelled(files: AbstractFileSystem, folder: str, source: ReferenceSource, file_format: FileFormat) -> Verdict:
    """Tell from META_INFO/REFERENCE and a listing whether an EOPatch has this reference."""
    return check_marker(files, folder, MARKER, _identity(source, file_format))


def rasterise_tile(
    prepared: PreparedReference, tile: Tile, files: AbstractFileSystem, folder: str, file_format: FileFormat
) -> LabelRecord:
    """Add MASK_TIMELESS/LULC and VECTOR_TIMELESS/LULC_REFERENCE to a tile's EOPatch and commit them.

    Args:
        prepared: polygons in the tile's CRS among others.
        tile: the EOPatch's raster.
        files: file system of the EOPatch.
        folder: the EOPatch's folder there.
        file_format: how LULC is stored.

    Raises:
        TileError: there is no converted EOPatch in the folder.
        OSError: the file system fails.
    """
    start = time.monotonic()
    if not files.exists(marker_path(folder, CONVERTED_MARKER)):
        raise TileError(f"Tile {tile.name}: there is no converted EOPatch in {folder}; convert the tile first.")
    polygons = _polygons_of_tile(prepared, tile)
    lulc = rasterise(polygons.geometry, polygons[ID_COLUMN], tile)
    patch = EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg)))
    patch[FeatureType.MASK_TIMELESS, "LULC"] = lulc
    patch[FeatureType.VECTOR_TIMELESS, "LULC_REFERENCE"] = polygons
    patch[FeatureType.META_INFO, MARKER] = _identity(prepared.source, file_format)
    written = add_features(patch, files, folder, MARKER, file_format)
    classes, counts = np.unique(lulc, return_counts=True)
    return LabelRecord(
        tile=tile.name,
        coverage=float(np.count_nonzero(lulc) / lulc.size),
        pixels={int(number): int(count) for number, count in zip(classes, counts, strict=True)},
        polygons=len(polygons),
        bytes_written=written,
        seconds=time.monotonic() - start,
    )


def rasterise(geometries: Iterable[shapely.Geometry], classes: Iterable[int], tile: Tile) -> NDArray[np.uint8]:
    """Burn classes into a tile where a pixel's centre lies inside a polygon; a later polygon covers earlier ones.

    Returns:
        (height, width, 1), uint8, 0 outside all polygons.
    """
    shapes = list(zip(geometries, classes, strict=True))
    lulc = np.zeros((tile.height, tile.width), np.uint8)
    if shapes:
        rasterize(shapes, out=lulc, transform=tile.transform, all_touched=False)
    return lulc[..., np.newaxis]


def _polygons_of_tile(prepared: PreparedReference, tile: Tile) -> gpd.GeoDataFrame:
    """Polygons that intersect the tile, in its CRS, in the order of the reference file."""
    near = pyogrio.read_dataframe(prepared.files[tile.epsg], bbox=tile.bounds).sort_values(ROW_COLUMN)
    inside = near[near.intersects(shapely.box(*tile.bounds))]
    return inside[[ID_COLUMN, NAME_COLUMN, "geometry"]].reset_index(drop=True)


def _identity(source: ReferenceSource, file_format: FileFormat) -> dict[str, Any]:
    return {**asdict(source), "file_format": file_format}


@task(
    task_run_name="reference-{tile.name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=network_failed,
    cache_policy=NO_CACHE,
)
def rasterise_reference(
    tile: Tile, prepared: PreparedReference, storage: Storage, patch_url: str, *, file_format: FileFormat
) -> LabelRecord:
    """Rasterise the reference into the EOPatch at ``patch_url``; see :func:`rasterise_tile`."""
    files, folder = open_filesystem(patch_url, storage)
    return rasterise_tile(prepared, tile, files, folder, file_format)


@task(task_run_name="reference-{tiles[0].name}-and-others", cache_policy=NO_CACHE)
def rasterise_chunk(
    tiles: Sequence[Tile],
    prepared: PreparedReference,
    storage: Storage,
    patch_urls: Sequence[str],
    *,
    file_format: FileFormat,
) -> list[LabelRecord | Exception]:
    """Rasterise the reference into several EOPatches in one task run; an error is given as that tile's outcome."""

    def one(tile: Tile, url: str) -> LabelRecord:
        return rasterise_reference.fn(tile, prepared, storage, url, file_format=file_format)

    return [outcome_of(one, tile, url) for tile, url in zip(tiles, patch_urls, strict=True)]
