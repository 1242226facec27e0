"""The tiling rule of Sentinel Hub's UTM grids, and tiles from a GeoPackage of the user's own.

A grid's tile belongs to a 100 km square of the Military Grid Reference System (MGRS) and is named
``<square>_<i>_<j>``: ``i`` counts east and ``j`` south from the square's upper-left corner, which grids 0 and 2 snap
outwards to multiples of 60 m as the Sentinel-2 tiling does.

Where two zones meet, their squares overlap, and the grids leave out what is redundant. The service does not publish
the rule. This one is derived from real tiles:

* a square exists if it touches the strip of its own zone, unless squares of the zones to the west cover it whole;
* a tile of an existing square exists unless existing squares of the zones to the east cover it whole.

The first half gives the squares of the Sentinel-2 tiling (all 56,359 that do not cross the antimeridian, none more);
the second gives every tile, and every gap, of the real grid 0 in zones 30 and 31 between 42° and 51° N.

Sources: Sentinel Hub, "Batch Processing API", tiling grids (sizes, resolutions, latitudes) and the answers of
``/batch/tilinggrids``; NGA.STND.0037, "Universal Grids and Grid Reference Systems" (zones, bands, letters).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely import MultiPolygon, Polygon, affinity
from shapely.geometry.base import BaseGeometry

SQUARE_M = 100_000
"""Side of an MGRS square in metres."""
SOUTH_FALSE_NORTHING_M = 10_000_000
"""Northing of the equator in the UTM zones of the southern hemisphere."""
MAX_PIXELS = 3500
"""Largest width and height of a GeoPackage's tile (Batch V2, GeoPackage input)."""
MAX_FEATURES = 700_000
"""Largest number of tiles in a GeoPackage (Batch V2, GeoPackage input)."""

_Bounds = tuple[float, float, float, float]

_COLUMN_LETTERS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # by zone modulo 3; the first letter is at 100 km
_ROW_LETTERS = "ABCDEFGHJKLMNPQRSTUV"  # from the equator; in even zones five letters further
_BAND_LETTERS = "CDEFGHJKLMNPQRSTUVWX"  # 8 degrees each from 80 S; X goes on to 84 N
_STRIP_EXCEPTIONS: Mapping[tuple[int, str], tuple[float, float] | None] = MappingProxyType(
    {
        (31, "V"): (0, 3),  # western Norway belongs to zone 32
        (32, "V"): (3, 12),
        (31, "X"): (0, 9),  # Svalbard has four zones
        (32, "X"): None,
        (33, "X"): (9, 21),
        (34, "X"): None,
        (35, "X"): (21, 33),
        (36, "X"): None,
        (37, "X"): (33, 42),
    }
)
_REACH_DEG = 12.0  # how far from its central meridian a zone's tiles can lie; 100 km are 5.6 degrees at 80.7 N
_MAX_EDGE_DEG, _MAX_EDGE_M = 0.1, 10_000.0  # longest edge of an area when it is reprojected
_EDGE_PARTS = 8  # segments into which an edge of a tile or square is cut when it is reprojected
_SLIVER_M = 0.1  # an overlap that is thinner is a common edge


@dataclass(frozen=True, slots=True)
class TilingGrid:
    """One of Sentinel Hub's tiling grids in UTM.

    Attributes:
        id: number in requests.
        name: as the service names it.
        tile_size_m: side of the square tiles.
        resolutions_m: pixel sizes that the service offers.
        chunk_width: columns per chunk of Zarr output.
        chunk_height: rows per chunk of Zarr output.
        snap_m: squares' upper-left corners are moved outwards (west, north) to multiples of it.
        max_latitude_deg: the grid ends there, in both hemispheres.
    """

    id: int
    name: str
    tile_size_m: float
    resolutions_m: tuple[float, ...]
    chunk_width: int
    chunk_height: int
    snap_m: int
    max_latitude_deg: float

    @property
    def tiles_per_side(self) -> int:
        """How many tiles stand side by side in a square."""
        return round(SQUARE_M / self.tile_size_m)


