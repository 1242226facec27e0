"""The tiling rule of Sentinel Hub's grids in one CRS: 3 (degrees), 6 and 7 (metres in EPSG:3035).

Sizes, resolutions and CRS are the service's. It publishes neither origin nor names, so these are ours: tiles begin at
multiples of their size, in degrees therefore at whole degrees, and are named by their lower-left corner, as
``E014N45`` in degrees and as ``20kmE468N264`` in metres (INSPIRE, D2.8.I.2 "Geographical Grid Systems", cell codes).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from tasks.grid.base import TilingGrid, Unit
from tasks.grid.coordinates import LONLAT, Bounds, crs_of, transformed
from tasks.grid.tile import Tile

_SLIVER = 1e-6  # of a tile's side: an overlap that is thinner is a common edge
_TOLERANCE = 1e-3  # by how much of a tile's side an area may leave the grid: reprojected edges bend


@dataclass(frozen=True, slots=True)
class RegularGrid(TilingGrid):
    """A grid in one CRS.

    Attributes:
        epsg: code of the CRS.
        extent: min_x, min_y, max_x, max_y of what the grid covers, multiples of the tile's size.
        tile_name: name by x and y of the lower-left corner.
    """

    epsg: int
    extent: Bounds
    tile_name: Callable[[float, float], str]

    @property
    def unit(self) -> Unit:
        """The CRS's unit."""
        return "DEGREE" if crs_of(self.epsg).is_geographic else "METRE"

    @property
    def single_crs(self) -> bool:
        """Yes."""
        return True

    def tiles_meeting(self, lonlat: BaseGeometry, resolution: float) -> Iterator[Tile]:
        """See :meth:`TilingGrid.tiles_meeting`."""
        area = _folded(lonlat) if self.unit == "DEGREE" else transformed(lonlat, LONLAT, self.epsg)
        _check_extent(self, area)
        size = self.tile_size
        for west, south in _corners_meeting(self, area):
            bounds = (west, south, west + size, south + size)
            yield self.tile(self.tile_name(west, south), self.epsg, bounds, resolution)


def degree_name(west: float, south: float) -> str:
    """Name of a tile of whole degrees: ``E014N45`` begins at 14 degrees east and 45 degrees north."""
    return f"{'W' if west < 0 else 'E'}{abs(west):03.0f}{'S' if south < 0 else 'N'}{abs(south):02.0f}"


def inspire_name(size_m: int) -> Callable[[float, float], str]:
    """Give the names of tiles of so many metres: size, easting and northing without the size's trailing zeros."""
    digits = str(size_m)
    unit_m = 10 ** (len(digits) - len(digits.rstrip("0")))
    width = len(str(9_999_999 // unit_m))

    def name(west: float, south: float) -> str:
        return f"{size_m // 1000}kmE{west / unit_m:0{width}.0f}N{south / unit_m:0{width}.0f}"

    return name


def _folded(lonlat: BaseGeometry) -> BaseGeometry:
    """An area that may reach beyond ±180, within."""
    world = shapely.box(-180, -91, 180, 91)  # what lies beyond a pole stays there, to be refused
    turns = (affinity.translate(lonlat, xoff=turn) for turn in (-360.0, 0.0, 360.0))
    return shapely.union_all([shapely.intersection(turned, world) for turned in turns])


def _check_extent(grid: RegularGrid, area: BaseGeometry) -> None:
    tolerance = _TOLERANCE * grid.tile_size
    min_x, min_y, max_x, max_y = area.bounds
    west, south, east, north = grid.extent
    if not (
        west - tolerance <= min_x
        and south - tolerance <= min_y
        and max_x <= east + tolerance
        and max_y <= north + tolerance
    ):
        raise ValueError(
            f"The area reaches beyond what tiling grid {grid.id} ({grid.name}) covers, x {west:,.0f} to {east:,.0f} "
            f"and y {south:,.0f} to {north:,.0f} in EPSG:{grid.epsg}; cut the area to that."
        )


def _corners_meeting(grid: RegularGrid, area: BaseGeometry) -> list[tuple[float, float]]:
    """Lower-left corners of the tiles whose interior meets an area in the grid's CRS."""
    size, sliver = grid.tile_size, _SLIVER * grid.tile_size
    min_x, min_y, max_x, max_y = np.clip(area.bounds, grid.extent[:2] * 2, grid.extent[2:] * 2) / size
    columns, rows = np.arange(math.floor(min_x), math.ceil(max_x)), np.arange(math.floor(min_y), math.ceil(max_y))
    west, south = (size * axis.ravel() for axis in np.meshgrid(columns, rows))
    shapely.prepare(area)
    inner = shapely.box(west + sliver, south + sliver, west + size - sliver, south + size - sliver)
    meets = shapely.intersects(area, inner)
    return list(zip(west[meets].tolist(), south[meets].tolist(), strict=True))
