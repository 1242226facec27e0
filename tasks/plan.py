"""What will be done, before anything is created or bought: area, period, tiles, what exists already."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, field_validator, model_validator
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import Transformer
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from tasks.errors import InvalidInput
from tasks.form import FormModel
from tasks.grid import GRIDS, Tile, grid_with, tiles_of_geopackage, tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.reference.address import check_address, is_database

LONLAT = 4326
"""EPSG code of longitude and latitude, the CRS of bbox and GeoJSON."""
SURVEY_THREADS = 16
MAX_EDGE = 10_000.0
"""Longest edge of an area that is brought from a projected CRS to longitude and latitude, in its unit (metres)."""


Days = Literal[
    "first to last day",
    "last 30 days",
    "last full month",
    "last 3 months",
    "last 6 months",
    "last 12 months",
    "last full quarter",
    "last full year",
]
"""Which days a period has: given ones, or such as lie behind the day that a run is scheduled for."""
MONTHS_BEFORE = {
    "last full month": (1, 1),
    "last 3 months": (1, 3),
    "last 6 months": (1, 6),
    "last 12 months": (1, 12),
    "last full quarter": (3, 3),
    "last full year": (12, 12),
}
"""Whole months of a period: it ends where a unit of so many months of the year has begun, and has so many."""
FIRST_SCENES = date(2015, 6, 27)
"""Day of Sentinel-2's first image, four days after its launch (ESA)."""
_YEAR_OF_MONTHS = tuple(date(2023, month, 1) for month in range(1, 13))


class Area(FormModel):
    """Where: one of bbox, GeoJSON or file."""

    model_config = ConfigDict(title="Area")

    name: str = Field(
        default="Sample",
        title="Name",
        description="Names the folder of results, together with the period.",
        examples=["Slovenia"],
        min_length=1,
        max_length=60,
    )
    bbox: tuple[float, float, float, float] | None = Field(
        default=None,
        title="Bounding box",
        description="West, south, east, north in degrees.",
        examples=[[14.4, 46.0, 14.6, 46.1]],
    )
    geojson: dict[str, Any] | None = Field(
        default=None,
        title="GeoJSON",
        description="Polygon, MultiPolygon, Feature or FeatureCollection in longitude and latitude.",
        examples=[{"type": "Polygon", "coordinates": [[[14.4, 46.0], [14.6, 46.0], [14.6, 46.1], [14.4, 46.0]]]}],
    )
    file: str | None = Field(
        default=None,
        title="File",
        description="Vector file with polygons, in any format and CRS that GDAL reads: a path, or one file on s3://.",
        examples=["slovenia.gpkg"],
    )

    @field_validator("file")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is not None:
            check_address(value)
            if is_database(value):
                raise ValueError("a database is no area file; write the area's polygons to a file")
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not _plain_words(value):
            raise ValueError("area.name needs a Latin letter or a digit, of which the folder's name is made")
        return value

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [name for name in ("bbox", "geojson", "file") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"area is given {len(given)} times, as {' and '.join(given)}; give one of bbox, geojson, file"
            )
        return self


