"""What the service delivered for one tile: files that are read, checked against the tile, and accounted for."""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import rasterio.crs
import tifffile
from fsspec import AbstractFileSystem
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from tasks.conversion.mapping import FeatureMapping, stored_type
from tasks.eopatches import file_identity
from tasks.errors import DeliveryError, InvalidInput, TileError
from tasks.evalscript import SampleType
from tasks.grid import Tile

DEFLATE = (8, 32946)
"""Values of TIFF's tag Compression for zlib streams: Adobe's and the older one."""
MAX_TRANSFORM_ERROR_PIXELS = 1e-3
"""How far a corner of a file may lie from the tile's, in pixels: rounding of coordinates, never a shift."""


@dataclass(frozen=True, slots=True)
class TileFiles:
    """What the service delivered for one tile.

    Attributes:
        outputs: path of the GeoTIFF by output id; empty when the service said "No data".
        userdata: path of ``userdata.json``, whose "timestamps" are the dates in the files' order; None without one.
        dates: dates that the tile must have, aware or naive UTC, in any order; None takes those of userdata as they
            are. Without userdata they are the dates of the files, in their order.
    """

    outputs: Mapping[str, str]
    userdata: str | None
    dates: tuple[datetime, ...] | None = None


@dataclass(frozen=True, slots=True)
class Dates:
    """Dates of a tile.

    Attributes:
        timestamps: naive UTC, ascending.
        order: for each timestamp the position of its band in the files; empty when the files have no dates.
    """

    timestamps: tuple[datetime, ...] = ()
    order: tuple[int, ...] = ()


class Delivery:
    """Reads one tile's files, checks each against the tile, and keeps account of what was read."""

    def __init__(self, tile: Tile, delivered: TileFiles, source: AbstractFileSystem) -> None:
        self.tile = tile
        self.delivered = delivered
        self.source = source
        self.sources: dict[str, dict[str, int | str]] = {}

    @property
    def bytes_read(self) -> int:
        """Size of all files that were read."""
        return sum(int(identity["size"]) for identity in self.sources.values())

    def fetch(self, output: str, path: str) -> bytes:
        """Content of a file; its key, size and version are kept for the marker."""
        try:
            self.sources[output] = {"key": path, **file_identity(self.source, path)}
            return bytes(self.source.cat_file(path))
        except FileNotFoundError as error:
            raise self.damage(path, "is missing; the service was expected to deliver it") from error

    @cached_property
    def userdata(self) -> bytes:
        """Content of ``userdata.json``; empty where the script gives none."""
        path = self.delivered.userdata
        return b"" if path is None else self.fetch("userdata", path)

    def raster(self, output: str, bands: int | None = None, sample_type: SampleType | None = None) -> NDArray[Any]:
        """All numbers of an output's file, shape (bands, height, width); None leaves a property unchecked."""
        if output not in self.delivered.outputs:
            names = ", ".join(sorted(self.delivered.outputs))
            raise TileError(f"Tile {self.tile.name}: output {output} was not delivered; {names} were.")
        path = self.delivered.outputs[output]
        content = self.fetch(output, path)
        try:
            with MemoryFile(content or b"empty") as memory, memory.open(driver="GTiff") as raster:
                self._check(raster, path, bands, sample_type)
                numbers = np.asarray(raster.read())
            _verify_checksums(content)
        except (RasterioError, tifffile.TiffFileError, zlib.error) as error:
            raise self.damage(
                path, f"is not a readable GeoTIFF ({len(content)} bytes): truncated or corrupt"
            ) from error
        return numbers

    def fault(self, path: str, problem: str) -> TileError:
        """An error that names tile and file."""
        return TileError(f"Tile {self.tile.name}: {path} {problem}.")

    def damage(self, path: str, problem: str) -> DeliveryError:
        """An error of a file that may come whole when it is ordered again."""
        return DeliveryError(str(self.fault(path, problem)))

    def _check(self, raster: DatasetReader, path: str, bands: int | None, sample_type: SampleType | None) -> None:
        tile = self.tile
        if (raster.width, raster.height) != (tile.width, tile.height):
            came, expected = f"{raster.width} x {raster.height}", f"{tile.width} x {tile.height}"
            raise self.fault(path, f"has {came} pixels (columns x rows), expected {expected}")
        if raster.crs != rasterio.crs.CRS.from_epsg(tile.epsg):
            raise self.fault(path, f"is in {raster.crs or 'no CRS'}, expected EPSG:{tile.epsg}")
        if not _same_place(raster, tile):
            raise self.fault(path, f"has bounds {tuple(raster.bounds)}, expected {tile.bounds}")
        if bands is not None and raster.count != bands:
            raise self.fault(path, f"has {raster.count} bands, expected {bands}, one per date")
        if sample_type is not None and set(raster.dtypes) != {stored_type(sample_type)}:
            raise self.fault(path, f"holds {raster.dtypes[0]}, expected {stored_type(sample_type)}")


