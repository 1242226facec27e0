"""Sentinel Hub's tiling grids, and the tiles of one that an area needs."""

from collections.abc import Mapping
from types import MappingProxyType

import shapely
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from tasks.grid.base import TilingGrid
from tasks.grid.coordinates import LONLAT, area_to_lonlat
from tasks.grid.regular import RegularGrid, degree_name, inspire_name
from tasks.grid.tile import Tile
from tasks.grid.utm import UtmGrid

LAEA = 3035
"""EPSG code of ETRS89 / LAEA Europe."""
WORLD = (-180.0, -90.0, 180.0, 90.0)
EUROPE = (900_000.0, 900_000.0, 7_400_000.0, 6_500_000.0)
"""What grids 6 and 7 cover, in EPSG:3035: the extent of the Copernicus Land Monitoring Service's European rasters,
which holds Iceland, the Azores, the Canaries and Turkey, and 1,000 km more in the north, for Svalbard. The service
says only that these places are covered."""
_DEGREES = (0.0001, 0.0002, 0.0005, 0.0008, 0.001, 0.002, 0.005, 0.008)

GRIDS: Mapping[int, TilingGrid] = MappingProxyType(
    {
        grid.id: grid
        for grid in (
            UtmGrid(0, "20km grid", 20_040.0, (10.0, 20.0, 60.0), 334, 167, 60, 80.7),
            UtmGrid(1, "10km grid", 10_000.0, (10.0, 20.0), 500, 500, 1, 80.6),
            UtmGrid(2, "100km grid", 100_080.0, (60.0, 120.0, 240.0, 360.0), 278, 278, 60, 81.0),
            RegularGrid(3, "WGS84 1 degree grid", 1.0, _DEGREES, 500, 500, LONLAT, WORLD, degree_name),
            RegularGrid(
                6, "LAEA 100km grid", 100_000.0, (40.0, 50.0, 100.0), 0, 0, LAEA, EUROPE, inspire_name(100_000)
            ),
            RegularGrid(7, "LAEA 20km grid", 20_000.0, (10.0, 20.0), 0, 0, LAEA, EUROPE, inspire_name(20_000)),
        )
    }
)
"""By id; 4 and 5 do not exist any more. Source: the service's answer to ``GET /batch/tilinggrids``."""


def known_grids() -> str:
    """List the grids for a person: ids and names."""
    return ", ".join(f"{grid.id} ({grid.name})" for grid in GRIDS.values())


def grid_with(grid_id: int, resolution: float) -> TilingGrid:
    """Give the grid of an id, which offers the resolution.

    Raises:
        ValueError: unknown grid, or a resolution that it lacks.
    """
    if grid_id not in GRIDS:
        raise ValueError(f"Tiling grid {grid_id} is not known; choose one of {known_grids()}.")
    grid = GRIDS[grid_id]
    if resolution not in grid.resolutions:
        *others, _ = (f"{offered:g}" for offered in grid.resolutions)
        raise ValueError(
            f"Resolution {grid.in_words(resolution)} is not offered by tiling grid {grid.id} ({grid.name}); "
            f"choose {', '.join(others)} or {grid.in_words(grid.resolutions[-1])}."
        )
    return grid


def tiles_of_grid(area: BaseGeometry, crs: int, grid_id: int, resolution: float) -> list[Tile]:
    """Give the tiles of a grid whose interior overlaps an area, whole tiles, sorted by name.

    Args:
        area: polygon or multipolygon; its edges are straight lines in its own CRS.
        crs: EPSG code of the area.
        grid_id: a key of GRIDS.
        resolution: one of the grid's resolutions, in its unit.

    Raises:
        ValueError: unknown grid, resolution that the grid lacks, an area that is empty, not polygonal, self-crossing,
            or beyond what the grid covers.
    """
    grid = grid_with(grid_id, resolution)
    if not isinstance(area, Polygon | MultiPolygon) or area.is_empty:
        raise ValueError(f"The area must be a polygon with a surface, not {area.wkt[:60]}.")
    if not area.is_valid:
        raise ValueError(f"The area is not a valid polygon: {shapely.is_valid_reason(area)}; repair it first.")
    return sorted(grid.tiles_meeting(area_to_lonlat(area, crs), resolution), key=lambda tile: tile.name)
