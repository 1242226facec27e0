"""One tile's files become one EOPatch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ConfigDict, Field
from sentinelhub import CRS, BBox

from tasks.conversion.delivery import Dates, Delivery, TileFiles, read_dates, read_samples
from tasks.conversion.mapping import FeatureMapping, FeatureRule
from tasks.conversion.verification import delete_raw, difference
from tasks.eopatches import (
    RETRIES,
    RETRY_DELAY_SECONDS,
    FileFormat,
    Verdict,
    check_marker,
    network_failed,
    outcome_of,
    remove_patch,
    write_patch,
)
from tasks.errors import TileError
from tasks.form import FormModel
from tasks.grid import Tile
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
        "what was written; an EOPatch that is lost after that has to be bought again. Tiles without an EOPatch keep "
        "their files.",
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
    delivery = Delivery(tile, delivered, source)
    dates = read_dates(delivery, mapping)
    samples = read_samples(delivery, mapping)
    quality = _quality(delivery, mapping, dates)
    has_data = _has_data(delivered, mapping, dates, quality)
    if has_data or options.keep_empty:
        patch = _patch(delivery, mapping, dates, quality, has_data=has_data)
        patch.meta_info[MARKER] = _identity(tile.name, mapping, options.file_format, provenance) | {
            "request_id": provenance.request_id,
            "evalscript_sha256": provenance.evalscript_sha256,
            "samples": samples,
            "sources": delivery.sources,
        }
        written = write_patch(patch, target, folder, MARKER, options.file_format)
        note = _delete_raw(delivery, patch, target, folder) if options.raw_tiles == "delete" else ""
    else:
        remove_patch(target, folder, MARKER)
        written, note = 0, ""
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


def _delete_raw(delivery: Delivery, patch: EOPatch, target: AbstractFileSystem, folder: str) -> str:
    """Read the EOPatch back, and delete what it was made of if it is what was written; why that failed, or nothing.

    Raises:
        TileError: it is not; it has been removed, and the delivered files are as they were.
    """
    differs = difference(patch, target, folder)
    if differs:
        remove_patch(target, folder, MARKER)
        raise TileError(
            f"Tile {delivery.tile.name}: the EOPatch in {folder} is not what was written: {differs}. It was removed, "
            "the delivered files were kept; check the storage and run again."
        )
    return delete_raw(delivery.delivered, delivery.source)


def decode(numbers: NDArray[Any], rule: FeatureRule) -> NDArray[Any]:
    """Turn delivered numbers into a feature's values: ``number * scale + offset``, 0 where there is no data.

    Args:
        numbers: any shape; integers are scaled in double precision.
        rule: scale, offset, no-data number and type of the result.

    Raises:
        ValueError: a value does not fit the rule's type.
    """
    values = numbers if (rule.scale, rule.offset) == (1.0, 0.0) else numbers * rule.scale + rule.offset
    missing = ~np.isfinite(values)
    if rule.no_data is not None:
        missing |= numbers == rule.no_data
    if missing.any():
        values = np.where(missing, values.dtype.type(0), values)
    dtype = np.dtype(rule.dtype)
    if dtype.kind != "f" and values.dtype.kind == "f":
        values = np.rint(values)
    if dtype.kind != "f" and not np.can_cast(values.dtype, dtype):
        _check_range(values, dtype)
    return values.astype(dtype, copy=False)


def _check_range(values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    limits, low, high = np.iinfo(dtype), values.min(), values.max()
    if low < limits.min or high > limits.max:
        raise ValueError(f"values from {low} to {high} do not fit {dtype}; change the rule's scale, offset or dtype")


def _quality(delivery: Delivery, mapping: FeatureMapping, dates: Dates) -> NDArray[Any] | None:
    """The quality output as delivered, ascending by date, shape (time, height, width); 0 where there is no file."""
    if mapping.quality_output is None:
        return None
    if not dates.order:
        return np.zeros((len(dates.timestamps), delivery.tile.height, delivery.tile.width), np.uint8)
    quality = delivery.raster(mapping.quality_output, len(dates.order))
    return quality[list(dates.order)]


def _has_data(delivered: TileFiles, mapping: FeatureMapping, dates: Dates, quality: NDArray[Any] | None) -> bool:
    """Whether there is a single value in the tile."""
    if not delivered.outputs or (mapping.temporal and not dates.order):
        return False
    return quality is None or bool(quality.any())


def _patch(
    delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: NDArray[Any] | None, *, has_data: bool
) -> EOPatch:
    """Put features, masks, dates and place together; values without data become 0."""
    tile = delivery.tile
    if mapping.temporal and not dates.timestamps:
        raise TileError(f"Tile {tile.name} has no data and no dates for an empty EOPatch; switch keep_empty off.")
    patch = EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg)), timestamps=list(dates.timestamps) or None)
    for rule in mapping.features:
        feature = _read_feature(delivery, rule, dates) if has_data else _empty_feature(tile, rule, dates)
        if quality is not None and rule.temporal:
            feature[quality == 0] = 0
        patch[FeatureType(rule.feature_type), rule.name] = feature
    if quality is not None:
        patch.mask["IS_DATA"] = (quality > 0)[..., np.newaxis]
        patch.mask["IS_VALID"] = (quality == 1)[..., np.newaxis]
    return patch


def _read_feature(delivery: Delivery, rule: FeatureRule, dates: Dates) -> NDArray[Any]:
    """Read and decode a feature's files; the one place where GeoTIFF's axes become eo-learn's.

    Files are (date, row, column) and become (time, height, width, band), time ascending, one band per file. Files of
    timeless features are (band, row, column) and become (height, width, band).
    """
    tile = delivery.tile
    if rule.temporal:
        feature = _empty_feature(tile, rule, dates)
        for band, output in enumerate(rule.outputs):
            numbers = delivery.raster(output, len(dates.order), rule.sample_type)
            for time_index, date in enumerate(dates.order):
                feature[time_index, :, :, band] = _decoded(delivery, numbers[date], rule)
        return feature
    numbers = np.concatenate([delivery.raster(output, None, rule.sample_type) for output in rule.outputs])
    return np.moveaxis(_decoded(delivery, numbers, rule), 0, -1)


def _decoded(delivery: Delivery, numbers: NDArray[Any], rule: FeatureRule) -> NDArray[Any]:
    try:
        return decode(numbers, rule)
    except ValueError as error:
        raise TileError(f"Tile {delivery.tile.name}: feature {rule.name}: {error}.") from error


def _empty_feature(tile: Tile, rule: FeatureRule, dates: Dates) -> NDArray[Any]:
    """Zeros in a feature's shape; a timeless feature gets one band per output."""
    time_axis = (len(dates.timestamps),) if rule.temporal else ()
    return np.zeros((*time_axis, tile.height, tile.width, len(rule.outputs)), rule.dtype)


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