def _verify_checksums(content: bytes) -> None:
    """Compare every DEFLATE block with its checksum; GDAL does not, and turns most damage into wrong numbers.

    Raises:
        zlib.error: a block is damaged.
        tifffile.TiffFileError: the file's structure is.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages.first
        if page.compression in DEFLATE:
            for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                if size:  # a sparse file leaves out blocks that hold only zeros
                    zlib.decompress(content[start : start + size])


def _same_place(raster: DatasetReader, tile: Tile) -> bool:
    """Whether three corners of a raster are the tile's; three tell shifts, sizes, flips and rotations apart."""
    to_tile_pixels = ~tile.transform * raster.transform
    corners = [(0, 0), (tile.width, 0), (0, tile.height)]
    return bool(
        np.allclose([to_tile_pixels * corner for corner in corners], corners, atol=MAX_TRANSFORM_ERROR_PIXELS, rtol=0)
    )


def read_dates(delivery: Delivery, mapping: FeatureMapping) -> Dates:
    """Dates of the files in ascending order, checked against those that the tile must have."""
    delivered = delivery.delivered
    if not mapping.temporal:
        return Dates()
    expected = [_naive_utc(date) for date in delivered.dates or ()]
    if not delivered.outputs:
        return Dates(tuple(sorted(expected)))
    if delivered.userdata is None and not expected:
        raise InvalidInput(
            f"Tile {delivery.tile.name}: features with a time axis need dates; let the script return them in "
            "updateOutputMetadata (userdata.json), or map its outputs to timeless features."
        )
    found = expected if delivered.userdata is None else _userdata_dates(delivery, delivered.userdata)
    if found and expected and sorted(found) != sorted(expected):
        raise delivery.fault(str(delivered.userdata), f"names {_span(found)}, expected {_span(expected)}")
    if not found:
        return Dates(tuple(sorted(expected)))
    order = sorted(range(len(found)), key=found.__getitem__)
    return Dates(tuple(found[position] for position in order), tuple(order))


def _userdata_dates(delivery: Delivery, path: str) -> list[datetime]:
    """The "timestamps" of a userdata.json, naive UTC, in its order."""
    try:
        texts = json.loads(delivery.userdata)["timestamps"]
        return [_naive_utc(datetime.fromisoformat(text)) for text in texts]
    except json.JSONDecodeError as error:
        raise delivery.damage(path, f'has no readable list "timestamps" of ISO dates ({error!r})') from error
    except (ValueError, KeyError, TypeError) as error:
        raise delivery.fault(path, f'has no readable list "timestamps" of ISO dates ({error!r})') from error


def read_samples(delivery: Delivery, mapping: FeatureMapping) -> int | None:
    """Number of samples of each pixel: the length of userdata's "acquisitions"; None where it does not tell.

    It decides the price, and nothing else: a script need not tell, and one without dates need not deliver the file.
    """
    if not delivery.delivered.outputs:
        return 0
    try:
        acquisitions = json.loads(delivery.userdata)["acquisitions"]
    except (ValueError, KeyError, TypeError):
        return None
    except TileError:
        if mapping.temporal:
            raise
        return None
    return len(acquisitions) if isinstance(acquisitions, list) else None


def _naive_utc(date: datetime) -> datetime:
    """As eo-learn keeps timestamps."""
    return date if date.tzinfo is None else date.astimezone(UTC).replace(tzinfo=None)


def _span(dates: Sequence[datetime]) -> str:
    return f"{len(dates)} dates from {min(dates).isoformat()} to {max(dates).isoformat()}"