GRIDS: Mapping[int, TilingGrid] = MappingProxyType(
    {
        grid.id: grid
        for grid in (
            TilingGrid(0, "20km grid", 20_040.0, (10.0, 20.0, 60.0), 334, 167, 60, 80.7),
            TilingGrid(1, "10km grid", 10_000.0, (10.0, 20.0), 500, 500, 1, 80.6),
            TilingGrid(2, "100km grid", 100_080.0, (60.0, 120.0, 240.0, 360.0), 278, 278, 60, 81.0),
        )
    }
)
"""By id. Source: the service's answer to ``GET /batch/tilinggrids``."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One raster that the service makes: an upright rectangle in a projected CRS.

    Attributes:
        name: unique in its grid or GeoPackage.
        epsg: code of the CRS.
        bounds: min_x, min_y, max_x, max_y in the CRS's unit (metres).
        width: columns, pixels.
        height: rows, pixels.
    """

    name: str
    epsg: int
    bounds: tuple[float, float, float, float]
    width: int
    height: int

    @property
    def resolution(self) -> tuple[float, float]:
        """Pixel size in x and y, both positive, in the CRS's unit."""
        min_x, min_y, max_x, max_y = self.bounds
        return (max_x - min_x) / self.width, (max_y - min_y) / self.height

    @property
    def transform(self) -> Affine:
        """From (column, row) to (x, y), north up: the origin is the upper-left corner."""
        x_resolution, y_resolution = self.resolution
        return Affine(x_resolution, 0.0, self.bounds[0], 0.0, -y_resolution, self.bounds[3])


@dataclass(frozen=True, slots=True)
class _Square:
    """A 100 km square of MGRS: lower-left corner at (column, row) · 100 km, rows negative south of the equator."""

    zone: int
    column: int
    row: int

    @property
    def epsg(self) -> int:
        return (32700 if self.row < 0 else 32600) + self.zone

    @property
    def false_northing(self) -> int:
        return SOUTH_FALSE_NORTHING_M if self.row < 0 else 0

    @property
    def bounds(self) -> _Bounds:
        """Northings counted from the equator in both hemispheres."""
        x, y = self.column * SQUARE_M, self.row * SQUARE_M
        return x, y, x + SQUARE_M, y + SQUARE_M

    @property
    def name(self) -> str:
        """Zone, band of the square's centre, column letter, row letter."""
        centre = np.array([[self.column + 0.5, self.row + 0.5]]) * SQUARE_M
        latitude = _zone_to_lonlat(self.zone, centre)[1][0]
        band = _BAND_LETTERS[min(max(math.floor((latitude + 80) / 8), 0), 19)]
        column = _COLUMN_LETTERS[self.zone % 3][self.column - 1]
        row = _ROW_LETTERS[(self.row + (5 if self.zone % 2 == 0 else 0)) % 20]
        return f"{self.zone:02d}{band}{column}{row}"


def tiles_of_grid(area: BaseGeometry, crs: int, grid_id: int, resolution_m: float) -> list[Tile]:
    """Give the tiles of a grid whose interior overlaps an area, whole tiles, sorted by name.

    Args:
        area: polygon or multipolygon; its edges are straight lines in its own CRS.
        crs: EPSG code of the area.
        grid_id: a key of GRIDS.
        resolution_m: one of the grid's resolutions.

    Raises:
        ValueError: unknown grid, resolution that the grid lacks, an area that is empty, not polygonal, self-crossing,
            or beyond the latitudes that the grid covers.
    """
    grid = _grid_with(grid_id, resolution_m)
    lonlat = _lonlat_area(area, crs, grid)
    tiles = [tile for zone in _zones_near(lonlat) for tile in _tiles_of_zone(lonlat, zone, grid, resolution_m)]
    return sorted(tiles, key=lambda tile: tile.name)


def lonlat_outline(tile: Tile) -> Polygon:
    """Outline of a tile in EPSG:4326 (longitude, latitude), with points added along the edges.

    Longitudes are continuous: a tile across the antimeridian goes beyond ±180.
    """
    ring = _ring(tile.bounds)
    lon, lat = _transformer(tile.epsg, 4326).transform(ring[:, 0], ring[:, 1])
    return Polygon(np.column_stack([_near(lon, lon[0]), lat]))


