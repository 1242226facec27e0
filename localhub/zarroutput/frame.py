"""The one pixel grid of a group: the envelope of its tiles, and how they lie in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from localhub.zarroutput.parameters import ArrayLayout
from tasks.grid import Tile

_TOLERANCE_PX = 0.01


@dataclass(frozen=True, slots=True)
class Frame:
    """A pixel grid. Rows count from the first of the array, which is the southernmost of a bottom-left origin."""

    epsg: int
    bounds: tuple[float, float, float, float]
    """min_x, min_y, max_x, max_y in the CRS's unit."""
    width: int
    height: int
    bottom_left: bool

    @property
    def x(self) -> NDArray[np.floating[Any]]:
        """Centres of the columns."""
        return self.bounds[0] + self._step(0) * (np.arange(self.width) + 0.5)

    @property
    def y(self) -> NDArray[np.floating[Any]]:
        """Centres of the rows."""
        steps = self._step(1) * (np.arange(self.height) + 0.5)
        return self.bounds[1] + steps if self.bottom_left else self.bounds[3] - steps

    def _step(self, axis: int) -> float:
        return (self.bounds[2 + axis] - self.bounds[axis]) / (self.width, self.height)[axis]


def frame_of(tiles: Sequence[Tile], *, bottom_left: bool) -> Frame:
    """Return the frame of tiles, of which there is at least one.

    Raises:
        ValueError: the tiles have several CRSs, do not lie on one pixel grid, or overlap.
    """
    epsgs = sorted({tile.epsg for tile in tiles})
    if len(epsgs) > 1:
        raise ValueError(f"Zarr output needs features of one CRS; the features have {_listed(epsgs)}. Split them.")
    corners = np.array([tile.bounds for tile in tiles]).reshape(-1, 2, 2)
    in_pixels = (corners - corners[0, 0]) / tiles[0].resolution
    _check_alignment(tiles, in_pixels)
    _check_overlaps(tiles, in_pixels)
    low, high = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
    sides = np.round((high - low) / tiles[0].resolution)
    bounds = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Frame(epsgs[0], bounds, int(sides[0]), int(sides[1]), bottom_left)


def _listed(epsgs: Iterable[int]) -> str:
    return ", ".join(f"EPSG:{epsg}" for epsg in epsgs)


def _check_alignment(tiles: Sequence[Tile], corners: NDArray[Any]) -> None:
    """Check that the corners (tile, lower-left and upper-right, x and y), in the first tile's pixels, are whole."""
    sizes = np.array([(tile.width, tile.height) for tile in tiles])
    whole = np.round(corners)
    misfits = np.abs(corners - whole).max(axis=(1, 2)) > _TOLERANCE_PX
    misfits |= (whole[:, 1] - whole[:, 0] != sizes).any(axis=1)
    for position in np.flatnonzero(misfits)[:1]:
        raise ValueError(
            f"Zarr output needs features on one pixel grid; '{tiles[position].name}' does not lie on that of "
            f"'{tiles[0].name}'. Give all features one resolution, and corners that are whole pixels apart."
        )


def _check_overlaps(tiles: Sequence[Tile], corners: NDArray[Any]) -> None:
    insides = np.asarray(shapely.box(*(corners[:, 0] + 0.25).T, *(corners[:, 1] - 0.25).T))
    ones, others = shapely.STRtree(insides).query(insides, predicate="intersects")
    for pair in np.flatnonzero(ones < others)[:1]:
        names = " and ".join(f"'{tiles[index].name}'" for index in (ones[pair], others[pair]))
        raise ValueError(f"Zarr output needs features that do not overlap; {names} do. Shrink one of them.")


def check_chunks(frame: Frame, tiles: Iterable[Tile], layouts: Iterable[ArrayLayout]) -> None:
    """Check that every tile consists of whole chunks of each array: no two of them then write the same chunk.

    Raises:
        ValueError: chunks do not divide a tile's size, or a tile starts within one.
    """
    arrays = tuple(layouts)
    origin = (float(frame.x[0]), float(frame.y[0]))
    for tile in tiles:
        row, column = first_pixel(origin, tile, bottom_left=frame.bottom_left)
        for array in arrays:
            if tile.height % array.chunk_height or tile.width % array.chunk_width:
                raise ValueError(
                    f"Chunks of array '{array.name}', {array.chunk_height} x {array.chunk_width} pixels, do not divide "
                    f"the {tile.height} x {tile.width} pixels of '{tile.name}'; choose divisors."
                )
            if row % array.chunk_height or column % array.chunk_width:
                raise ValueError(
                    f"'{tile.name}' starts at row {row}, column {column} of the group, within a chunk of array "
                    f"'{array.name}' ({array.chunk_height} x {array.chunk_width} pixels); choose divisors of both."
                )


def first_pixel(origin: tuple[float, float], tile: Tile, *, bottom_left: bool) -> tuple[int, int]:
    """Return row and column, in a group, of that pixel of a tile which comes first there.

    Args:
        origin: x and y of the centre of the group's first pixel.
        tile: on the group's pixel grid.
        bottom_left: the group's rows go north.
    """
    x_step, y_step = tile.resolution
    columns = (tile.bounds[0] + x_step / 2 - origin[0]) / x_step
    north = tile.bounds[1] + y_step / 2 - origin[1]
    south = origin[1] - (tile.bounds[3] - y_step / 2)
    return round((north if bottom_left else south) / y_step), round(columns)
