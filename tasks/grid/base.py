"""What all of Sentinel Hub's tiling grids have in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shapely.geometry.base import BaseGeometry

from tasks.grid.coordinates import Bounds
from tasks.grid.tile import Tile

Unit = Literal["METRE", "DEGREE"]
"""Of sizes and resolutions, in the service's words."""


@dataclass(frozen=True, slots=True)
class TilingGrid(ABC):
    """One of Sentinel Hub's tiling grids.

    Attributes:
        id: number in requests.
        name: as the service names it.
        tile_size: side of the square tiles, in the grid's unit.
        resolutions: pixel sizes that the service offers, in the grid's unit.
        chunk_width: columns per chunk of Zarr output; 0 where the service names none.
        chunk_height: rows per chunk of Zarr output; 0 where the service names none.
    """

    id: int
    name: str
    tile_size: float
    resolutions: tuple[float, ...]
    chunk_width: int
    chunk_height: int

    @property
    @abstractmethod
    def unit(self) -> Unit:
        """Of the tile's size and of the resolutions."""

    @property
    @abstractmethod
    def single_crs(self) -> bool:
        """Whether all tiles have the same CRS, which Zarr output needs."""

    @abstractmethod
    def tiles_meeting(self, lonlat: BaseGeometry, resolution: float) -> Iterable[Tile]:
        """Give the tiles whose interior meets an area.

        Args:
            lonlat: area in longitude and latitude, with points along its edges; it may reach beyond ±180.
            resolution: one of the grid's resolutions.

        Raises:
            ValueError: the area leaves what the grid covers.
        """

    def tile(self, name: str, epsg: int, bounds: Bounds, resolution: float) -> Tile:
        """Make one of the grid's tiles.

        Its id is ours: stable, positive and of 63 bits. The service's own numbers are not published.
        """
        pixels = self.pixels(resolution)
        digest = hashlib.blake2b(f"{self.id}/{name}".encode(), digest_size=8).digest()
        return Tile(name, epsg, bounds, pixels, pixels, id=int.from_bytes(digest) >> 1)

    def pixels(self, resolution: float) -> int:
        """Columns, and rows, of a tile."""
        return round(self.tile_size / resolution)

    def in_words(self, resolution: float) -> str:
        """Give a resolution with its unit."""
        return f"{resolution:g}{'°' if self.unit == 'DEGREE' else ' m'}"