def tiles_of_geopackage(path: str | PathLike[str]) -> list[Tile]:
    """Read the tiles that a GeoPackage of the user's own asks for, sorted by name.

    Each feature gives one tile: the bounding box of its geometry, with ``width`` and ``height`` in pixels or,
    without them, ``resolution``. Source: Sentinel Hub, "Batch Processing API V2", GeoPackage input.

    Raises:
        ValueError: the file cannot be read or breaks a rule; the message names the rule and the feature.
    """
    try:
        layers = [name for name, geometry_type in pyogrio.list_layers(path) if geometry_type is not None]
        tables = {layer: pyogrio.read_dataframe(path, layer=layer, fid_as_index=True) for layer in layers}
    except pyogrio.errors.DataSourceError as error:
        raise ValueError(f"The GeoPackage {Path(path).name} cannot be read: {error}") from error
    count = sum(len(table) for table in tables.values())
    if not 0 < count <= MAX_FEATURES:
        raise ValueError(f"The GeoPackage must have 1 to {MAX_FEATURES:,} features; {Path(path).name} has {count:,}.")
    tiles = [tile for layer, table in tables.items() for tile in _tiles_of_table(layer, table)]
    _refuse_repeats((tile.name for tile in tiles), "identifier must be unique over all tables")
    return sorted(tiles, key=lambda tile: tile.name)


# ---- GeoPackage rules ----


def _tiles_of_table(layer: str, table: gpd.GeoDataFrame) -> list[Tile]:
    epsg = None if table.crs is None else table.crs.to_epsg()
    if epsg is None:
        raise ValueError(f"Every table must have a CRS with an EPSG code; the CRS of '{layer}' is {table.crs}.")
    if "identifier" not in table.columns:
        raise ValueError(f"Every table must have a column 'identifier'; '{layer}' has {list(table.columns)}.")
    if not ({"width", "height"} <= set(table.columns) or "resolution" in table.columns):
        raise ValueError(f"Every table must have 'width' and 'height', or 'resolution'; '{layer}' has neither.")
    _refuse_repeats(table["id"] if "id" in table.columns else (), f"id must be unique in table '{layer}'")
    return [_tile_of_feature(f"'{layer}' feature {row.Index}", row, epsg) for row in table.itertuples()]


def _tile_of_feature(where: str, row: Any, epsg: int) -> Tile:
    name, geometry = row.identifier, row.geometry
    if not isinstance(name, str) or not name:
        raise ValueError(f"identifier must be a text that is not empty; {where} has {name!r}.")
    if not isinstance(geometry, Polygon | MultiPolygon) or geometry.area <= 0:
        kind = "none" if geometry is None else f"{geometry.geom_type} of area {geometry.area:g}"
        raise ValueError(f"The geometry must be a polygon or multipolygon; {where} ('{name}') has {kind}.")
    width, height = _pixels(f"{where} ('{name}')", row, geometry.bounds)
    if not (1 <= width <= MAX_PIXELS and 1 <= height <= MAX_PIXELS):
        raise ValueError(f"A tile may have 1 to {MAX_PIXELS} pixels a side; {where} ('{name}') has {width} x {height}.")
    return Tile(name, epsg, geometry.bounds, width, height)


def _pixels(where: str, row: Any, bounds: _Bounds) -> tuple[int, int]:
    """Width and height of a feature's raster: its own, else from its resolution (at least one pixel)."""
    size = getattr(row, "width", None), getattr(row, "height", None)
    if not pd.isna(size[0]) and not pd.isna(size[1]):
        return int(size[0]), int(size[1])
    resolution = getattr(row, "resolution", None)
    if pd.isna(resolution) or not resolution > 0:
        raise ValueError(f"A feature needs width and height, or a resolution above 0; {where} has {resolution}.")
    min_x, min_y, max_x, max_y = bounds
    return max(round((max_x - min_x) / resolution), 1), max(round((max_y - min_y) / resolution), 1)


