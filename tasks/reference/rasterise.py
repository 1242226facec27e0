"""Polygons are burned into one tile and added to its EOPatch."""

import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio.raw
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from isal import igzip
from prefect import task
from prefect.cache_policies import NO_CACHE
from rasterio.errors import NotGeoreferencedWarning
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
from tasks.errors import NotPrepared, TileError
from tasks.grid import Tile
from tasks.quality import LabelQuality
from tasks.reference.burning import burn
from tasks.reference.polygons import TilePolygons, polygons_of_tile
from tasks.reference.preparation import NAME_COLUMN, PreparedReference, ReferenceSource, prepare_reference
from tasks.reference.remote import fetched
from tasks.storage import Storage, open_filesystem

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # rasterize() hides it, but not from other threads

POLYGONS = "LULC_REFERENCE"
"""VECTOR_TIMELESS feature with the polygons."""
ID_COLUMN = "LULC_ID"
"""Column of LULC_REFERENCE with class ids, beside NAME_COLUMN."""
GZIP_LEVEL = 2
"""ISA-L's level for polygons: as fast as 1, and smaller."""
MARKER = "REFERENCE"
"""META_INFO feature that commits a tile's reference."""
QUALITY = "quality"
"""Key of the marker under which it tells what the labels are made of."""
CONVERTED_MARKER = "BATCH"
"""META_INFO feature that an EOPatch must have before it gets a reference."""


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """What rasterising a tile did.

    Attributes:
        tile: name.
        quality: what the labels are made of.
        bytes_written: size of the added files.
        seconds: time that it took.
    """

    tile: str
    quality: LabelQuality
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
        prepared: polygons of the tile among others.
        tile: the EOPatch's raster.
        files: file system of the EOPatch.
        folder: the EOPatch's folder there.
        file_format: how LULC is stored.

    Raises:
        TileError: there is no converted EOPatch in the folder.
        NotPrepared: the polygons were prepared for other tiles.
        OSError: the file system fails.
    """
    start = time.monotonic()
    if not files.exists(marker_path(folder, CONVERTED_MARKER)):
        raise TileError(f"Tile {tile.name}: there is no converted EOPatch in {folder}; convert the tile first.")
    found = polygons_of_tile(Path(prepared.folder), tile)
    if found is None:
        raise NotPrepared(f"Tile {tile.name}: no reference was prepared for it; prepare it for this tile too.")
    burned = burn(found.wkb, found.ids, tile, all_touched=prepared.reference.all_touched)
    patch = EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg)))
    patch[FeatureType.MASK_TIMELESS, "LULC"] = burned.classes[..., np.newaxis]
    quality = LabelQuality(
        pixels={number: int(burned.pixels[number]) for number in np.flatnonzero(burned.pixels).tolist()},
        polygons=len(found.ids),
        overlapping=len(burned.overlapping),
        overlap_pixels=burned.overlap_pixels,
        repaired=int(np.count_nonzero(found.repaired)),
        without_class=found.without_class,
        unmapped=found.unmapped,
    )
    patch[FeatureType.META_INFO, MARKER] = _identity(prepared.source, file_format) | {QUALITY: quality.as_json()}
    vectors = {POLYGONS: _vector_file(found, tile.epsg)}
    written = add_features(patch, files, folder, MARKER, file_format, vectors)
    return LabelRecord(tile.name, quality, written, time.monotonic() - start)


def _vector_file(found: TilePolygons, epsg: int) -> bytes:
    """Give the content of LULC_REFERENCE's file, ``.gpkg.gz``: multipolygons, without a spatial index.

    eo-learn reads it as a whole. It writes such files with Fiona, row by row, which takes 40 times as long.
    """
    content = BytesIO()
    pyogrio.raw.write_arrow(
        pa.table({ID_COLUMN: found.ids.astype(np.int32), NAME_COLUMN: found.names, "geometry": found.wkb}),
        content,
        driver="GPKG",
        layer=POLYGONS,
        crs=f"EPSG:{epsg}",
        geometry_type="MultiPolygon",
        geometry_name="geometry",
        dataset_options={"ADD_GPKG_OGR_CONTENTS": "NO"},  # a count of rows, kept by triggers
        layer_options={"SPATIAL_INDEX": "NO"},
    )
    return bytes(igzip.compress(content.getbuffer(), GZIP_LEVEL))


def label_quality(files: AbstractFileSystem, folder: str) -> LabelQuality | None:
    """Tell what the labels of an EOPatch are made of, from its marker; None where that does not say it."""
    marker = check_marker(files, folder, MARKER, {}).marker
    return LabelQuality.from_json(marker[QUALITY]) if QUALITY in marker else None


def _identity(source: ReferenceSource, file_format: FileFormat) -> dict[str, Any]:
    """The marker's content, as JSON gives it back."""
    return {**json.loads(json.dumps(asdict(source))), "file_format": file_format}


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
    prepared = fetched(prepared, tile.epsg, storage)
    try:
        return rasterise_tile(prepared, tile, files, folder, file_format)
    except NotPrepared:  # the service made a tile that was not planned
        with tempfile.TemporaryDirectory(prefix="eopatch-flow-") as alone:
            prepared = prepare_reference(prepared.reference, storage, [tile], Path(alone))
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
