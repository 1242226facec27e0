"""The tiling rule of Sentinel Hub's UTM grids: 0, 1 and 2.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from types import MappingProxyType

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon, affinity
from shapely.geometry.base import BaseGeometry

from tasks.grid.base import TilingGrid, Unit
from tasks.grid.coordinates import LONLAT, Bounds, near, ring_of, transformed, transformer
from tasks.grid.tile import Tile

SQUARE_M = 100_000
"""Side of an MGRS square in metres."""
SOUTH_FALSE_NORTHING_M = 10_000_000
"""Northing of the equator in the UTM zones of the southern hemisphere."""

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
_SLIVER_M = 0.1  # an overlap that is thinner is a common edge


@dataclass(frozen=True, slots=True)
class UtmGrid(TilingGrid):
    """A grid in the zones of UTM, after the 100 km squares of MGRS.

    Attributes:
        snap_m: squares' upper-left corners are moved outwards (west, north) to multiples of it.
        max_latitude_deg: the grid ends there, in both hemispheres.
    """

    snap_m: int
    max_latitude_deg: float

    @property
    def unit(self) -> Unit:
        """Metres."""
        return "METRE"

    @property
    def single_crs(self) -> bool:
        """No: each zone and hemisphere has its own."""
        return False

    @property
    def tiles_per_side(self) -> int:
        """How many tiles stand side by side in a square."""
        return round(SQUARE_M / self.tile_size)

    def tiles_meeting(self, lonlat: BaseGeometry, resolution: float) -> Iterator[Tile]:
        """See :meth:`TilingGrid.tiles_meeting`."""
        _check_latitudes(self, lonlat)
        for zone in _zones_near(lonlat):
            yield from _tiles_of_zone(self, lonlat, zone, resolution)


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
    def bounds(self) -> Bounds:
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


def _check_latitudes(grid: UtmGrid, lonlat: BaseGeometry) -> None:
    south, north = lonlat.bounds[1], lonlat.bounds[3]
    limit = grid.max_latitude_deg
    if not (south >= -limit and north <= limit):
        raise ValueError(
            f"The area reaches from latitude {south:.2f}° to {north:.2f}°, but tiling grid {grid.id} ({grid.name}) "
            f"covers {-limit:g}° to {limit:g}°; cut the area to that."
        )


def _zones_near(lonlat: BaseGeometry) -> list[int]:
    west, _, east, _ = lonlat.bounds
    first, last = math.floor((west - _REACH_DEG) / 6), math.floor((east + _REACH_DEG) / 6)
    return sorted({(index + 30) % 60 + 1 for index in range(first, last + 1)})


def _tiles_of_zone(grid: UtmGrid, lonlat: BaseGeometry, zone: int, resolution: float) -> Iterator[Tile]:
    area = _area_in_zone(lonlat, zone)
    shapely.prepare(area)
    for square in filter(_exists, _squares_below(area, zone)):
        for i, j, cell in _cells(square, grid):
            if _overlap(area, cell) and not _is_covered(zone, cell, (1, 2), _exists):
                min_x, min_y, max_x, max_y = cell
                shift = square.false_northing
                bounds = (min_x, min_y + shift, max_x, max_y + shift)
                yield grid.tile(f"{square.name}_{i}_{j}", square.epsg, bounds, resolution)


def _squares_below(area: BaseGeometry, zone: int) -> Iterator[_Square]:
    """Squares that may have tiles overlapping an area in the zone's coordinates."""
    if area.is_empty:
        return
    min_x, min_y, max_x, max_y = (bound / SQUARE_M for bound in area.bounds)
    margin = 0.01  # tiles leave their square by up to 240 m
    for column in range(max(math.floor(min_x - margin), 1), min(math.floor(max_x + margin), 8) + 1):
        for row in range(math.floor(min_y - margin), math.floor(max_y + margin) + 1):
            yield _Square(zone, column, row)


def _cells(square: _Square, grid: UtmGrid) -> Iterator[tuple[int, int, Bounds]]:
    """Tiles of a square: i (east), j (south) and bounds, northings counted from the equator."""
    west = math.floor(square.column * SQUARE_M / grid.snap_m) * grid.snap_m
    north = math.ceil(((square.row + 1) * SQUARE_M + square.false_northing) / grid.snap_m) * grid.snap_m
    size, count = grid.tile_size, grid.tiles_per_side
    for i, j in product(range(count), range(count)):
        min_x, max_y = west + size * i, north - square.false_northing - size * j
        yield i, j, (min_x, max_y - size, min_x + size, max_y)


def _overlap(area: BaseGeometry, cell: Bounds) -> bool:
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
    lon, lat = _zone_to_lonlat(square.zone, ring_of(square.bounds))
    return bool(shapely.intersects(_strip(square.zone), Polygon(np.column_stack([lon, lat]))))


def _is_covered(zone: int, bounds: Bounds, offsets: tuple[int, ...], counts: Callable[[_Square], bool]) -> bool:
    """Whether squares that count, in the zones at the offsets, cover a rectangle of a zone whole."""
    ring = ring_of(bounds)
    covered = np.zeros(len(ring), dtype=bool)
    for offset in offsets:
        neighbour = (zone - 1 + offset) % 60 + 1
        x, y = transformer(32600 + zone, 32600 + neighbour).transform(ring[:, 0], ring[:, 1])
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


def _area_in_zone(lonlat: BaseGeometry, zone: int) -> BaseGeometry:
    """The part of an area that the zone's tiles can reach, in the zone's coordinates, northings from the equator."""
    meridian = _central_meridian(zone)
    window = shapely.box(meridian - _REACH_DEG, -90, meridian + _REACH_DEG, 90)
    turns = (affinity.translate(lonlat, xoff=turn) for turn in (-360.0, 0.0, 360.0))
    reached = shapely.union_all([shapely.intersection(turned, window) for turned in turns])
    return transformed(reached, LONLAT, 32600 + zone)


def _central_meridian(zone: int) -> float:
    return 6.0 * zone - 183


def _zone_to_lonlat(zone: int, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From a zone's coordinates, northings counted from the equator, to longitudes around its meridian, latitudes."""
    lon, lat = transformer(32600 + zone, LONLAT).transform(points[:, 0], points[:, 1])
    return near(lon, _central_meridian(zone)), lat