class Period(FormModel):
    """When: first and last day, or days that move along with a schedule; and the step of the output dates."""

    model_config = ConfigDict(title="Period")

    days: Days = Field(
        default="first to last day",
        title="Days",
        description="The first to the last day given below; or days that lie behind the day (UTC) for which the run is "
        "scheduled, in whole months. Scenes arrive a day or so late: let a schedule wait for them.",
        examples=["last full month"],
    )
    start: date | None = Field(
        default=None,
        title="First day",
        description="Also the first output date. Empty when the days above move along.",
        examples=["2019-01-01"],
    )
    end: date | None = Field(
        default=None,
        title="Last day",
        description="The last day with acquisitions, inclusive. Empty when the days above move along.",
        examples=["2019-12-31"],
    )
    step_days: int = Field(
        default=15, title="Step", description="Days between two output dates.", examples=[10, 15, 30], ge=1, le=366
    )

    @model_validator(mode="after")
    def _given_once(self) -> Self:
        given = [name for name in ("start", "end") if getattr(self, name) is not None]
        if self.days != "first to last day" and given:
            raise ValueError(
                f"period is given twice, by days '{self.days}' and by {' and '.join(given)}; empty the latter, or "
                "choose days 'first to last day'"
            )
        if self.days == "first to last day" and len(given) < 2:
            came = f"{given[0]} alone" if given else "neither"
            raise ValueError(
                f"period needs start and end, but has {came}; give both, or choose days that move along, such as "
                "'last full month'"
            )
        return self

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        """Check the shortest period that can come: a schedule must not fail in February."""
        for day in _YEAR_OF_MONTHS:
            self.on(day)
        return self

    def on(self, today: date) -> "TimeRange":
        """Give the days that are meant on a day.

        Raises:
            ValueError: the period ends before it starts, or is shorter than a step.
        """
        if self.start is not None and self.end is not None:
            return TimeRange(self.start, self.end, self.step_days)
        start, end = _days_before(self.days, today)
        return TimeRange(start, end, self.step_days)


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A period whose days are known.

    Attributes:
        start: first day, and first output date.
        end: last day, inclusive.
        step_days: days between two output dates.

    Raises:
        ValueError: it ends before it starts, or is shorter than a step.
    """

    start: date
    end: date
    step_days: int = 15

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"period ends on {self.end}, before it starts on {self.start}; exchange the two")
        if self.step_days > self.length_days:
            raise ValueError(
                f"step of {self.step_days} days is longer than the period of {self.length_days} days; shorten the step"
            )

    @property
    def length_days(self) -> int:
        """Number of days."""
        return (self.end - self.start).days + 1


class Tiling(FormModel):
    """How the area is cut into tiles: one of the service's grids, or a GeoPackage of your own."""

    model_config = ConfigDict(title="Tiling")

    grid: Literal[0, 1, 2] = Field(
        default=1,
        title="Tiling grid",
        description="0: UTM tiles of 20 km; 1: of 10 km; 2: of 100 km.",
        examples=[1],
    )
    resolution_m: float = Field(
        default=20.0,
        title="Resolution",
        description="Pixel size in metres. Grid 0 offers 10, 20 and 60, grid 1 offers 10 and 20, "
        "grid 2 offers 60, 120, 240 and 360.",
        examples=[10.0],
        gt=0,
    )
    geopackage: str | None = Field(
        default=None,
        title="GeoPackage",
        description="Local file with your own tiles instead of a grid: columns identifier and either resolution or "
        "width and height. The area, when given, selects among them.",
        examples=["my_tiles.gpkg"],
    )

    @field_validator("grid", mode="before")
    @classmethod
    def _names_its_tiles(cls, value: object) -> object:
        if isinstance(value, int) and value in GRIDS and value > 2:
            raise ValueError(
                f"tiling grid {value} cannot be followed tile by tile: the service does not publish how it names the "
                "tiles; choose 0, 1 or 2, or give a GeoPackage with tiles of your own, in any CRS"
            )
        return value


def check_archive(period: TimeRange, today: date) -> None:
    """Refuse a period that the archive cannot have: before the first scenes, or not over yet.

    Raises:
        InvalidInput: with the day that it may have.
    """
    if period.end < FIRST_SCENES:
        raise InvalidInput(
            f"The period ends on {period.end}, before Sentinel-2's first scenes of {FIRST_SCENES}; choose a later one."
        )
    if period.end > today:
        raise InvalidInput(
            f"The period ends on {period.end}, but today is {today} (UTC): the scenes that are still to come would be "
            f"missing for good. Let it end by {today}."
        )


def slug(area: Area, period: TimeRange) -> str:
    """Name of the folder of results and part of artifact keys: lower-case letters, digits and dashes."""
    return f"{_plain_words(area.name)}-{period.start:%Y%m%d}-{period.end:%Y%m%d}"


