"""Tiles: those of Sentinel Hub's tiling grids that an area needs, and those of a GeoPackage of the user's own.

``base`` says what a grid is, ``utm`` and ``regular`` have the rules of the two families, ``selection`` the grids
themselves; ``geopackage`` reads files. All of it is pure but for the reading, and imports neither pandas nor GDAL:
each worker process of localhub starts with it.
"""

from tasks.grid.base import TilingGrid
from tasks.grid.geopackage import (
    MAX_FEATURES,
    MAX_PIXELS,
    RasterSize,
    tiles_of_geopackage,
)
from tasks.grid.selection import EUROPE, GRIDS, grid_with, known_grids, tiles_of_grid
from tasks.grid.tile import Tile, lonlat_outline, lonlat_shape

__all__ = [
    "EUROPE",
    "GRIDS",
    "MAX_FEATURES",
    "MAX_PIXELS",
    "RasterSize",
    "Tile",
    "TilingGrid",
    "grid_with",
    "known_grids",
    "lonlat_outline",
    "lonlat_shape",
    "tiles_of_geopackage",
    "tiles_of_grid",
]
