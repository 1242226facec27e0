"""Polygons become pixels: GDAL's rule for filled polygons, for all polygons of a tile at once.

Rule: GDAL, ``alg/llrasterize.cpp``, ``GDALdllImageFilledPolygon``. A pixel belongs to a polygon if its centre lies
inside: for each row the edges are cut at the height of the pixels' centres, cuts are rounded to columns, and every
second stretch between them is filled (so that holes stay empty). An edge counts from its upper end up to, and without,
its lower one. A lower side of a ring that runs exactly along the centres fills its pixels. The parts of a multipolygon
are filled one after the other.

GDAL itself wants each polygon as GeoJSON, which takes three times as long as everything that is done here, and would
have to be asked twice to tell where polygons overlap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from tasks.grid import Tile
from tasks.reference.shapes import single_rings

PIXELS_AT_ONCE = 4_000_000
"""Pixels of polygons that are painted at a time: what polygons that cover each other many times need in memory."""
_COLUMN_BITS, _COLUMNS = 20, 2**20 - 1
"""A column, up to the width of a tile, in the low bits of a number for polygon, row and column."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Stretches of pixels to be filled.

    Attributes:
        polygon: number of the polygon.
        start: flat index of the first pixel, row by row.
        length: number of pixels, 1 or more.
    """

    polygon: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def parts(self) -> Iterator["Spans"]:
        """Give the spans in parts of about :data:`PIXELS_AT_ONCE` pixels."""
        part = np.cumsum(self.length) // PIXELS_AT_ONCE
        borders = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        for begin, end in pairwise(borders):
            yield Spans(self.polygon[begin:end], self.start[begin:end], self.length[begin:end])

    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Flat index of each pixel, and the number of its polygon."""
        before = np.cumsum(self.length) - self.length
        pixels = np.repeat(self.start - before, self.length) + np.arange(self.length.sum())
        return pixels, np.repeat(self.polygon, self.length)


@dataclass(frozen=True, slots=True)
class Burned:
    """A tile's polygons as pixels.

    Attributes:
        classes: (height, width), uint8, class of each pixel, 0 outside all polygons.
        overlap_pixels: pixels whose centre lies in several polygons.
        overlapping: numbers of the polygons that share such pixels.
    """

    classes: NDArray[np.uint8]
    overlap_pixels: int
    overlapping: NDArray[np.int64]


def burn(wkb: pa.Array, ids: NDArray[np.integer], tile: Tile, *, all_touched: bool = False) -> Burned:
    """Give each pixel of a tile the class of the polygon that it belongs to; the last one wins where several do.

    Args:
        wkb: polygons and multipolygons in the tile's CRS, not empty.
        ids: their classes, 0 to 255.
        tile: the raster.
        all_touched: whether a pixel belongs to a polygon that only touches it, by GDAL's rule for that; overlaps are
            told by the pixels' centres all the same.
    """
    burned = _painted(_spans(wkb, tile), ids.astype(np.uint8), tile)
    if all_touched and len(wkb):
        shapes = zip(_polygons(wkb), ids.tolist(), strict=True)
        rasterize(shapes, out=burned.classes, transform=tile.transform, all_touched=True)
    return burned


def _painted(spans: Spans, ids: NDArray[np.uint8], tile: Tile) -> Burned:
    """Fill spans one after the other."""
    shape = (tile.height, tile.width)
    order = np.argsort(spans.start)
    start = spans.start[order]
    end = start + spans.length[order]
    if (start[1:] < end[:-1]).any():
        return _painted_over(spans, ids, shape)
    # no two overlap: the row of pixels is a gap, a span, a gap, ..., a span, and a gap
    lengths, classes = np.zeros(2 * len(order) + 1, np.int64), np.zeros(2 * len(order) + 1, np.uint8)
    lengths[1::2], classes[1::2] = end - start, ids[spans.polygon[order]]
    lengths[0::2] = np.append(start, shape[0] * shape[1]) - np.append(0, end)
    return Burned(np.repeat(classes, lengths).reshape(shape), 0, np.empty(0, np.int64))


def _painted_over(spans: Spans, ids: NDArray[np.uint8], shape: tuple[int, int]) -> Burned:
    """Fill spans of which some cover others."""
    size = shape[0] * shape[1]
    winner, times = np.full(size, -1, np.int32), np.zeros(size, np.int64)
    for part in spans.parts():
        pixels, polygon = part.pixels()
        np.maximum.at(winner, pixels, polygon.astype(np.int32))
        times += np.bincount(pixels, minlength=size)
    overlaps = times > 1
    shared: set[int] = set()
    for part in spans.parts():
        pixels, polygon = part.pixels()
        shared.update(np.unique(polygon[overlaps[pixels]]).tolist())
    classes = np.append(ids, np.uint8(0))[winner].reshape(shape)  # of -1: the last one
    return Burned(classes, int(overlaps.sum()), np.array(sorted(shared), np.int64))


