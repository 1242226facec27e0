"""The reference polygons that tiles need: repaired, reprojected once per CRS, and indexed by tile.

What is prepared, one set of files per CRS in a local folder, is shared by all workers:

* ``polygons-<epsg>.arrow``: Arrow IPC, mapped into memory; each polygon that touches a tile, as it is burned, the parts
  of a multipolygon in a row each.
* ``rows-<epsg>.npy``: rows of that file, tile by tile; ``tiles-<epsg>.npy``: where each tile's begin and end there.

So a tile costs what its own polygons cost, however many others there are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from tasks.grid import Tile
from tasks.grid.coordinates import crs_of
from tasks.reference.antimeridian import continuous, eastwards, turn_of, turns
from tasks.reference.classification import NULL, UNMAPPED
from tasks.reference.projection import transform_between
from tasks.reference.shapes import Geometries, Shapes, joined
from tasks.reference.sources import Bounds

SCHEMA = pa.schema(
    [
        ("order", pa.int64()),  # of burning: the last one wins; parts of a polygon have the same
        ("id", pa.int16()),  # of the class, or NULL or UNMAPPED of classification
        ("name", pa.string()),  # of the class; of rows that are in none, the value
        ("repaired", pa.bool_()),
        ("geometry", pa.large_binary()),  # a multipolygon of one
    ]
)
MARGIN = 0.05
"""By what share of its size a tile is taken larger in another CRS: edges that are straight here are not there."""
CELLS = 512
"""So fine is looked, in the first place, which polygons are near tiles."""
MOST_CELLS, CELLS_A_TILE = 1_000_000, 8
"""With more, of a plane that is cut along the edges of tiles, tiles are in no grid; a grid has one to four a tile."""
_NONE, _UNTOLD = -1, -2
"""In place of the number of a tile."""
WIDEST_M = 10_000_000.0
"""A polygon that reaches farther, a quarter turn, is cut before it is reprojected."""
MOST_POINTS = 100_000
"""So many are put on an edge at most."""
EQUAL_AREA_EPSG = 6933
"""A projection of the whole Earth that keeps areas."""
AREA_STEP_M = 100_000.0
"""So long an edge is at most where its area is measured in that."""
EARTH_RADIUS_M = 6_371_000.0
DEVIATION_PX = 0.1
"""So far an edge may lie, in its middle, from where it was straight."""
EVERYWHERE = (-1e12, -1e12, 1e12, 1e12)


@dataclass(frozen=True, slots=True)
class TilePolygons:
    """The polygons of one tile, in the order in which they are burned.

    Attributes:
        ids: class of each.
        names: name of each one's class.
        wkb: multipolygons in the tile's CRS, without those of their parts that do not touch the tile.
        repaired: whether a polygon was invalid.
        without_class: further polygons there, whose class is null.
        unmapped: further polygons there whose value is in no class, by value.
    """

    ids: NDArray[np.int16]
    names: pa.Array
    wkb: pa.Array
    repaired: NDArray[np.bool_]
    without_class: int
    unmapped: Mapping[str, int]


def polygons_of_tile(folder: Path, tile: Tile) -> TilePolygons | None:
    """Read what was prepared for a tile; None when it is not one of those that were prepared."""
    index = folder / f"tiles-{tile.epsg}.npy"
    tiles = np.load(index) if index.exists() else None
    place = np.searchsorted(tiles["name"], tile.name) if tiles is not None else 0
    if tiles is None or place == len(tiles) or tiles["name"][place] != tile.name:
        return None
    rows = np.load(folder / f"rows-{tile.epsg}.npy", mmap_mode="r")[tiles["begin"][place] : tiles["end"][place]]
    with pa.memory_map(str(folder / f"polygons-{tile.epsg}.arrow")) as mapped:
        table = _taken(pa.ipc.open_file(mapped), rows)
    ids, order = table["id"].to_numpy(), table["order"].to_numpy()
    parts = np.flatnonzero(ids >= 0)
    parts = parts[np.argsort(order[parts], kind="stable")]
    used, counts = _runs(order[parts])
    burned = _rows(table, parts[used])
    geometry = burned["geometry"].combine_chunks()
    if len(used) < len(parts):
        geometry = joined(table["geometry"].take(pa.array(parts)), counts)
    others = np.flatnonzero(ids < 0)
    others = others[np.unique(order[others], return_index=True)[1]]
    return TilePolygons(
        ids=burned["id"].to_numpy(),
        names=burned["name"].combine_chunks(),
        wkb=geometry,
        repaired=burned["repaired"].to_numpy(),
        without_class=int(np.count_nonzero(ids[others] == NULL)),
        unmapped=dict(Counter(table["name"].take(pa.array(others[ids[others] == UNMAPPED])).to_pylist())),
    )


def _runs(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of equal values begin, and how long they are."""
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return begins, np.diff(begins, append=len(values))