def _refuse_repeats(values: Iterable[object], rule: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{rule}; {len(repeated)} are repeated, the first is {repeated[0]!r}.")


# ---- checks of what was asked ----


def _grid_with(grid_id: int, resolution_m: float) -> TilingGrid:
    if grid_id not in GRIDS:
        known = ", ".join(f"{grid.id} ({grid.name})" for grid in GRIDS.values())
        raise ValueError(f"Tiling grid {grid_id} is not known; choose one of {known}.")
    grid = GRIDS[grid_id]
    if resolution_m not in grid.resolutions_m:
        *others, last = (f"{resolution:g}" for resolution in grid.resolutions_m)
        raise ValueError(
            f"Resolution {resolution_m:g} m is not offered by tiling grid {grid.id} ({grid.name}); "
            f"choose {', '.join(others)} or {last} m."
        )
    return grid


def _lonlat_area(area: BaseGeometry, crs: int, grid: TilingGrid) -> BaseGeometry:
    if not isinstance(area, Polygon | MultiPolygon) or area.is_empty:
        raise ValueError(f"The area must be a polygon with a surface, not {area.wkt[:60]}.")
    if not area.is_valid:
        raise ValueError(f"The area is not a valid polygon: {shapely.is_valid_reason(area)}; repair it first.")
    lonlat = _to_lonlat(area, crs)
    south, north = lonlat.bounds[1], lonlat.bounds[3]
    limit = grid.max_latitude_deg
    if not (south >= -limit and north <= limit):
        raise ValueError(
            f"The area reaches from latitude {south:.2f}° to {north:.2f}°, but tiling grid {grid.id} ({grid.name}) "
            f"covers {-limit:g}° to {limit:g}°; cut the area to that."
        )
    return lonlat


# ---- the rule ----


def _zones_near(lonlat: BaseGeometry) -> list[int]:
    west, _, east, _ = lonlat.bounds
    first, last = math.floor((west - _REACH_DEG) / 6), math.floor((east + _REACH_DEG) / 6)
    return sorted({(index + 30) % 60 + 1 for index in range(first, last + 1)})


def _tiles_of_zone(lonlat: BaseGeometry, zone: int, grid: TilingGrid, resolution_m: float) -> Iterator[Tile]:
    area = _area_in_zone(lonlat, zone)
    shapely.prepare(area)
    pixels = round(grid.tile_size_m / resolution_m)
    for square in filter(_exists, _squares_below(area, zone)):
        for i, j, cell in _cells(square, grid):
            if _overlap(area, cell) and not _is_covered(zone, cell, (1, 2), _exists):
                min_x, min_y, max_x, max_y = cell
                shift = square.false_northing
                bounds = (min_x, min_y + shift, max_x, max_y + shift)
                yield Tile(f"{square.name}_{i}_{j}", square.epsg, bounds, pixels, pixels)


def _squares_below(area: BaseGeometry, zone: int) -> Iterator[_Square]:
    """Squares that may have tiles overlapping an area in the zone's coordinates."""
    if area.is_empty:
        return
    min_x, min_y, max_x, max_y = (bound / SQUARE_M for bound in area.bounds)
    margin = 0.01  # tiles leave their square by up to 240 m
    for column in range(max(math.floor(min_x - margin), 1), min(math.floor(max_x + margin), 8) + 1):
        for row in range(math.floor(min_y - margin), math.floor(max_y + margin) + 1):
            yield _Square(zone, column, row)


def _cells(square: _Square, grid: TilingGrid) -> Iterator[tuple[int, int, _Bounds]]:
    """Tiles of a square: i (east), j (south) and bounds, northings counted from the equator."""
    west = math.floor(square.column * SQUARE_M / grid.snap_m) * grid.snap_m
    north = math.ceil(((square.row + 1) * SQUARE_M + square.false_northing) / grid.snap_m) * grid.snap_m
    size, count = grid.tile_size_m, grid.tiles_per_side
    for i, j in product(range(count), range(count)):
        min_x, max_y = west + size * i, north - square.false_northing - size * j
        yield i, j, (min_x, max_y - size, min_x + size, max_y)


def _overlap(area: BaseGeometry, cell: _Bounds) -> bool:
    min_x, min_y, max_x, max_y = cell
    inner = shapely.box(min_x + _SLIVER_M, min_y + _SLIVER_M, max_x - _SLIVER_M, max_y - _SLIVER_M)
    return bool(shapely.intersects(area, inner))


@lru_cache(maxsize=100_000)
def _exists(square: _Square) -> bool:
    return _meets_strip(square) and not _is_covered(square.zone, square.bounds, (-1, -2), _meets_strip)


@lru_cache(maxsize=100_000)
def _meets_strip(square: _Square) -> bool:
    """Whether a square overlaps the strip of longitudes that its zone is responsible for."""
    if not 1 <= square.column <= 8:
        return False
    lon, lat = _zone_to_lonlat(square.zone, _ring(square.bounds))
    return bool(shapely.intersects(_strip(square.zone), Polygon(np.column_stack([lon, lat]))))


def _is_covered(zone: int, bounds: _Bounds, offsets: tuple[int, ...], counts: Callable[[_Square], bool]) -> bool:
    """Whether squares that count, in the zones at the offsets, cover a rectangle of a zone whole."""
    ring = _ring(bounds)
    covered = np.zeros(len(ring), dtype=bool)
    for offset in offsets:
        neighbour = (zone - 1 + offset) % 60 + 1
        x, y = _transformer(32600 + zone, 32600 + neighbour).transform(ring[:, 0], ring[:, 1])
        columns, rows = (np.floor(np.asarray(axis) / SQUARE_M).astype(int).tolist() for axis in (x, y))
        covered |= [counts(_Square(neighbour, *at)) for at in zip(columns, rows, strict=True)]
    return bool(covered.all())


@lru_cache(maxsize=60)
def _strip(zone: int) -> BaseGeometry:
    """The zone's strip in longitude and latitude, a centimetre wider: 31VE only touches its strip and does exist."""
    usual = (6.0 * zone - 186, 6.0 * zone - 180)
    parts = []
    for index, band in enumerate(_BAND_LETTERS):
        limits = _STRIP_EXCEPTIONS.get((zone, band), usual)
        if limits is not None:
            south = -80 + 8 * index if index else -90
            north = -72 + 8 * index if band != "X" else 90
            parts.append(shapely.box(limits[0] - 1e-7, south, limits[1] + 1e-7, north))
    return shapely.union_all(parts)


# ---- coordinates ----


def _central_meridian(zone: int) -> float:
    return 6.0 * zone - 183


def _near(lon: NDArray[np.float64], centre: float) -> NDArray[np.float64]:
    """Longitudes moved by whole turns to within 180 degrees of a centre."""
    return (np.asarray(lon) - centre + 180) % 360 - 180 + centre


@lru_cache(maxsize=1024)
def _transformer(source: int, target: int) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _zone_to_lonlat(zone: int, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From a zone's coordinates, northings counted from the equator, to longitudes around its meridian, latitudes."""
    lon, lat = _transformer(32600 + zone, 4326).transform(points[:, 0], points[:, 1])
    return _near(lon, _central_meridian(zone)), lat


def _ring(bounds: _Bounds) -> NDArray[np.float64]:
    """Closed outline of a rectangle with points along the edges, shape (points, 2)."""
    edges = shapely.box(*bounds).exterior
    longest = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    return shapely.get_coordinates(shapely.segmentize(edges, longest / _EDGE_PARTS))


def _to_lonlat(area: BaseGeometry, crs: int) -> BaseGeometry:
    """Reproject an area with points added to its edges; longitudes are continuous across the antimeridian."""
    if CRS.from_epsg(crs).is_geographic:
        return _transformed(shapely.segmentize(area, _MAX_EDGE_DEG), crs, 4326)
    turned = _transformed(shapely.segmentize(area, _MAX_EDGE_M), crs, 4326)
    start = float(shapely.get_coordinates(turned)[0, 0])
    return shapely.transform(turned, lambda points: np.column_stack([_near(points[:, 0], start), points[:, 1]]))


def _area_in_zone(lonlat: BaseGeometry, zone: int) -> BaseGeometry:
    """The part of an area that the zone's tiles can reach, in the zone's coordinates, northings from the equator."""
    meridian = _central_meridian(zone)
    window = shapely.box(meridian - _REACH_DEG, -90, meridian + _REACH_DEG, 90)
    turns = (affinity.translate(lonlat, xoff=turn) for turn in (-360.0, 0.0, 360.0))
    near = shapely.union_all([shapely.intersection(turned, window) for turned in turns])
    return _transformed(near, 4326, 32600 + zone)


def _transformed(geometry: BaseGeometry, source: int, target: int) -> BaseGeometry:
    convert = _transformer(source, target).transform
    return shapely.transform(geometry, lambda points: np.column_stack(convert(points[:, 0], points[:, 1])))
