"""Points from one CRS to another by PROJ, with parabolas between its points where there are many."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Points (n, 2) of one CRS in another one, x before y in both."""

CELL_M, CELL_DEG = 1000.0, 0.01
"""Side of a cell with a parabola of its own: the third derivatives of projections make less than a micrometre there."""
TOLERANCE_M, TOLERANCE_DEG = 1e-5, 1e-10
"""No point that is looked at may differ by more, or PROJ is asked for all of them."""
LOOKED_AT = 101
"""Every so many-th point is looked at."""
POINTS_A_CELL = 20
"""With fewer on average, parabolas are not worth the points that they need themselves, 4 to 9 each."""
_AT_ONCE = 1 << 14
_NODES = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), axis=-1).reshape(9, 2)
"""Of a cell from -1 to 1."""
_COLUMNS, _ROWS = (_NODES.T + 1).astype(np.int64)
_TERMS = np.linalg.pinv(
    np.stack([_NODES[:, 0] ** i * _NODES[:, 1] ** j for i, j in ((0, 0), (1, 0), (2, 0), (1, 1), (0, 1), (0, 2))], 1)
)
"""From the values at the nodes to the factors of 1, u, u², uv, v and v²."""


@lru_cache(maxsize=16)  # it takes PROJ 50 ms to make one
def transform_between(source: CRS, target: CRS) -> Transform:
    """Give a transformation that is PROJ's to within a hundredth of a millimetre, at a quarter of its price."""
    if source == target:
        return lambda points: points
    project = Transformer.from_crs(source, target, always_xy=True).transform
    cell = CELL_DEG if source.is_geographic else CELL_M / source.axis_info[0].unit_conversion_factor
    tolerance = TOLERANCE_DEG if target.is_geographic else TOLERANCE_M

    def exact(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(project(*points.T))

    def quick(points: NDArray[np.float64]) -> NDArray[np.float64]:
        found = _by_parabolas(points, exact, cell)
        if found is None:
            return exact(points)
        differs = np.abs(found[::LOOKED_AT] - exact(points[::LOOKED_AT])).max()
        return found if differs <= tolerance else exact(points)

    return quick


def _by_parabolas(points: NDArray[np.float64], exact: Transform, side: float) -> NDArray[np.float64] | None:
    """Transform points cell by cell; None where they are too few for that, or one is nowhere."""
    if len(points) == 0:
        return None
    low, high = (np.array([reduce(points[:, 0]), reduce(points[:, 1])]) for reduce in (np.min, np.max))
    origin, sides = np.floor(low / side), np.floor(high / side) - np.floor(low / side) + 1
    if not 4 * sides.prod() <= len(points):  # nor where one is not finite
        return None
    columns, rows = sides.astype(np.int64)
    cell = np.empty(len(points), np.int64)
    within = np.empty_like(points)  # a point's cell reaches from -1 to 1
    for begin in range(0, len(points), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        place = points[part] / side - origin
        corner = np.minimum(np.floor(place), sides - 1)  # rounding may bring a point to the edge beyond
        cell[part] = corner[:, 1] * columns + corner[:, 0]
        within[part] = 2 * (place - corner) - 1
    used = np.zeros(columns * rows, np.bool_)
    used[cell] = True
    cells = np.flatnonzero(used)
    if len(cells) * POINTS_A_CELL > len(points):
        return None
    # a cell's nodes are its corners and what is halfway between them: its neighbours have most of them, too
    across = 2 * columns + 1
    first = 2 * (cells // columns) * across + 2 * (cells % columns)
    numbers = first[:, np.newaxis] + across * _ROWS + _COLUMNS
    wanted = np.zeros(across * (2 * rows + 1), np.bool_)
    wanted[numbers] = True
    found = np.flatnonzero(wanted)
    lattice = np.column_stack([found % across, found // across])
    values = np.empty((len(wanted), 2))
    values[found] = exact((origin + 0.5 * lattice) * side)
    nodes = values[numbers]
    if not np.isfinite(nodes).all():
        return None
    factors = np.empty((2, 6, columns * rows))
    factors[:, :, cells] = (_TERMS @ nodes).transpose(2, 1, 0)
    return _evaluated(factors, cell, within)


def _evaluated(
    factors: NDArray[np.float64], cell: NDArray[np.int64], within: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Value of each point's parabola, for x and y."""
    found = np.empty_like(within)
    for begin in range(0, len(cell), _AT_ONCE):  # what belongs together stays in the processor's cache
        part = slice(begin, begin + _AT_ONCE)
        u, v = np.ascontiguousarray(within[part].T)
        for axis in (0, 1):
            one, of_u, of_uu, of_uv, of_v, of_vv = factors[axis].take(cell[part], axis=1)
            found[part, axis] = one + u * (of_u + u * of_uu + v * of_uv) + v * (of_v + v * of_vv)
    return found
