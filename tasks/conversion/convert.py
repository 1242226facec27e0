"""One tile's files become one EOPatch."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ConfigDict, Field
from sentinelhub import CRS, BBox

from tasks.arrayfiles import FileFormat, array_path, save_array
from tasks.conversion.delivery import Dates, Delivery, TileFiles, read_dates, read_samples
from tasks.conversion.features import Feature, check_nothing_seen, empty_features, features, read_quality
from tasks.conversion.mapping import FeatureMapping
from tasks.conversion.planes import Planes, tile_pool
from tasks.conversion.verification import PatchContent, StoredArray, delete_raw, difference
from tasks.eopatches import (
    RETRIES,
    RETRY_DELAY_SECONDS,
    Verdict,
    check_marker,
    make_durable,
    network_failed,
    new_patch,
    outcome_of,
    remove_patch,
    save_features,
)
from tasks.errors import TileError
from tasks.form import FormModel
from tasks.grid import Tile
from tasks.scratch import scratch_folder
from tasks.storage import Storage, open_filesystem

MARKER = "BATCH"
"""META_INFO feature that commits a conversion."""


class PatchOptions(FormModel):
    """How EOPatches are stored."""

    model_config = ConfigDict(title="EOPatches")

    file_format: FileFormat = Field(
        default="npy.gz",
        title="File format",
        description="npy.gz: gzipped NumPy files, eo-learn's default. zarr: version 2, one chunk a date, faster.",
        examples=["npy.gz"],
    )
    band_dtype: Literal["float32", "uint16"] = Field(
        default="float32",
        title="Type of BANDS",
        description="float32: reflectance. uint16: reflectance times 10000, half the size. A mapping of your own "
        "names the type itself.",
        examples=["float32"],
    )
    keep_empty: bool = Field(
        default=False,
        title="Keep empty tiles",
        description="Write an EOPatch of the usual shape and dates, all 0, for a tile without any data.",
        examples=[False],
    )

    raw_tiles: Literal["keep", "delete"] = Field(
        default="keep",
        title="Raw tiles",
        description="What becomes of the delivered GeoTIFFs. delete: once a tile's EOPatch has been read back and is "
        "what was written; an EOPatch that is lost after that has to be bought again. Tiles without data, "
        "or without an EOPatch, keep their files.",
        examples=["keep"],
    )


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a tile comes from, as META_INFO/BATCH keeps it.

    Attributes:
        request_id: of the batch request that delivered it.
        fingerprint: identity of the work; a conversion is repeated when it differs.
        evalscript_sha256: hash of the rendered evalscript.
    """

    request_id: str
    fingerprint: str
    evalscript_sha256: str


@dataclass(frozen=True, slots=True)
class ConversionRecord:
    """What a conversion did.

    Attributes:
        tile: name.
        outcome: "no data" when there is not one value in the tile; an EOPatch is then written only with ``keep_empty``.
        dates: number of dates.
        bytes_read: size of the files that were read.
        bytes_written: size of the EOPatch's files.
        seconds: time that the conversion took.
        samples: of each pixel, as userdata.json tells; None where it does not.
        note: what did not work, though the EOPatch is complete; empty otherwise.
    """

    tile: str
    outcome: Literal["converted", "no data"]
    dates: int
    bytes_read: int
    bytes_written: int
    seconds: float
    samples: int | None
    note: str = ""


def is_converted(
    files: AbstractFileSystem,
    folder: str,
    tile_name: str,
    mapping: FeatureMapping,
    file_format: FileFormat,
    provenance: Provenance,
) -> Verdict:
    """Tell from META_INFO/BATCH and a listing whether a tile's EOPatch is complete and is what would be made now."""
    return check_marker(files, folder, MARKER, _identity(tile_name, mapping, file_format, provenance))


def convert_tile(
    tile: Tile,
    delivered: TileFiles,
    source: AbstractFileSystem,
    target: AbstractFileSystem,
    folder: str,
    *,
    mapping: FeatureMapping,
    options: PatchOptions,
    provenance: Provenance,
) -> ConversionRecord:
    """Convert one tile's files to one EOPatch and commit it.

    Args:
        tile: the raster that every file must have.
        delivered: paths in ``source``.
        source: file system of the delivery.
        target: file system of the EOPatch.
        folder: the EOPatch's folder in ``target``; whatever is there is replaced.
        mapping: from outputs to features.
        options: how the EOPatch is stored, and whether there is one for a tile without data.
        provenance: for the marker.

    Raises:
        TileError: a file is missing, truncated, corrupt, or not the tile's; nothing is written.
        InvalidInput: features have a time axis, but nothing gives the dates.
        OSError: a file system fails.
    """
    start = time.monotonic()
    with scratch_folder() as scratch, tile_pool() as pool:
        delivery = Delivery(tile, delivered, source, scratch, pool)
        dates = read_dates(delivery, mapping)
        samples = read_samples(delivery, mapping)
        quality = read_quality(delivery, mapping, dates)
        has_data = _has_data(delivery, mapping, dates, quality)
        written, note = 0, ""
        if has_data or options.keep_empty:
            made = features(delivery, mapping, dates, quality) if has_data else _empty(tile, mapping, dates)
            marker = _identity(tile.name, mapping, options.file_format, provenance) | {
                "request_id": provenance.request_id,
                "evalscript_sha256": provenance.evalscript_sha256,
                "samples": samples,
            }
            written, content = _write(delivery, made, dates, marker, target, folder, options)
            if has_data and options.raw_tiles == "delete":
                note = _delete_raw(delivery, content, target, folder)
        else:
            remove_patch(target, folder, MARKER)
    return ConversionRecord(
        tile=tile.name,
        outcome="converted" if has_data else "no data",
        dates=len(dates.timestamps),
        bytes_read=delivery.bytes_read,
        bytes_written=written,
        seconds=time.monotonic() - start,
        samples=samples,
        note=note,
    )


