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
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from tasks.grid import Tile
from tasks.reference.shapes import geometries_of, single_rings

PIXELS_AT_ONCE = 4_000_000
"""Pixels of polygons that are painted at a time: what polygons that cover each other many times need in memory."""
POLYGONS_AT_ONCE = 500
"""Polygons that are cut at a time, so that the arrays in between stay in the processor's cache."""
_BITS, _LOW = 20, 2**20 - 1
"""Of a row, and of a column, in a number for polygon, row and column."""
_PLACES = 32
"""Bits of a span's number beside its start: a tile has fewer than 2**31 pixels."""


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
        pixels: (256,), pixels of each class.
        overlap_pixels: pixels whose centre lies in several polygons.
        overlapping: numbers of the polygons that share such pixels.
    """

    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
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
        shapes = zip(geometries_of(wkb), ids.tolist(), strict=True)
        rasterize(shapes, out=burned.classes, transform=tile.transform, all_touched=True)
        burned = replace(burned, pixels=np.bincount(burned.classes.ravel(), minlength=256))
    return burned


def _painted(spans: Spans, ids: NDArray[np.uint8], tile: Tile) -> Burned:
    """Fill spans one after the other."""
    shape = (tile.height, tile.width)
    order = np.sort(spans.start << _PLACES | np.arange(len(spans.start))) & 2**_PLACES - 1  # half of argsort's time
    start = spans.start[order]
    end = start + spans.length[order]
    if (start[1:] < end[:-1]).any():
        return _painted_over(spans, ids, shape)
    # no two overlap: the row of pixels is a gap, a span, a gap, ..., a span, and a gap
    lengths, classes = np.zeros(2 * len(order) + 1, np.int64), np.zeros(2 * len(order) + 1, np.uint8)
    lengths[1::2], classes[1::2] = end - start, ids[spans.polygon[order]]
    lengths[0::2] = np.append(start, shape[0] * shape[1]) - np.append(0, end)
    pixels = np.bincount(classes, lengths, minlength=256).astype(np.int64)
    return Burned(np.repeat(classes, lengths).reshape(shape), pixels, 0, np.empty(0, np.int64))


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
    pixels = np.bincount(classes.ravel(), minlength=256)
    return Burned(classes, pixels, int(overlaps.sum()), np.array(sorted(shared), np.int64))


def _spans(wkb: pa.Array, tile: Tile) -> Spans:
    """Give what polygons fill."""
    begins = range(0, max(len(wkb), 1), POLYGONS_AT_ONCE)
    parts = [_spans_of_some(wkb[begin : begin + POLYGONS_AT_ONCE], tile) for begin in begins]
    return Spans(
        np.concatenate([begin + part.polygon for begin, part in zip(begins, parts, strict=True)]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.length for part in parts]),
    )


def _spans_of_some(wkb: pa.Array, tile: Tile) -> Spans:
    """Cut all edges at the height of the pixels' centres, and give what lies between every other two cuts."""
    edges = _edges(wkb, tile.transform)
    part, row, column = _cuts(edges, tile)
    # one sort brings the cuts of a part's row side by side, from left to right
    cuts = np.sort((part << _BITS | row) << _BITS | column)
    begin, end = cuts[0::2], cuts[1::2]
    level_part, level_row, level_begin, level_length = _level(edges, tile)
    if len(edges.polygon_of_part) == len(wkb) and len(level_part) == 0:
        begin, length = begin[begin < end], (end - begin)[begin < end]
        polygon = edges.polygon_of_part[begin >> 2 * _BITS]
        return Spans(polygon, (begin >> _BITS & _LOW) * tile.width + (begin & _LOW), length)
    # several parts of a polygon, or sides along centres: some pixels may be met twice
    part, row = np.concatenate([begin >> 2 * _BITS, level_part]), np.concatenate([begin >> _BITS & _LOW, level_row])
    column = np.concatenate([begin & _LOW, level_begin])
    start = (edges.polygon_of_part[part] << _BITS | row) << _BITS | column
    start, end = _united(start, start + np.concatenate([end - begin, level_length]))
    return Spans(start >> 2 * _BITS, (start >> _BITS & _LOW) * tile.width + (start & _LOW), end - start)


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
        ring: number of the ring that an edge belongs to.
        part_of_ring: number of the polygon or part of a multipolygon of each ring.
        polygon_of_part: number of the polygon of each part.
        x_begin, y_begin, x_end, y_end: in the direction of the ring.
    """

    ring: NDArray[np.int64]
    part_of_ring: NDArray[np.int64]
    polygon_of_part: NDArray[np.int64]
    x_begin: NDArray[np.float64]
    y_begin: NDArray[np.float64]
    x_end: NDArray[np.float64]
    y_end: NDArray[np.float64]


def _edges(wkb: pa.Array, transform: Affine) -> _Edges:
    polygon_of_part, single = single_rings(wkb)
    points, ring = single.points, np.repeat(np.arange(len(single)), single.counts)
    part_of_ring = np.arange(len(single))
    if len(single) < len(wkb):
        others = np.setdiff1d(np.arange(len(wkb)), polygon_of_part)
        parts, origin = shapely.get_parts(geometries_of(wkb.take(pa.array(others))), return_index=True)
        rings, part = shapely.get_rings(parts, return_index=True)
        more, number = shapely.get_coordinates(rings, return_index=True)
        points, ring = np.concatenate([points, more]), np.concatenate([ring, len(single) + number])
        part_of_ring = np.concatenate([part_of_ring, len(single) + part])
        polygon_of_part = np.concatenate([polygon_of_part, others[origin]])
    # as GDAL turns a geotransform around
    x = -transform.c / transform.a + points[:, 0] * (1.0 / transform.a)
    y = -transform.f / transform.e + points[:, 1] * (1.0 / transform.e)
    begin = np.flatnonzero(ring[:-1] == ring[1:])
    return _Edges(ring[begin], part_of_ring, polygon_of_part, x[begin], y[begin], x[begin + 1], y[begin + 1])


def _cuts(edges: _Edges, tile: Tile) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Part, row and column of each cut of an edge with the height of a row's centres."""
    top, bottom = np.minimum(edges.y_begin, edges.y_end), np.maximum(edges.y_begin, edges.y_end)
    first = np.clip(np.ceil(top - 0.5), 0, tile.height).astype(np.int64)
    count = np.clip(np.ceil(bottom - 0.5), 0, tile.height).astype(np.int64) - first
    down = edges.y_begin < edges.y_end
    x_top, width = np.where(down, edges.x_begin, edges.x_end), np.where(down, 1, -1) * (edges.x_end - edges.x_begin)
    edge = np.repeat(np.arange(len(count)), count)
    row = (first - np.cumsum(count) + count).take(edge) + np.arange(len(edge))
    x = (row + 0.5 - top.take(edge)) * width.take(edge) / (bottom - top).take(edge) + x_top.take(edge)
    return edges.part_of_ring.take(edges.ring).take(edge), row, _column(x, tile)


