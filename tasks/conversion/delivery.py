"""What the service delivered for one tile: files that are read, checked against the tile, and accounted for."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio.crs
import tifffile
from fsspec import AbstractFileSystem
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.session import DummySession

from tasks.conversion.content import Content, open_content
from tasks.conversion.geotiff import DamagedBlock, Job, decode_job, decode_with_gdal, read_layout
from tasks.conversion.mapping import FeatureMapping, stored_type
from tasks.conversion.planes import Planes, Pool, Rooms
from tasks.eopatches import file_identity
from tasks.errors import DeliveryError, InvalidInput, TileError
from tasks.evalscript import SampleType
from tasks.grid import Tile
from tasks.workers import in_order

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
    """Reads one tile's files, checks each against the tile, and keeps account of what was read; threads may share it.

    Args:
        tile: the raster that every file must have.
        delivered: paths in ``source``.
        source: file system of the delivery.
        scratch: local folder for what is too large to be held in memory, see `tasks.conversion.planes`.
        pool: memory for the rest.
    """

    def __init__(self, tile: Tile, delivered: TileFiles, source: AbstractFileSystem, scratch: Path, pool: Pool) -> None:
        self.tile = tile
        self.delivered = delivered
        self.source = source
        self.scratch = scratch
        self.pool = pool
        self.sources: dict[str, dict[str, int | str]] = {}

    @property
    def bytes_read(self) -> int:
        """Size of all files that were read."""
        return sum(int(identity["size"]) for identity in self.sources.values())

    @contextmanager
    def open(self, output: str, path: str) -> Iterator[Content]:
        """Give a file's content; its key, size and version are kept for the marker."""
        try:
            identity = file_identity(self.source, path)
            self.sources[output] = {"key": path, **identity}
            content = open_content(self.source, path, int(identity["size"]), self.scratch)
        except FileNotFoundError as error:
            raise self.damage(path, "is missing; the service was expected to deliver it") from error
        with content:
            yield content

    @cached_property
    def userdata(self) -> bytes:
        """Content of ``userdata.json``; empty where the script gives none."""
        path = self.delivered.userdata
        if path is None:
            return b""
        with self.open("userdata", path) as content:
            return bytes(content.read_at(0, content.size))

    def planes(
        self,
        output: str,
        rooms: Rooms,
        dates: int | None = None,
        sample_type: SampleType | None = None,
        *,
        per_date: int = 1,
    ) -> Planes:
        """All numbers of an output's file, shape (bands, height, width); None leaves a property unchecked.

        Args:
            output: id.
            rooms: of the feature that it belongs to.
            dates: how many the file must have.
            per_date: how many bands it must have for each date.
            sample_type: that the file must have.
        """
        if output not in self.delivered.outputs:
            names = ", ".join(sorted(self.delivered.outputs))
            raise TileError(f"Tile {self.tile.name}: output {output} was not delivered; {names} were.")
        path = self.delivered.outputs[output]
        with self.open(output, path) as content:
            try:
                with (
                    rasterio.Env(DummySession(), GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),  # one of AWS takes 13 ms
                    content.opened_by_gdal() as raster,
                ):
                    self._check(raster, path, sample_type)
                    self._check_bands(raster, path, dates, per_date)
                    shape = (raster.count, raster.height, raster.width)
                    planes = rooms.planes(shape, np.dtype(raster.dtypes[0]))
                    _decode(content, raster, planes)
            except (RasterioError, tifffile.TiffFileError, DamagedBlock) as error:
                raise self.damage(
                    path, f"is not a readable GeoTIFF ({content.size} bytes): truncated or corrupt"
                ) from error
        return planes

    def fault(self, path: str, problem: str) -> TileError:
        """An error that names tile and file."""
        return TileError(f"Tile {self.tile.name}: {path} {problem}.")

    def damage(self, path: str, problem: str) -> DeliveryError:
        """An error of a file that may come whole when it is ordered again."""
        return DeliveryError(str(self.fault(path, problem)))

    def _check(self, raster: DatasetReader, path: str, sample_type: SampleType | None) -> None:
        tile = self.tile
        if (raster.width, raster.height) != (tile.width, tile.height):
            came, expected = f"{raster.width} x {raster.height}", f"{tile.width} x {tile.height}"
            raise self.fault(path, f"has {came} pixels (columns x rows), expected {expected}")
        if raster.crs != rasterio.crs.CRS.from_epsg(tile.epsg):
            raise self.fault(path, f"is in {raster.crs or 'no CRS'}, expected EPSG:{tile.epsg}")
        if not _same_place(raster, tile):
            raise self.fault(path, f"has bounds {tuple(raster.bounds)}, expected {tile.bounds}")
        if sample_type is not None and set(raster.dtypes) != {stored_type(sample_type)}:
            raise self.fault(path, f"holds {raster.dtypes[0]}, expected {stored_type(sample_type)}")

    def _check_bands(self, raster: DatasetReader, path: str, dates: int | None, per_date: int) -> None:
        if dates is not None and raster.count != dates * per_date:
            each = "one per date" if per_date == 1 else f"{per_date} for each of {dates} dates"
            raise self.fault(path, f"has {raster.count} bands, expected {dates * per_date}, {each}")


def _decode(content: Content, raster: DatasetReader, planes: Planes) -> None:
    """Decode a file, its blocks in parallel where they are independent of each other."""
    layout = read_layout(content.for_tifffile(), raster.nodata or 0)
    if layout is None or layout.shape != planes.numbers.shape or layout.dtype != planes.numbers.dtype:
        decode_with_gdal(raster, planes.numbers)
        planes.release()
        return

    def decode(job: Job) -> None:
        decode_job(content, layout, job, planes.numbers)
        planes.release()

    for _ in in_order(decode, layout.jobs()):
        pass


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
        raise delivery.fault(
            str(delivered.userdata),
            f"names {_span(found)}, expected {_span(expected)}{_differing(found, expected, 'not expected')}"
            f"{_differing(expected, found, 'missing')}",
        )
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
        raise delivery.fault(
            path,
            f'has no readable list "timestamps" of ISO dates ({error!r}); let the script\'s updateOutputMetadata '
            "return it, or map all outputs to timeless features",
        ) from error


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


def _differing(dates: Iterable[datetime], others: Iterable[datetime], what: str) -> str:
    """Name the first dates that others do not have as often; empty when there are none."""
    found = sorted((Counter(dates) - Counter(others)).elements())
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"; {what}: {', '.join(date.isoformat() for date in found[:3])}{more}" if found else ""


def _span(dates: Sequence[datetime]) -> str:
    return f"{len(dates)} dates from {min(dates).isoformat()} to {max(dates).isoformat()}"