def _spans(wkb: pa.Array, tile: Tile) -> Spans:
    """Cut all edges at the height of the pixels' centres, and give what lies between every other two cuts."""
    edges = _edges(wkb, tile.transform)
    part, row, column = _cuts(edges, tile)
    # one sort brings the cuts of a part's row side by side, from left to right
    cuts = np.sort((part * tile.height + row) << _COLUMN_BITS | column)
    part, row = np.divmod(cuts[0::2] >> _COLUMN_BITS, tile.height)
    begin, length = cuts[0::2] & _COLUMNS, cuts[1::2] - cuts[0::2]
    level_part, level_row, level_begin, level_length = _level(edges, tile)
    if len(edges.polygon_of_part) == len(wkb) and len(level_part) == 0:
        filled = length > 0
        return Spans(edges.polygon_of_part[part[filled]], (row * tile.width + begin)[filled], length[filled])
    # several parts of a polygon, or sides along centres: some pixels may be met twice
    polygon = edges.polygon_of_part[np.concatenate([part, level_part])]
    line = polygon * tile.height + np.concatenate([row, level_row])
    start = line << _COLUMN_BITS | np.concatenate([begin, level_begin])
    start, end = _united(start, start + np.concatenate([length, level_length]))
    polygon, row = np.divmod(start >> _COLUMN_BITS, tile.height)
    return Spans(polygon, row * tile.width + (start & _COLUMNS), end - start)


def _united(start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stretches without those that are empty, in order; of those that overlap each point once."""
    start, end = start[end > start], end[end > start]
    if not (start[1:] >= end[:-1]).all():
        order = np.argsort(start, kind="stable")
        start, end = start[order], np.maximum.accumulate(end[order])
        first = np.flatnonzero(np.append(True, start[1:] >= end[:-1]))
        start, end = start[first], end[np.append(first[1:], len(end)) - 1]
    return start, end


@dataclass(frozen=True, slots=True)
class _Edges:
    """Edges of polygons in pixels: x to the right, y downwards, 0 at the upper left corner of the tile.

    Attributes:
        part: number of the polygon or part of a multipolygon that an edge belongs to.
        polygon_of_part: number of the polygon of each part.
        ring: number of its ring.
        x_begin, y_begin, x_end, y_end: in the direction of the ring.
    """

    part: NDArray[np.int64]
    polygon_of_part: NDArray[np.int64]
    ring: NDArray[np.int64]
    x_begin: NDArray[np.float64]
    y_begin: NDArray[np.float64]
    x_end: NDArray[np.float64]
    y_end: NDArray[np.float64]


def _edges(wkb: pa.Array, transform: Affine) -> _Edges:
    rows, single = single_rings(wkb)
    others = np.setdiff1d(np.arange(len(wkb)), rows)
    parts, polygon_of_part = shapely.get_parts(_polygons(wkb.take(pa.array(others))), return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    part = np.concatenate([np.repeat(np.arange(len(rows)), single.counts), len(rows) + part_of_ring[ring]])
    ring = np.concatenate([np.repeat(np.arange(len(rows)), single.counts), len(rows) + ring])
    points = np.concatenate([single.points, points])
    # as GDAL turns a geotransform around
    x = -transform.c / transform.a + points[:, 0] * (1.0 / transform.a)
    y = -transform.f / transform.e + points[:, 1] * (1.0 / transform.e)
    begin = np.flatnonzero(ring[:-1] == ring[1:])
    return _Edges(
        part[begin],
        np.concatenate([rows, others[polygon_of_part]]),
        ring[begin],
        x[begin],
        y[begin],
        x[begin + 1],
        y[begin + 1],
    )


def _polygons(wkb: pa.Array) -> NDArray[np.object_]:
    return np.asarray(shapely.from_wkb(wkb.to_numpy(zero_copy_only=False)), object)


def _cuts(edges: _Edges, tile: Tile) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Part, row and column of each cut of an edge with the height of a row's centres."""
    down = edges.y_begin < edges.y_end
    top, bottom = np.where(down, edges.y_begin, edges.y_end), np.where(down, edges.y_end, edges.y_begin)
    x_top, x_bottom = np.where(down, edges.x_begin, edges.x_end), np.where(down, edges.x_end, edges.x_begin)
    first = np.clip(np.ceil(top - 0.5), 0, tile.height).astype(np.int64)
    count = np.clip(np.ceil(bottom - 0.5), 0, tile.height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    x_top, top = x_top[edge], top[edge]
    x = (row + 0.5 - top) * (x_bottom[edge] - x_top) / (bottom[edge] - top) + x_top
    return edges.part[edge], row, _column(x, tile)


def _level(edges: _Edges, tile: Tile) -> tuple[NDArray[np.int64], ...]:
    """Part, row, first column and length of each lower side of a ring that runs exactly along centres."""
    row = np.floor(edges.y_begin)
    along = (edges.y_begin == edges.y_end) & (edges.y_begin - row == 0.5) & (row >= 0) & (row < tile.height)
    side = np.flatnonzero(along)
    x_begin, x_end = edges.x_begin[side], edges.x_end[side]
    lower = np.where(_clockwise(edges, edges.ring[side]), x_begin > x_end, x_begin < x_end)
    side, x_begin, x_end = side[lower], x_begin[lower], x_end[lower]
    begin = _column(np.minimum(x_begin, x_end), tile)
    return edges.part[side], row[side].astype(np.int64), begin, _column(np.maximum(x_begin, x_end), tile) - begin


def _clockwise(edges: _Edges, rings: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether rings run clockwise, as one sees them."""
    ones, place = np.unique(rings, return_inverse=True)
    of_them = np.isin(edges.ring, ones)
    points = np.column_stack([edges.x_begin[of_them], edges.y_begin[of_them]])
    turned = shapely.linearrings(points, indices=np.searchsorted(ones, edges.ring[of_them]))  # y grows downwards
    return np.asarray(shapely.is_ccw(turned), np.bool_)[place]


def _column(x: NDArray[np.float64], tile: Tile) -> NDArray[np.int64]:
    """First column whose centre lies right of ``x``, within the tile."""
    return np.clip(np.floor(x + 0.5), 0, tile.width).astype(np.int64)