def area_geometry(area: Area, local_file: str | None = None) -> BaseGeometry | None:
    """Give the area in longitude and latitude; None when none is given.

    Args:
        area: bbox, GeoJSON or file.
        local_file: where a copy of the file lies, if it is elsewhere.

    Raises:
        InvalidInput: it cannot be read, has no CRS, is empty, crosses itself, or has no polygons.
    """
    if area.bbox is not None:
        return _bbox_geometry(area.bbox)
    if area.geojson is not None:
        return _checked(_geojson_geometry(area.geojson), "area.geojson")
    if area.file is not None:
        return _checked(_file_geometry(area.file, local_file or area.file), f"the area file {area.file}")
    return None


def checked_tiling(tiling: Tiling) -> Tiling:
    """Give the tiling, which is sound as far as can be told without an area.

    Raises:
        InvalidInput: a resolution that the grid lacks, a GeoPackage that cannot be read or breaks a rule.
    """
    try:
        if tiling.geopackage is None:
            grid_with(tiling.grid, tiling.resolution_m)
        else:
            tiles_of_geopackage(tiling.geopackage)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    return tiling


def plan_tiles(tiling: Tiling, area: BaseGeometry | None) -> list[Tile]:
    """Give the tiles that overlap the area, sorted by name; all of a GeoPackage when there is no area.

    Raises:
        InvalidInput: a resolution that the grid lacks, an area outside of it, a GeoPackage that breaks a rule.
    """
    try:
        tiles = _tiles(tiling, area)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    if not tiles:
        source = tiling.geopackage or f"tiling grid {tiling.grid}"
        raise InvalidInput(
            f"The area overlaps no tile of {source}; check its coordinates (longitude first) and its CRS."
        )
    return tiles


