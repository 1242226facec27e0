"""Points from one CRS to another by PROJ, with polynomials between its points where there are many."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.transformer import TransformerGroup

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Points (n, 2) of one CRS in another one, x before y in both."""

DEGREE = 5
"""Of the polynomials."""
CELL_M, CELL_DEG = 100_000.0, 1.0
"""Longest side of a cell with polynomials of its own: what they leave out makes some micrometres there at most."""
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
_STEPS = np.cos(np.pi * np.arange(DEGREE + 2) / (DEGREE + 1))
_NODES = np.stack(np.meshgrid(_STEPS, _STEPS), axis=-1).reshape(-1, 2)
"""Chebyshev's, of a cell from -1 to 1; with the corners, so that no straight kink misses all of them."""
_TERMS = np.stack([_NODES[:, 0] ** i * _NODES[:, 1] ** j for i, j in _EXPONENTS], axis=1)
"""Value of each term at the nodes."""
_FITTED = np.linalg.pinv(_TERMS)
"""From the values at the nodes to the factors of the terms."""


@lru_cache(maxsize=16)  # it takes PROJ 50 ms to make one
def transform_between(source: CRS, target: CRS) -> Transform:
    """Give a transformation that is PROJ's to within a hundredth of a millimetre, at a tenth of its price.

    Where PROJ has several operations to choose from for each point, all of them must agree so far.
    """
    if source == target:
        return lambda points: points
    exact = _exactly(Transformer.from_crs(source, target, always_xy=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there would be a better one, if its grid were there
        group = TransformerGroup(source, target, always_xy=True)
    others = [_exactly(one) for one in group.transformers] if len(group.transformers) > 1 else []
    longest = CELL_DEG if source.is_geographic else CELL_M / source.axis_info[0].unit_conversion_factor
    if target.is_geographic:
        return _ByCells(exact, others, longest / FINER, TOLERANCE_DEG)
    return _ByCells(exact, others, longest, TOLERANCE_M)


def _exactly(transformer: Transformer) -> Transform:
    return lambda points: np.column_stack(transformer.transform(*points.T))


@dataclass(frozen=True, slots=True)
class _ByCells:
    """A transformation by polynomials, whose cells begin where the points that are given do.

    Attributes:
        exact: what PROJ gives.
        others: each of the operations that it chooses from.
        longest: side of a cell.
        tolerance: by which polynomials, and operations, may differ.
    """

    exact: Transform
    others: Sequence[Transform]
    longest: float
    tolerance: float

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transform points cell by cell; at once by PROJ where they are too few for that, or one is nowhere."""
        if len(points) == 0:
            return self.exact(points)
        low, high = (np.array([reduce(points[:, 0]), reduce(points[:, 1])]) for reduce in (np.min, np.max))
        counts = np.maximum(np.ceil((high - low) / self.longest), 1)
        if not counts.prod() * len(_NODES) * POINTS_A_CELL <= len(points):  # nor where one is not finite
            return self.exact(points)
        sides = np.where(high > low, (high - low) / counts, self.longest)
        if counts.prod() == 1:
            return self._in_cell(points, low, sides)
        columns, rows = (
            np.minimum(np.floor((points[:, axis] - low[axis]) / sides[axis]), counts[axis] - 1) for axis in (0, 1)
        )
        cell = (rows * counts[0] + columns).astype(np.min_scalar_type(int(counts.prod())))
        order, found = np.argsort(cell, kind="stable"), np.empty_like(points)
        for number, some in enumerate(np.split(order, np.cumsum(np.bincount(cell))[:-1])):
            if len(some):
                corner = low + sides * (number % counts[0], number // counts[0])
                found[some] = self._in_cell(points.take(some, axis=0), corner, sides)
        return found

    def _in_cell(
        self, points: NDArray[np.float64], corner: NDArray[np.float64], sides: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Transform points of a cell; by PROJ if a polynomial is not near enough."""
        half = sides / 2
        middle = corner + half
        nodes = middle + half * _NODES
        values = self.exact(nodes)
        if not np.isfinite(values).all() or not all(self._near(other(nodes), values) for other in self.others):
            return self.exact(points)
        factors = _FITTED @ values
        if not self._near(_TERMS @ factors, values):
            return self.exact(points)
        found = np.empty_like(points)
        for begin in range(0, len(points), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            u, v = ((points[part, axis] - middle[axis]) / half[axis] for axis in (0, 1))
            for axis in (0, 1):
                found[part, axis] = _polynomial(factors[:, axis].tolist(), u, v)
        return found if self._near(found[::LOOKED_AT], self.exact(points[::LOOKED_AT])) else self.exact(points)

    def _near(self, found: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
        return bool(np.abs(found - expected).max() <= self.tolerance)


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
