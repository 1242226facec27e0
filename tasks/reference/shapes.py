"""Polygons of a source as they are prepared: plain ones as flat arrays of points, all others as GEOS geometries.

Most polygons of a land-cover map have one ring without anything odd about it. Millions of them are read, checked,
reprojected and written some five times as fast without an object for each.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from tasks.reference.projection import Transform

_POINT = np.dtype("V16")
_RING_IN_POLYGON = b"\x01\3\0\0\0\1\0\0\0"
"""WKB of a polygon of one ring, little endian, up to the number of its points."""
_ALONE_IN_MULTIPOLYGON = b"\x01\6\0\0\0\1\0\0\0"
"""WKB of a multipolygon of one polygon, up to that polygon."""
_HEAD = len(_ALONE_IN_MULTIPOLYGON) + len(_RING_IN_POLYGON) + 4
"""Bytes before the points."""
_HEADS = np.dtype(f"V{_HEAD}")


class Shapes(Protocol):
    """Polygons in a row, all in one CRS."""

    def __len__(self) -> int: ...

    @property
    def bounds(self) -> NDArray[np.float64]:
        """West, south, east and north of each, (n, 4); not finite where there is nothing or nowhere."""

    def take(self, places: NDArray[np.integer]) -> Self:
        """Give some of them, in ascending order."""

    def transformed(self, transform: Transform) -> Self:
        """Bring all points elsewhere."""

    def segmentized(self, places: NDArray[np.integer], longest: float) -> Self:
        """Add points to some of them, evenly on each edge that is longer, so that no edge is."""

    def geometries(self) -> NDArray[np.object_]:
        """Give them as shapely's."""

    def parts(self) -> tuple["Shapes", NDArray[np.int64]]:
        """Give the parts of multipolygons one by one, and the number of the polygon that each is of, ascending."""

    def wkb(self) -> pa.Array:
        """Give each as the WKB of a multipolygon."""


@dataclass(frozen=True)
class Geometries:
    """Polygons and multipolygons of any form.

    Attributes:
        shapes: as shapely's; None where there is none.
    """

    shapes: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.shapes)

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """See :class:`Shapes`."""
        return np.asarray(shapely.bounds(self.shapes))

    def take(self, places: NDArray[np.integer]) -> "Geometries":
        """See :class:`Shapes`."""
        return Geometries(self.shapes[places])

    def transformed(self, transform: Transform) -> "Geometries":
        """See :class:`Shapes`."""
        return Geometries(np.asarray(shapely.transform(self.shapes, transform), object))

    def segmentized(self, places: NDArray[np.integer], longest: float) -> "Geometries":
        """See :class:`Shapes`."""
        if len(places) == 0:
            return self
        shapes = self.shapes.copy()
        shapes[places] = shapely.segmentize(shapes[places], longest)
        return Geometries(shapes)

    def geometries(self) -> NDArray[np.object_]:
        """See :class:`Shapes`."""
        return self.shapes

    def parts(self) -> tuple["Geometries", NDArray[np.int64]]:
        """See :class:`Shapes`."""
        parts, polygon = shapely.get_parts(self.shapes, return_index=True)
        return Geometries(parts), polygon

    def wkb(self) -> pa.Array:
        """See :class:`Shapes`."""
        several = self.shapes.copy()
        alone = np.flatnonzero(shapely.get_type_id(several) == shapely.GeometryType.POLYGON)
        several[alone] = shapely.multipolygons(several[alone, np.newaxis])
        return pa.array(shapely.to_wkb(several), pa.large_binary())