def geopackage_bytes(path: str) -> bytes:
    """Content of the GeoPackage with tiles, as it will be uploaded for the service.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"The GeoPackage {path} cannot be read: {error}.") from error


def survey(
    tiles: Iterable[Tile], converted: Callable[[Tile], bool], labelled: Callable[[Tile], bool]
) -> list[TileRecord]:
    """Look at what exists: a tile is pending, converted, or labelled as well. Several tiles are looked at at a time."""

    def look(tile: Tile) -> TileRecord:
        if not converted(tile):
            return TileRecord(tile, TileState.PENDING)
        return TileRecord(tile, TileState.LABELLED if labelled(tile) else TileState.CONVERTED)

    with ThreadPoolExecutor(SURVEY_THREADS) as pool:
        return list(pool.map(look, tiles))


def _days_before(days: Days, today: date) -> tuple[date, date]:
    """First and last day of a period that lies behind ``today``; months are those of the calendar."""
    if days == "last 30 days":
        return today - timedelta(days=30), today - timedelta(days=1)
    unit, length = MONTHS_BEFORE[days]
    month = today.year * 12 + today.month - 1
    after = month - month % unit
    return _first_of(after - length), _first_of(after) - timedelta(days=1)


def _first_of(month: int) -> date:
    """First day of a month, counted from year 0."""
    return date(month // 12, month % 12 + 1, 1)


def _plain_words(text: str) -> str:
    """Latin letters without their accents, and digits, in lower case; dashes for all else."""
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _bbox_geometry(bbox: tuple[float, float, float, float]) -> BaseGeometry:
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise InvalidInput(
            f"area.bbox is {list(bbox)}; west, south, east, north in degrees are needed, west < east and south < north."
        )
    return shapely.box(west, south, east, north)


def _geojson_geometry(geojson: dict[str, Any]) -> BaseGeometry:
    try:
        features = geojson["features"] if geojson.get("type") == "FeatureCollection" else [geojson]
        shapes = [shape(feature.get("geometry", feature)) for feature in features]
        return _union(shapes, "area.geojson")
    except InvalidInput:
        raise
    except (shapely.errors.ShapelyError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidInput(
            f"area.geojson is not a GeoJSON geometry: {error!r}. It starts {json.dumps(geojson)[:80]}."
        ) from error


def _file_geometry(name: str, path: str) -> BaseGeometry:
    try:
        frame = gpd.read_file(path, engine="pyogrio")
    except (DataSourceError, DataLayerError, OSError) as error:
        raise InvalidInput(f"The area file {name} cannot be read: {error}. Check path and format.") from error
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise InvalidInput(f"The area file {name} has no geometries with a CRS; set its CRS and try again.")
    frame = frame[frame.geometry.notna()]
    area = _union(frame.geometry.to_list(), f"the area file {name}")
    if not frame.crs.is_geographic:
        area = area.segmentize(MAX_EDGE)  # straight there, but not in longitude and latitude
    projected: BaseGeometry = gpd.GeoSeries([area], crs=frame.crs).to_crs(LONLAT).iloc[0]
    return projected


def _union(geometries: list[BaseGeometry], what: str) -> BaseGeometry:
    """Unite geometries, each of which must be valid; without a third dimension."""
    for geometry in geometries:
        if not geometry.is_valid:
            reason = shapely.is_valid_reason(geometry)
            raise InvalidInput(f"{what[0].upper()}{what[1:]} has an invalid geometry: {reason}. Mend it, in QGIS say.")
    united: BaseGeometry = geometries[0] if len(geometries) == 1 else shapely.union_all(geometries)
    return shapely.force_2d(united)


def _checked(geometry: BaseGeometry, what: str) -> BaseGeometry:
    if geometry.is_empty:
        raise InvalidInput(f"The geometry of {what} is empty; give a polygon.")
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        raise InvalidInput(f"The geometry of {what} is a {geometry.geom_type}; give a Polygon or MultiPolygon.")
    west, south, east, north = geometry.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise InvalidInput(
            f"The geometry of {what} reaches from {west:g}, {south:g} to {east:g}, {north:g}, which are no "
            "longitudes and latitudes in degrees; reproject it to EPSG:4326, longitude first."
        )
    return geometry


def _tiles(tiling: Tiling, area: BaseGeometry | None) -> list[Tile]:
    if tiling.geopackage is not None:
        return _overlapping(tiles_of_geopackage(tiling.geopackage), area)
    if area is None:
        raise ValueError("No area is given; give one of area.bbox, area.geojson, area.file.")
    return tiles_of_grid(area, LONLAT, tiling.grid, tiling.resolution_m)


def _overlapping(tiles: list[Tile], area: BaseGeometry | None) -> list[Tile]:
    if area is None:
        return tiles
    groups = {epsg: [tile for tile in tiles if tile.epsg == epsg] for epsg in sorted({tile.epsg for tile in tiles})}
    kept = {tile.name for epsg, group in groups.items() for tile in _overlapping_in(epsg, group, area)}
    return [tile for tile in tiles if tile.name in kept]


def _overlapping_in(epsg: int, tiles: list[Tile], area: BaseGeometry) -> list[Tile]:
    """Tiles of one CRS that overlap the area by more than a common edge."""
    boxes = shapely.box(*np.array([tile.bounds for tile in tiles]).T)
    projected = _projected(area, epsg, shapely.total_bounds(boxes))
    smallest = 1e-9 * shapely.area(boxes)
    overlaps = shapely.area(shapely.intersection(boxes, projected)) > smallest
    return [tile for tile, overlap in zip(tiles, overlaps, strict=True) if overlap]


def _projected(area: BaseGeometry, epsg: int, extent: NDArray[np.float64]) -> BaseGeometry:
    """Bring an area into a CRS; only what is near the extent, because a CRS need not reach around the world."""
    west, south, east, north = Transformer.from_crs(epsg, LONLAT, always_xy=True).transform_bounds(*extent)
    window = shapely.box(west - 1, south - 1, east + 1, north + 1) if west < east else shapely.box(-180, -90, 180, 90)
    near = shapely.intersection(area, window).segmentize(0.01)
    projected: BaseGeometry = gpd.GeoSeries([near], crs=LONLAT).to_crs(epsg).iloc[0]
    return projected