def _write(
    delivery: Delivery,
    made: Generator[Feature, None, None],
    dates: Dates,
    marker: dict[str, Any],
    target: AbstractFileSystem,
    folder: str,
    options: PatchOptions,
) -> tuple[int, PatchContent]:
    """Write features as they are made, and the marker when all are; gives the bytes, and what was written."""
    tile, arrays = delivery.tile, {}
    patch = EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg)), timestamps=list(dates.timestamps) or None)
    with new_patch(target, folder, MARKER) as new, closing(made):
        for feature in made:
            path, source = new.folder / feature.feature_type / feature.name, feature.source
            hashes = save_array(source, path, options.file_format, hashed=options.raw_tiles == "delete")
            stored = StoredArray(source.shape, source.dtype, source.temporal, tuple(hashes))
            arrays[FeatureType(feature.feature_type), feature.name] = stored
            new.finished(array_path(path, options.file_format))
        patch.meta_info[MARKER] = marker | {"sources": dict(sorted(delivery.sources.items()))}
        save_features(patch, new.folder, options.file_format)
    return new.size, PatchContent(patch, arrays, options.file_format)


def _delete_raw(delivery: Delivery, content: PatchContent, target: AbstractFileSystem, folder: str) -> str:
    """Read the EOPatch back, and delete what it was made of if it is what was written; why that failed, or nothing.

    Raises:
        TileError: it is not; it has been removed, and the delivered files are as they were.
    """
    differs = difference(content, target, folder)
    if differs:
        remove_patch(target, folder, MARKER)
        raise TileError(
            f"Tile {delivery.tile.name}: the EOPatch in {folder} is not what was written: {differs}. It was removed, "
            "the delivered files were kept; check the storage and run again."
        )
    make_durable(target, folder)
    return delete_raw(delivery.delivered, delivery.source)


def _has_data(delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> bool:
    """Whether there is a single value in the tile."""
    if not delivery.delivered.outputs:
        return False
    if mapping.temporal and not dates.order:
        check_nothing_seen(delivery, mapping)
        return False
    return quality is None or any((date > 0).any() for date in quality.numbers)


def _empty(tile: Tile, mapping: FeatureMapping, dates: Dates) -> Generator[Feature, None, None]:
    if mapping.temporal and not dates.timestamps:
        raise TileError(f"Tile {tile.name} has no data and no dates for an empty EOPatch; switch keep_empty off.")
    return empty_features(tile, mapping, dates)


def _identity(
    tile_name: str, mapping: FeatureMapping, file_format: FileFormat, provenance: Provenance
) -> dict[str, Any]:
    """What decides whether a conversion must be repeated; a repair has another request id, but the same fingerprint."""
    return {
        "tile": tile_name,
        "fingerprint": provenance.fingerprint,
        "mapping_sha256": mapping.sha256,
        "file_format": file_format,
    }


@task(
    task_run_name="convert-{tile.name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=network_failed,
    cache_policy=NO_CACHE,
)
def convert(
    tile: Tile,
    delivered: TileFiles,
    storage: Storage,
    patch_url: str,
    *,
    mapping: FeatureMapping,
    options: PatchOptions,
    provenance: Provenance,
) -> ConversionRecord:
    """Convert one tile from ``storage.tiles_url`` to an EOPatch at ``patch_url``; see :func:`convert_tile`."""
    source, _ = open_filesystem(storage.tiles_url, storage)
    target, folder = open_filesystem(patch_url, storage)
    return convert_tile(
        tile, delivered, source, target, folder, mapping=mapping, options=options, provenance=provenance
    )


@task(task_run_name="convert-{tiles[0].name}-and-others", cache_policy=NO_CACHE)
def convert_chunk(
    tiles: Sequence[Tile],
    delivered: Sequence[TileFiles],
    storage: Storage,
    patch_urls: Sequence[str],
    *,
    mapping: FeatureMapping,
    options: PatchOptions,
    provenance: Provenance,
) -> list[ConversionRecord | Exception]:
    """Convert several tiles in one task run, each on its own: an error is given as that tile's outcome."""

    def one(tile: Tile, files: TileFiles, url: str) -> ConversionRecord:
        return convert.fn(tile, files, storage, url, mapping=mapping, options=options, provenance=provenance)

    return [outcome_of(one, tile, files, url) for tile, files, url in zip(tiles, delivered, patch_urls, strict=True)]
