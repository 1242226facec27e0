"""Points from one CRS to another by PROJ, with polynomials between its points where there are many."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Points (n, 2) of one CRS in another one, x before y in both."""

DEGREE = 5
"""Of the polynomials."""
CELL_M, CELL_DEG = 100_000.0, 1.0
"""Longest side of a cell with polynomials of its own: what they leave out makes less than a micrometre there."""
FINER = 4
"""So much shorter it is where degrees are wanted: meridians converge."""
TOLERANCE_M, TOLERANCE_DEG = 1e-5, 1e-10
"""No point that is looked at may differ by more, or PROJ is asked for all of the cell."""
LOOKED_AT = 251
"""Every so many-th point is looked at."""
POINTS_A_CELL = 20
"""So many times as many points as nodes, at least, or polynomials are not worth it."""
_AT_ONCE = 1 << 14
"""Points whose arrays in between stay in the processor's cache."""
_EXPONENTS = [(i, j) for j in range(DEGREE + 1) for i in range(DEGREE + 1 - j)]
"""Of u and of v, in each term."""
_STEPS = np.cos(np.pi * (np.arange(DEGREE + 2) + 0.5) / (DEGREE + 2))
_NODES = np.stack(np.meshgrid(_STEPS, _STEPS), axis=-1).reshape(-1, 2)
"""Chebyshev's, of a cell from -1 to 1."""
_TERMS = np.linalg.pinv(np.stack([_NODES[:, 0] ** i * _NODES[:, 1] ** j for i, j in _EXPONENTS], axis=1))
"""From the values at the nodes to the factors of the terms."""


@lru_cache(maxsize=16)  # it takes PROJ 50 ms to make one
def transform_between(source: CRS, target: CRS) -> Transform:
    """Give a transformation that is PROJ's to within a hundredth of a millimetre, at a tenth of its price."""
    if source == target:
        return lambda points: points
    project = Transformer.from_crs(source, target, always_xy=True).transform
    cell = CELL_DEG if source.is_geographic else CELL_M / source.axis_info[0].unit_conversion_factor
    if target.is_geographic:
        cell /= FINER
    tolerance = TOLERANCE_DEG if target.is_geographic else TOLERANCE_M

    def exact(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(project(*points.T))

    def quick(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return _by_cells(points, exact, cell, tolerance)

    return quick


def _by_cells(points: NDArray[np.float64], exact: Transform, longest: float, tolerance: float) -> NDArray[np.float64]:
    """Transform points cell by cell; at once by PROJ where they are too few for that, or one is nowhere."""
    if len(points) == 0:
        return exact(points)
    low, high = (np.array([reduce(points[:, 0]), reduce(points[:, 1])]) for reduce in (np.min, np.max))
    counts = np.maximum(np.ceil((high - low) / longest), 1)
    if not counts.prod() * len(_NODES) * POINTS_A_CELL <= len(points):  # nor where one is not finite
        return exact(points)
    sides = np.where(high > low, (high - low) / counts, longest)
    if counts.prod() == 1:
        return _in_cell(points, exact, low, sides, tolerance)
    columns, rows = (
        np.minimum(np.floor((points[:, axis] - low[axis]) / sides[axis]), counts[axis] - 1) for axis in (0, 1)
    )
    cell = (rows * counts[0] + columns).astype(np.uint16)
    found = np.empty_like(points)
    for number in np.flatnonzero(np.bincount(cell)).tolist():
        some = np.flatnonzero(cell == number)
        corner = low + sides * (number % counts[0], number // counts[0])
        found[some] = _in_cell(points.take(some, axis=0), exact, corner, sides, tolerance)
    return found


def _in_cell(
    points: NDArray[np.float64],
    exact: Transform,
    corner: NDArray[np.float64],
    sides: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.float64]:
    """Transform points of a cell; by PROJ if a polynomial is not near enough."""
    half = sides / 2
    middle = corner + half
    nodes = exact(middle + half * _NODES)
    if not np.isfinite(nodes).all():
        return exact(points)
    factors = (_TERMS @ nodes).T.tolist()
    found = np.empty_like(points)
    for begin in range(0, len(points), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        u, v = ((points[part, axis] - middle[axis]) / half[axis] for axis in (0, 1))
        for axis in (0, 1):
            found[part, axis] = _polynomial(factors[axis], u, v)
    differs = np.abs(found[::LOOKED_AT] - exact(points[::LOOKED_AT])).max()
    return found if differs <= tolerance else exact(points)


def _polynomial(factors: Sequence[float], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate by Horner's rule, in u within v, in place."""
    by_power_of_v = [[factors[_EXPONENTS.index((i, j))] for i in range(DEGREE + 1 - j)] for j in range(DEGREE + 1)]
    total, inner = np.full_like(u, by_power_of_v[DEGREE][0]), np.empty_like(u)
    for factors_of_u in reversed(by_power_of_v[:DEGREE]):
        np.multiply(u, factors_of_u[-1], out=inner)
        for factor in factors_of_u[-2:0:-1]:
            inner += factor
            inner *= u
        inner += factors_of_u[0]
        total *= v
        total += inner
    return total