def _level(edges: _Edges, tile: Tile) -> tuple[NDArray[np.int64], ...]:
    """Part, row, first column and length of each lower side of a ring that runs exactly along centres."""
    side = np.flatnonzero(edges.y_begin == edges.y_end)
    row = np.floor(edges.y_begin[side])
    along = (edges.y_begin[side] - row == 0.5) & (row >= 0) & (row < tile.height)
    side, row = side[along], row[along]
    x_begin, x_end = edges.x_begin[side], edges.x_end[side]
    lower = np.where(_clockwise(edges, edges.ring[side]), x_begin > x_end, x_begin < x_end)
    side, row, x_begin, x_end = side[lower], row[lower], x_begin[lower], x_end[lower]
    begin = _column(np.minimum(x_begin, x_end), tile)
    return (
        edges.part_of_ring[edges.ring[side]],
        row.astype(np.int64),
        begin,
        _column(np.maximum(x_begin, x_end), tile) - begin,
    )


def _clockwise(edges: _Edges, rings: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether rings run clockwise, as one sees them."""
    if len(rings) == 0:
        return np.empty(0, np.bool_)
    ones, place = np.unique(rings, return_inverse=True)
    of_them = np.isin(edges.ring, ones)
    points = np.column_stack([edges.x_begin[of_them], edges.y_begin[of_them]])
    turned = shapely.linearrings(points, indices=np.searchsorted(ones, edges.ring[of_them]))  # y grows downwards
    return np.asarray(shapely.is_ccw(turned), np.bool_)[place]


def _column(x: NDArray[np.float64], tile: Tile) -> NDArray[np.int64]:
    """First column whose centre lies right of ``x``, within the tile."""
    return np.clip(np.floor(x + 0.5), 0, tile.width).astype(np.int64)