@dataclass(frozen=True)
class Rings:
    """Polygons of one ring each.

    Attributes:
        counts: points of each ring, at least 4, the last one equal to the first.
        points: (points, 2), ring after ring.
    """

    counts: NDArray[np.int64]
    points: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """See :class:`Shapes`."""
        if len(self) == 0:
            return np.empty((0, 4))
        begins, (x, y) = self.begins, self.points.T
        sides = [reduce.reduceat(axis, begins) for reduce in (np.minimum, np.maximum) for axis in (x, y)]
        return np.column_stack(sides)

    def take(self, places: NDArray[np.integer]) -> "Rings":
        """See :class:`Shapes`."""
        if len(places) == len(self):
            return self
        chosen = np.zeros(len(self), np.bool_)
        chosen[places] = True
        points = self.points.view(np.complex128)[:, 0]  # a number for both: NumPy takes them twice as fast
        points = points.compress(np.repeat(chosen, self.counts))
        taken = Rings(self.counts[chosen], points.view(np.float64).reshape(-1, 2))
        vars(taken)["bounds"] = self.bounds[chosen]  # or they would be looked for again
        return taken

    def transformed(self, transform: Transform) -> "Rings":
        """See :class:`Shapes`."""
        return Rings(self.counts, transform(self.points))

    def segmentized(self, places: NDArray[np.integer], longest: float) -> "Rings":
        """See :class:`Shapes`."""
        edges = self.counts[places] - 1
        ring = np.repeat(places, edges)
        edge = np.repeat(self.begins[places] - np.cumsum(edges) + edges, edges) + np.arange(edges.sum())
        step = self.points[edge + 1] - self.points[edge]
        pieces = np.ceil(np.hypot(*step.T) / longest).astype(np.int64)
        long = np.flatnonzero(pieces > 1)
        if len(long) == 0:
            return self
        ring, edge, step, pieces = ring[long], edge[long], step[long], pieces[long]
        more = pieces - 1
        number = np.arange(1, more.sum() + 1) - np.repeat(np.cumsum(more) - more, more)
        share = number / np.repeat(pieces, more)
        between = np.repeat(self.points[edge], more, axis=0) + np.repeat(step, more, axis=0) * share[:, np.newaxis]
        counts = self.counts + np.bincount(ring, more, minlength=len(self)).astype(np.int64)
        return Rings(counts, np.insert(self.points, np.repeat(edge + 1, more), between, axis=0))

    def geometries(self) -> NDArray[np.object_]:
        """See :class:`Shapes`."""
        return geometries_of(self.wkb())

    def parts(self) -> tuple["Rings", NDArray[np.int64]]:
        """See :class:`Shapes`."""
        return self, np.arange(len(self))

    def wkb(self) -> pa.Array:
        """See :class:`Shapes`."""
        offsets = np.append(0, np.cumsum(_HEAD + _POINT.itemsize * self.counts))
        begins = offsets[:-1]
        data = np.empty(offsets[-1], np.uint8)
        heads = np.empty((len(self), _HEAD), np.uint8)
        heads[:, :-4] = np.frombuffer(_ALONE_IN_MULTIPOLYGON + _RING_IN_POLYGON, np.uint8)
        heads[:, -4:] = self.counts.astype("<u4")[:, np.newaxis].view(np.uint8)
        if len(self):
            _every(data, _HEADS)[begins] = heads.view(_HEADS)[:, 0]
            _every(data, _POINT)[_places(begins + _HEAD, self.counts)] = self.points.astype(
                "<f8", order="C", copy=False
            ).view(_POINT)[:, 0]
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self), [None, *map(pa.py_buffer, (offsets, data))]
        )

    @property
    def begins(self) -> NDArray[np.int64]:
        """Number of each ring's first point."""
        return np.cumsum(self.counts) - self.counts

    def plain(self) -> NDArray[np.bool_]:
        """Tell which rings are certainly valid: all points of one are seen from their middle, one after the other.

        A ring around a point whose angles as seen from there only grow, or only shrink, once around, does not cross or
        touch itself. What is not plain may be valid all the same.
        """
        if len(self) == 0:
            return np.empty(0, np.bool_)
        begins, points = self.begins, self.points
        seen = points - np.repeat(np.add.reduceat(points, begins) / self.counts[:, np.newaxis], self.counts, axis=0)
        x, y = seen[:, 0], seen[:, 1]
        turn, upward = np.empty(len(x)), np.empty(len(x), np.bool_)
        turn[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
        upward[:-1] = (y[:-1] < 0) & (y[1:] >= 0)
        last = begins + self.counts - 1  # from there no side begins
        turn[last], upward[last] = turn[last - 1], False
        least, most = np.minimum.reduceat(turn, begins), np.maximum.reduceat(turn, begins)
        bounds = self.bounds
        # what rounding of the points and of their differences can make of nothing
        rounding = (
            8 * np.finfo(np.float64).eps * np.abs(bounds).max(axis=1) * (bounds[:, 2:] - bounds[:, :2]).sum(axis=1)
        )
        around = np.add.reduceat(upward.astype(np.int64), begins)
        return np.asarray(((least > rounding) | (most < -rounding)) & (around == 1))


def geometries_of(wkb: pa.Array, *, on_invalid: Literal["raise", "ignore"] = "raise") -> NDArray[np.object_]:
    """Read WKB as shapely's geometries; what is invalid raises, or is None."""
    return np.asarray(shapely.from_wkb(wkb.to_numpy(zero_copy_only=False), on_invalid=on_invalid), object)


def joined(wkb: pa.Array, counts: NDArray[np.int64]) -> pa.Array:
    """Join multipolygons of one, as :meth:`Shapes.wkb` gives them, so many of them at a time."""
    polygons = [value[len(_ALONE_IN_MULTIPOLYGON) :] for value in wkb.to_pylist()]
    kind = _ALONE_IN_MULTIPOLYGON[:-4]
    ends = np.cumsum(counts)
    several = zip((ends - counts).tolist(), ends.tolist(), strict=True)
    return pa.array(
        [b"".join([kind, (end - begin).to_bytes(4, "little"), *polygons[begin:end]]) for begin, end in several],
        pa.large_binary(),
    )


def single_rings(wkb: pa.Array) -> tuple[NDArray[np.int64], Rings]:
    """Rows of polygons, or multipolygons of one, with a single closed ring of x and y; and these rings.

    Args:
        wkb: binary of any kind, little endian where a row shall be found; other rows may be null, or anything.
    """
    column = wkb.cast(pa.large_binary())
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False) & (np.diff(offsets) > _HEAD))
    begin, end = offsets[rows], offsets[rows + 1]
    begin = begin + len(_ALONE_IN_MULTIPOLYGON) * _reads(data, begin, _ALONE_IN_MULTIPOLYGON)
    first = begin + len(_RING_IN_POLYGON) + 4
    counts = _every(data, np.dtype("<u4"))[first - 4].astype(np.int64)
    found = _reads(data, begin, _RING_IN_POLYGON) & (counts >= 4) & (first + _POINT.itemsize * counts == end)
    rows, first, end, counts = rows[found], first[found], end[found], counts[found]
    points = _every(data, _POINT)
    closed = points[first] == points[end - _POINT.itemsize]
    rows, first, counts = rows[closed], first[closed], counts[closed]
    return rows, Rings(counts, points[_places(first, counts)].view("<f8").reshape(-1, 2))


def _places(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Byte of each point, where so many of a ring stand one after the other from ``first`` on."""
    size = _POINT.itemsize
    return np.asarray(np.repeat(first - size * (np.cumsum(counts) - counts), counts) + size * np.arange(counts.sum()))


def _every(data: NDArray[np.uint8], kind: np.dtype[Any]) -> NDArray[Any]:
    """What begins at each byte, read as some type."""
    return np.ndarray(max(len(data) - kind.itemsize + 1, 0), kind, data, strides=(1,))


def _reads(data: NDArray[np.uint8], begin: NDArray[np.int64], expected: bytes) -> NDArray[np.bool_]:
    """Whether there are these bytes, from each beginning on."""
    return np.asarray(_every(data, np.dtype(f"V{len(expected)}"))[begin] == np.void(expected))