def _rows(table: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    return table if np.array_equal(numbers, np.arange(len(table))) else table.take(pa.array(numbers))


def _taken(file: "pa.RecordBatchFileReader", rows: NDArray[np.void]) -> pa.Table:
    """Rows of a file; only batches that have some are touched."""
    numbers, begins = np.unique(rows["batch"], return_index=True)
    parts = np.split(np.asarray(rows["row"]), begins[1:])
    batches = [file.get_batch(number).take(pa.array(part)) for number, part in zip(numbers, parts, strict=False)]
    return pa.Table.from_batches(batches, SCHEMA)


class Zone:
    """Tiles of one CRS, and the file for the polygons that touch them. Close it.

    Args:
        epsg: the CRS.
        tiles: in that CRS.
        folder: local, exists.
    """

    _TAKEN = np.dtype([("batch", np.int32), ("row", np.int32)])

    def __init__(self, epsg: int, tiles: Iterable[Tile], folder: Path) -> None:
        self._epsg = epsg
        self._folder = folder
        by_name = {tile.name: tile for tile in tiles}
        self._names = sorted(by_name)
        self._bounds = np.array([by_name[name].bounds for name in self._names])
        self._straight_m = _longest_straight_m(
            min(tile.transform.a for tile in by_name.values()) * _metres(crs_of(epsg))
        )
        self._turn = turn_of(crs_of(epsg))
        self._boxes = shapely.box(*self._bounds.T)
        shapely.prepare(self._boxes)
        self._tree = shapely.STRtree(self._boxes)
        self._cells = _Cells(self._bounds)
        self._sink = pa.ipc.new_file(str(folder / f"polygons-{epsg}.arrow"), SCHEMA)
        self._batches = 0
        self._tiles: list[NDArray[np.int64]] = []
        self._rows: list[NDArray[np.void]] = []

    def boxes_in(self, crs: CRS, buffer_m: float) -> NDArray[np.float64]:
        """Give bounds of the tiles in another CRS, with a margin, (tile, 4); everywhere, where they cannot be told.

        Where a CRS goes around the Earth, they are side by side, if need be beyond its edge.
        """
        sizes = self._bounds[:, 2:] - self._bounds[:, :2]
        margins = MARGIN * sizes + buffer_m
        grown = shapely.box(*np.hstack([self._bounds[:, :2] - margins, self._bounds[:, 2:] + margins]).T)
        lines = Geometries(shapely.segmentize(grown, sizes.max(axis=1) / 8))
        lines = lines.transformed(transform_between(crs_of(self._epsg), crs))
        bounds, turn = lines.bounds, turn_of(crs)
        across = np.flatnonzero(bounds[:, 2] - bounds[:, 0] > turn / 2)
        bounds[across] = lines.take(across).transformed(lambda p: np.column_stack([p[:, 0] % turn, p[:, 1]])).bounds
        bounds[~_finite(bounds) | (bounds[:, 2] - bounds[:, 0] > turn / 2)] = EVERYWHERE
        somewhere = bounds[:, 2] < EVERYWHERE[2]
        middle = (bounds[somewhere, 0] + bounds[somewhere, 2]) / 2
        bounds[somewhere, 0::2] -= turns(middle - middle[:1], turn)[:, np.newaxis]
        return bounds

    def reproject(self, shapes: Shapes, crs: CRS, surroundings: "Surroundings") -> tuple[Shapes, NDArray[np.int64]]:
        """Bring polygons into the zone's CRS; tells which of them are cut to the tiles' surroundings.

        These are those that it may not hold as a whole, such as half a continent: a transverse Mercator projection has
        no place for what lies a quarter turn away, and brings what lies beyond back between its own meridians. What has
        no place even so is left out. Long edges get points, since they are no straight ones here.
        """
        target = crs_of(self._epsg)
        if crs == target:
            return shapes, np.empty(0, np.int64)
        transform = transform_between(crs, target)
        sizes = _sizes(shapes.bounds)
        longest, widest = self._straight_m / _metres(crs), WIDEST_M / _metres(crs)
        wide = sizes > widest
        pointed = shapes.segmentized(np.flatnonzero((sizes > longest / np.sqrt(2)) & ~wide), longest)
        there = pointed.transformed(transform)
        lost = np.flatnonzero(wide | ~_finite(there.bounds))
        if len(lost) == 0:
            return continuous(there, target), lost
        cut, _ = polygonal(shapely.intersection(shapes.take(lost).geometries(), surroundings.outline))
        polygons = there.geometries().copy()
        steps = np.fmax(longest, _sizes(shapely.bounds(cut)) / MOST_POINTS)
        polygons[lost] = shapely.transform(shapely.segmentize(cut, steps), transform)
        polygons[~_finite(shapely.bounds(polygons))] = None
        return continuous(Geometries(polygons), target), lost

    def add(self, shapes: Shapes, **columns: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Keep what touches a tile of polygons, with the columns of :data:`SCHEMA`; tells which polygons these are."""
        parts, polygon = self._around_the_earth(*shapes.parts())
        part, tile = self._touching(parts)
        touches = np.zeros(len(parts), np.bool_)
        touches[part] = True
        kept = np.flatnonzero(touches)
        if len(kept):
            taken = {name: values[polygon[kept]] for name, values in columns.items()}
            taken["geometry"] = parts.take(kept).wkb()
            arrays = [pa.array(taken[field.name], field.type) for field in SCHEMA]
            self._sink.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
            rows = np.empty(len(part), self._TAKEN)
            rows["batch"], rows["row"] = self._batches, (np.cumsum(touches) - 1)[part]
            self._tiles.append(tile)
            self._rows.append(rows)
            self._batches += 1
        return np.bincount(polygon[kept], minlength=len(shapes)) > 0

    def close(self) -> None:
        """Write the index by tile."""
        self._sink.close()
        tiles = np.concatenate([np.empty(0, np.int64), *self._tiles])
        rows = np.concatenate([np.empty(0, self._TAKEN), *self._rows])
        order = np.argsort(tiles, kind="stable")  # rows of a tile stay in the order of batches
        ends = np.searchsorted(tiles[order], np.arange(len(self._names)), side="right")
        index = np.empty(
            len(self._names), [("name", f"U{max(map(len, self._names))}"), ("begin", np.int64), ("end", np.int64)]
        )
        index["name"], index["begin"], index["end"] = self._names, np.append(0, ends[:-1]), ends
        np.save(self._folder / f"rows-{self._epsg}.npy", rows[order])
        np.save(self._folder / f"tiles-{self._epsg}.npy", index)

    def _around_the_earth(self, parts: Shapes, polygon: NDArray[np.int64]) -> tuple[Shapes, NDArray[np.int64]]:
        """Give parts also a turn away, if tiles may be there; where the CRS goes around the Earth, it is the same."""
        if not np.isfinite(self._turn):
            return parts, polygon
        found, origin = [parts], [polygon]
        west, east = self._bounds[:, 0].min(), self._bounds[:, 2].max()
        for shift in (-self._turn, self._turn):
            there = _moved(parts.bounds, shift)
            some = np.flatnonzero((there[:, 0] < east) & (there[:, 2] > west))
            if len(some):
                found.append(parts.take(some).transformed(eastwards(shift)))
                origin.append(polygon[some])
        if len(found) == 1:
            return parts, polygon
        return Geometries(np.concatenate([one.geometries() for one in found])), np.concatenate(origin)

    def _touching(self, shapes: Shapes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a polygon and a tile that share at least a point."""
        bounds = shapes.bounds
        tile_of = self._cells.tile_around(bounds)
        alone = np.flatnonzero(tile_of >= 0)
        others = np.flatnonzero(tile_of == _UNTOLD)
        diagonals = shapely.linestrings(bounds[others].reshape(-1, 2, 2))  # the tree looks at no more
        place, tile = self._tree.query(diagonals)
        polygon = others[place]
        inside, box = bounds[polygon], self._bounds[tile]
        touches = np.asarray((inside[:, :2] >= box[:, :2]).all(axis=1) & (inside[:, 2:] <= box[:, 2:]).all(axis=1))
        across = np.flatnonzero(~touches)
        ones, which = np.unique(polygon[across], return_inverse=True)
        some = shapes.take(ones).geometries()[which]
        touches[across] = shapely.intersects(self._boxes[tile[across]], some)
        return np.append(alone, polygon[touches]), np.append(tile_of[alone], tile[touches])


class _Cells:
    """The plane cut along all edges of tiles: what lies within a cell is told its tile without a search.

    Args:
        boxes: of the tiles, (n, 4).
    """

    def __init__(self, boxes: NDArray[np.float64]) -> None:
        self._edges = [np.unique(boxes[:, [axis, axis + 2]]) for axis in (0, 1)]
        columns, rows = (len(edges) + 1 for edges in self._edges)
        if columns * rows > MOST_CELLS + CELLS_A_TILE * len(boxes):
            self._edges = [np.empty(0), np.empty(0)]
            self._tiles = np.full((1, 1), _UNTOLD, np.int32)
            return
        self._tiles = np.full((rows, columns), _NONE, np.int32)
        for number, (west, south, east, north) in enumerate(self._places(boxes, "right", "left")):
            cells = self._tiles[south : north + 1, west : east + 1]
            cells[...] = np.where(cells == _NONE, number, _UNTOLD)

    def tile_around(self, bounds: NDArray[np.float64]) -> NDArray[np.int32]:
        """Number of the one tile within which bounds (n, 4) lie; negative: no tile meets them, or it cannot be told."""
        west, south, east, north = self._places(bounds, "left", "right").T
        tiles = np.where((west == east) & (south == north), self._tiles[south, west], np.int32(_UNTOLD))
        tiles[~_finite(bounds)] = _NONE
        return tiles

    def _places(
        self, bounds: NDArray[np.float64], low: Literal["left", "right"], high: Literal["left", "right"]
    ) -> NDArray[np.int64]:
        """Cells of west, south, east and north; of what lies on an edge, those on this side of it."""
        sides = [
            np.searchsorted(self._edges[side % 2], bounds[:, side], (low, low, high, high)[side]) for side in range(4)
        ]
        return np.column_stack(sides)


def zones_of(tiles: Iterable[Tile], folder: Path) -> list[Zone]:
    """Give the zones of tiles, with their files in a folder."""
    return [Zone(epsg, members, folder) for epsg, members in by_epsg(tiles)]


def by_epsg(tiles: Iterable[Tile]) -> list[tuple[int, list[Tile]]]:
    """Sort tiles by their CRS."""
    found: dict[int, list[Tile]] = {}
    for tile in tiles:
        found.setdefault(tile.epsg, []).append(tile)
    return sorted(found.items())


def around(boxes: Iterable[NDArray[np.float64]], turn: float, extent: Callable[[], Bounds | None]) -> Bounds:
    """Bounds of all boxes; where the CRS goes around the Earth, those a turn away too if polygons may lie there.

    Args:
        boxes: (n, 4) each.
        turn: of the CRS of boxes and polygons, see :func:`tasks.reference.antimeridian.turn_of`.
        extent: gives the bounds of the polygons, if asked for; None where they are not known, then they are where the
            CRS begins and ends.
    """
    together = np.concatenate(list(boxes))
    if np.isfinite(turn):
        west, _, east, _ = extent() or (-turn / 2, 0.0, turn / 2, 0.0)
        copies = np.concatenate([_moved(together, shift) for shift in (0.0, -turn, turn)])
        there = (copies[:, 0] <= east) & (copies[:, 2] >= west)
        together = copies[there] if there.any() else together
    return (*together[:, :2].min(axis=0).tolist(), *together[:, 2:].max(axis=0).tolist())


class Surroundings:
    """Where boxes are, on a raster of :data:`CELLS` by :data:`CELLS` around them, as a summed-area table.

    Args:
        boxes: west, south, east and north, (n, 4).
        turn: how far it is once around the Earth: there, eastwards and westwards, boxes are again.
    """

    def __init__(self, boxes: NDArray[np.float64], turn: float = np.inf) -> None:
        around = np.hstack([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
        self._shifts = (0.0, -turn, turn) if around[2] - around[0] < turn < np.inf else (0.0,)
        self._around = around
        self.outline = shapely.multipolygons([shapely.box(*_moved(around, shift)) for shift in self._shifts])
        self._low = np.tile(around[:2], 2)
        self._size = np.tile(around[2:], 2) - self._low
        taken = np.zeros((CELLS + 2, CELLS + 2), np.int32)  # a cell on each side stands for all that is beyond
        for west, south, east, north in self._cells(boxes).tolist():
            taken[south : north + 1, west : east + 1] = 1
        self._sums = np.pad(taken, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)

    def meet(self, bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether bounds, (n, 4), come near a box: all that meet one do; those that are not finite do not."""
        meet = np.zeros(len(bounds), np.bool_)
        finite = _finite(bounds)
        for shift in self._shifts:
            west, _, east, _ = _moved(self._around, shift)
            some = np.flatnonzero(finite & (bounds[:, 0] <= east) & (bounds[:, 2] >= west))
            meet[some] |= self._meet(_moved(bounds[some], -shift))
        return meet

    def _meet(self, bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
        west, south, east, north = self._cells(bounds).T
        sums = self._sums
        within = sums[north + 1, east + 1] - sums[south, east + 1] - sums[north + 1, west] + sums[south, west]
        return np.asarray(within > 0)

    def _cells(self, bounds: NDArray[np.float64]) -> NDArray[np.int64]:
        cells: NDArray[np.float64] = np.floor((bounds - self._low) / self._size * CELLS) + 1
        return np.clip(cells, 0, CELLS + 1).astype(np.int64)


def areas_m2(shapes: Shapes, crs: CRS) -> NDArray[np.float64]:
    """Areas of polygons of any extent on the ground; no number where a point has no place there."""
    step = AREA_STEP_M / _metres(crs)
    equal_area = crs_of(EQUAL_AREA_EPSG)
    polygons = shapely.transform(shapely.segmentize(shapes.geometries(), step), transform_between(crs, equal_area))
    placed = np.flatnonzero(_finite(shapely.bounds(polygons)))
    parts, polygon = continuous(Geometries(polygons[placed]), equal_area).parts()
    areas = np.full(len(polygons), np.nan)
    areas[placed] = np.bincount(polygon, shapely.area(parts.geometries()), minlength=len(placed))
    return areas


def _moved(bounds: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Bounds farther east; (..., 4)."""
    return np.asarray(bounds + np.array([shift, 0.0, shift, 0.0]))


def _sizes(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longer side of each."""
    return np.asarray((bounds[:, 2:] - bounds[:, :2]).max(axis=1))


def _metres(crs: CRS) -> float:
    """Length of a CRS's unit; of a degree, along a meridian."""
    factor = float(crs.axis_info[0].unit_conversion_factor)
    return factor * EARTH_RADIUS_M if crs.is_geographic else factor


def _longest_straight_m(pixel: float) -> float:
    """Length of an edge that comes out as bent as it may be.

    The sagitta of an arc of length L is L² / 8 r. Edges of maps are bent less than twice as much as the Earth.
    """
    return float(np.sqrt(4 * EARTH_RADIUS_M * DEVIATION_PX * pixel))


def _finite(bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.array(np.isfinite(bounds).all(axis=1))


def polygonal(geometries: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Valid (multi)polygon of each geometry, None where there is none with an area; and which had to be repaired.

    With a coordinate that is infinite or no number there is none.
    """
    polygons = shapely.force_2d(geometries) if shapely.has_z(geometries).any() else geometries.copy()
    invalid = ~shapely.is_valid(polygons) & ~shapely.is_missing(polygons)
    doubtful = np.flatnonzero(invalid)
    points, one = shapely.get_coordinates(polygons[doubtful], return_index=True)
    polygons[doubtful[one[~np.isfinite(points).all(axis=1)]]] = None
    invalid &= ~shapely.is_missing(polygons)
    odd = np.flatnonzero(invalid | (shapely.get_type_id(polygons) == shapely.GeometryType.GEOMETRYCOLLECTION))
    polygons[odd] = _united_parts(polygons[odd])
    usable = _are_polygons(polygons) & (shapely.area(polygons) > 0)
    polygons[~usable] = None
    return polygons, invalid & usable


def _united_parts(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Make each polygon of a geometry valid by itself, and unite them: what lies in two of them is no hole.

    So GDAL fills them: a ring that crosses itself by turns, but parts one after the other.
    """
    parts, origin = _opened(geometries, (shapely.GeometryType.MULTIPOLYGON, shapely.GeometryType.GEOMETRYCOLLECTION))
    areal = _are_polygons(parts)
    parts, origin = parts[areal], origin[areal]
    invalid = ~shapely.is_valid(parts)
    parts[invalid] = shapely.make_valid(parts[invalid])  # with what had no area, as a line
    parts, part = _opened(parts, (shapely.GeometryType.GEOMETRYCOLLECTION,))
    areal = _are_polygons(parts)
    parts, origin = parts[areal], origin[part[areal]]
    united = np.full(len(geometries), None, object)
    begins = np.flatnonzero(np.diff(origin, prepend=-1))
    for begin, end in pairwise([*begins.tolist(), len(origin)]):
        several = end - begin > 1
        united[origin[begin]] = shapely.disjoint_subset_union_all(parts[begin:end]) if several else parts[begin]
    return united


def _opened(
    geometries: NDArray[np.object_], kinds: Sequence[shapely.GeometryType]
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Take collections of some kinds apart, however deep they are nested; also tells which geometry a part is of."""
    origin = np.arange(len(geometries))
    while (closed := np.isin(shapely.get_type_id(geometries), kinds)).any():
        parts, collection = shapely.get_parts(geometries[closed], return_index=True)
        geometries = np.append(geometries[~closed], parts)
        origin = np.append(origin[~closed], origin[closed][collection])
    order = np.argsort(origin, kind="stable")
    return geometries[order], origin[order]


def _are_polygons(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    types = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    return np.isin(shapely.get_type_id(geometries), types)
