"""The ground plan: an invented landscape as polygons that cover the extent without overlapping.

A river with a reservoir and old arms crosses a plain of fields; hills in the south are wooded; towns are joined by
roads. Coordinates are UTM zone 33N (EPSG:32633), metres.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from affine import Affine
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from shapely import LineString, MultiPoint, Polygon, STRtree
from shapely.geometry.base import BaseGeometry

from localhub.sample.noise import Raster, fractal
from localhub.sample.spectra import COVER_NAMES

EPSG = 32633
COARSE_M = 60
"""Pixel size of fields that only steer the plan, and of the 60 m bands."""
FINE_M = 20
"""Pixel size of the other bands."""

_SMALLEST_M2 = 300.0
"""What is smaller is a left-over of cutting and is dropped."""
_GRID_M = 0.01
"""Coordinates are cut to this grid; on it GEOS cuts without the rare faults of plain floating point."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A square in UTM zone 33N."""

    west: float
    north: float
    size_m: int
    """A multiple of 60."""

    def pixels(self, resolution_m: int) -> int:
        """Rows, and columns, at a pixel size."""
        return self.size_m // resolution_m

    def transform(self, resolution_m: int) -> Affine:
        """From (column, row) to (x, y), north up."""
        return Affine(resolution_m, 0, self.west, 0, -resolution_m, self.north)

    @property
    def box(self) -> Polygon:
        """The outline."""
        return shapely.box(self.west, self.north - self.size_m, self.west + self.size_m, self.north)

    def at(self, u: float, v: float) -> tuple[float, float]:
        """The point at shares `u` of the way east and `v` of the way north."""
        return self.west + u * self.size_m, self.north - (1 - v) * self.size_m


@dataclass(frozen=True, slots=True)
class Landscape:
    """Polygons that do not overlap, their covers, and the relief below."""

    extent: Extent
    polygons: NDArray[np.object_]
    cover: NDArray[np.intp]
    """Index into `COVER_NAMES`, one a polygon."""
    relief: Raster
    """Height in arbitrary units, pixels of 60 m, rows from the north; rough only where it is hilly."""


@dataclass(frozen=True, slots=True)
class _Layer:
    polygons: NDArray[np.object_]
    covers: Sequence[str]


def build_landscape(seed: int, extent: Extent) -> Landscape:
    """Draw the landscape that belongs to `seed`."""
    rng = np.random.default_rng([seed, 0])
    ground = _Ground.draw(rng, extent)
    towns = _towns(rng, extent)
    layers = [  # what comes first covers what follows
        _roads(rng, towns),
        _water(rng, ground),
        _gravel(rng, ground),
        _reeds(rng, ground),
        _town_blocks(rng, towns),
        _forest(rng, ground),
        _shrubs(rng, ground),
    ]
    layers, taken = _without_overlaps(layers, extent)
    layers.append(_parcels(rng, ground, taken))
    covers = [COVER_NAMES.index(name) for layer in layers for name in layer.covers]
    return Landscape(extent, np.concatenate([layer.polygons for layer in layers]), np.array(covers), ground.relief)


@dataclass(frozen=True, slots=True)
class _Ground:
    """Fields that decide what grows where, pixels of 60 m, rows from the south (as y grows)."""

    extent: Extent
    river: LineString
    hilliness: Raster
    """0 in the plain to 1 in the hills."""
    wildness: Raster
    """Forest stands where this is above 0."""
    relief: Raster

    @classmethod
    def draw(cls, rng: np.random.Generator, extent: Extent) -> "_Ground":
        river = _river(rng, extent)
        size = extent.pixels(COARSE_M)
        x, y = _centres(extent)
        from_river = np.abs(y[:, None] - np.interp(x, *np.array(river.coords).T)[None, :])
        northing = (y[:, None] - extent.at(0, 0)[1]) / extent.size_m
        rolling, patchy = fractal(rng, size, 3.0), fractal(rng, size, 2.7)
        hilliness = 1 / (1 + np.exp(-(2.2 * rolling + 14 * (0.3 - northing) + 5 * np.maximum(northing - 0.85, 0))))
        riverside = 1.5 * np.exp(-((from_river / 260) ** 2))
        wildness = patchy + 2.0 * hilliness - 1.35 + riverside - 1.2 * np.exp(-(((from_river - 1100) / 700) ** 2))
        relief = hilliness * fractal(rng, size, 3.4)
        return cls(extent, river, _single(hilliness), _single(wildness), _single(relief)[::-1])

    def beside_river(self, share: float, offset_m: float) -> tuple[float, float]:
        """The point `offset_m` to the left of the river, `share` of the way down."""
        before, after = (self.river.interpolate(share + step, normalized=True) for step in (-0.002, 0.002))
        heading = np.arctan2(after.y - before.y, after.x - before.x)
        return before.x - offset_m * np.sin(heading), before.y + offset_m * np.cos(heading)

    def hilliness_at(self, points: NDArray[np.float64]) -> Raster:
        """Hilliness at (n, 2) coordinates."""
        west, south = self.extent.at(0, 0)
        index = ((points - (west, south)) / COARSE_M).astype(int).clip(0, len(self.hilliness) - 1)
        hilliness: Raster = self.hilliness[index[:, 1], index[:, 0]]
        return hilliness


def _single(values: NDArray[Any]) -> Raster:
    single: Raster = values.astype(np.float32)
    return single


def _centres(extent: Extent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates x and y of the coarse pixels, both growing."""
    steps = np.arange(0.5, extent.pixels(COARSE_M)) * float(COARSE_M)
    west, south = extent.at(0, 0)
    return west + steps, south + steps


def _contours(extent: Extent, field: Raster) -> NDArray[np.object_]:
    """Polygons where `field` (rows from the south) is above 0, with smooth outlines."""
    x, y = _centres(extent)
    lines: Any = contour_generator(x, y, field, fill_type=FillType.OuterOffset).filled(0, np.inf)
    polygons = []
    for points, offsets in zip(*lines, strict=True):
        outer, *holes = (points[start:stop] for start, stop in pairwise(offsets))
        polygons.append(Polygon(outer, holes))
    return shapely.make_valid(shapely.simplify(np.array(polygons, dtype=object), 12.0))


def _blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, roughness: float = 0.3) -> Polygon:
    """A star-shaped outline around `centre`."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = np.arange(1, 6)[:, None]
    heights = rng.normal(0, roughness, (5, 1)) / waves
    r = radius * np.exp((heights * np.cos(waves * angle + rng.uniform(0, 2 * np.pi, (5, 1)))).sum(0))
    return Polygon(np.column_stack([centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle)])).buffer(0)


def _river(rng: np.random.Generator, extent: Extent) -> LineString:
    """From the north-west to the east; y is a function of x."""
    u = np.linspace(-0.05, 1.05, 400)
    km = u * extent.size_m / 1000
    phase = rng.uniform(0, 2 * np.pi, 4)
    bends = 0.85 * np.sin(km / 0.95 + phase[0]) * (0.6 + 0.4 * np.sin(km / 3.1 + phase[1]))
    bends += 1.0 * np.sin(km / 2.6 + phase[2]) + 0.2 * np.sin(km / 0.5 + phase[3])
    v = 0.74 - 0.34 * u + bends * 1000 * 0.35 / extent.size_m
    return LineString([extent.at(*point) for point in zip(u, v, strict=True)])


def _tapered(line: LineString, start: float, stop: float, widths: Iterable[float]) -> BaseGeometry:
    """A stretch of the line with a changing half-width."""
    stretch = [line.interpolate(share, normalized=True) for share in np.linspace(start, stop, 40)]
    return shapely.union_all(
        [
            LineString([a, b]).buffer(width)
            for (a, b), width in zip(pairwise(stretch), np.interp(np.linspace(0, 1, 39), *_even(widths)), strict=True)
        ]
    )


def _even(values: Iterable[float]) -> tuple[NDArray[np.float64], list[float]]:
    listed = list(values)
    return np.linspace(0, 1, len(listed)), listed


def _water(rng: np.random.Generator, ground: _Ground) -> _Layer:
    river = shapely.union_all(
        [
            _tapered(ground.river, 0, 1, rng.uniform(45, 85, 24)),
            _brook(rng, ground, (-0.02, 0.2), 0.72),
            _brook(rng, ground, (0.62, 1.02), 0.86),
        ]
    )
    reservoir = _tapered(ground.river, 0.5, 0.62, [80, 260, 420, 520, 480, 100])
    ponds = [_blob(rng, ground.extent.at(*rng.uniform(0.05, 0.95, 2)), rng.uniform(70, 210)) for _ in range(14)]
    lakes = shapely.union_all([reservoir, *ponds, *(_old_arm(ground, share, 32) for share in _OLD_ARMS)])
    return _Layer(np.array([lakes, shapely.difference(river, lakes)]), ["lake", "river"])


_OLD_ARMS = (0.12, 0.2, 0.34, 0.72, 0.83, 0.93)
"""Where along the river its old arms lie."""


def _old_arm(ground: _Ground, share: float, half_width_m: float) -> BaseGeometry:
    side = 1 if round(share * 100) % 2 else -1
    bow = [
        ground.beside_river(share + step, side * (190 + 260 * np.cos(step * np.pi / 0.05)))
        for step in np.linspace(-0.022, 0.022, 12)
    ]
    return LineString(bow).buffer(half_width_m)


def _brook(rng: np.random.Generator, ground: _Ground, source: tuple[float, float], mouth: float) -> BaseGeometry:
    """A narrow river from `source` (shares of the extent) to the river's course at `mouth`."""
    end = ground.river.interpolate(mouth, normalized=True)
    start = ground.extent.at(*source)
    return LineString(_wandering(rng, start, (end.x, end.y), 0.12)).buffer(17)


def _wandering(
    rng: np.random.Generator, start: tuple[float, float], end: tuple[float, float], sway: float
) -> NDArray[np.float64]:
    """Points of a curved way by displacing midpoints, each time by less."""
    points = np.array([start, end], float)
    for _ in range(6):
        steps = np.diff(points, axis=0)
        middle = points[:-1] + steps / 2 + rng.normal(0, sway, (len(steps), 1)) * steps[:, ::-1] * (-1, 1)
        points = np.insert(points, np.arange(1, len(points)), middle, axis=0)
    return points


def _gravel(rng: np.random.Generator, ground: _Ground) -> _Layer:
    """Bars along the river and a few pits in the plain."""
    bars = [
        _blob(rng, ground.beside_river(share, rng.choice([-1, 1]) * 85), rng.uniform(35, 75))
        for share in rng.uniform(0.02, 0.98, 26)
    ]
    pits = [
        _blob(rng, ground.extent.at(*rng.uniform((0.1, 0.45), (0.9, 0.9))), rng.uniform(110, 230)) for _ in range(6)
    ]
    parts = shapely.get_parts(shapely.union_all([*bars, *pits]))
    return _Layer(parts, ["gravel"] * len(parts))


def _reeds(rng: np.random.Generator, ground: _Ground) -> _Layer:
    banks = [_old_arm(ground, share, rng.uniform(75, 150)) for share in _OLD_ARMS]
    shores = [_blob(rng, ground.beside_river(share, 520), rng.uniform(160, 330)) for share in (0.5, 0.55, 0.6)]
    mires = [_blob(rng, ground.extent.at(*rng.uniform(0.08, 0.92, 2)), rng.uniform(120, 380)) for _ in range(7)]
    parts = shapely.get_parts(shapely.union_all([*banks, *shores, *mires]))
    return _Layer(parts, ["reeds"] * len(parts))


@dataclass(frozen=True, slots=True)
class _Town:
    centre: tuple[float, float]
    radius_m: float


def _towns(rng: np.random.Generator, extent: Extent) -> list[_Town]:
    """One town, a smaller one, and villages that keep their distance."""
    towns = [_Town(extent.at(0.4, 0.69), 1250), _Town(extent.at(0.8, 0.5), 750), _Town(extent.at(0.18, 0.42), 600)]
    for _ in range(400):
        place = extent.at(*rng.uniform(0.03, 0.97, 2))
        room = min(np.hypot(place[0] - town.centre[0], place[1] - town.centre[1]) - town.radius_m for town in towns)
        if room > 1500 and len(towns) < 34:
            towns.append(_Town(place, rng.uniform(130, 380)))
    return towns


def _roads(rng: np.random.Generator, towns: Sequence[_Town]) -> _Layer:
    """The shortest links that join all towns, some more, and a motorway past the largest one."""
    centres = np.array([town.centre for town in towns])
    links = _links(centres)
    lines = [LineString(_wandering(rng, tuple(centres[a]), tuple(centres[b]), 0.09)).buffer(11) for a, b in links]
    x, y = centres[0]
    way = _wandering(rng, (x - 20000, y + 5500), (x + 20000, y - 4500), 0.03)
    motorway = shapely.transform(LineString(way), lambda points: np.add(points, (0, 1900))).buffer(22)
    return _Layer(shapely.get_parts(shapely.union_all([*lines, motorway])), ["road"])


def _links(centres: NDArray[np.float64]) -> set[tuple[int, int]]:
    """Each place with its two nearest, and with the nearest that is nearer to the first place."""
    distance = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    links = {(i, int(j)) for i in range(len(centres)) for j in np.argsort(distance[i])[1:3]}
    for i in range(1, len(centres)):
        nearer = np.flatnonzero(distance[0] < distance[0, i])
        links.add((i, int(nearer[np.argmin(distance[i, nearer])])))
    return {(min(link), max(link)) for link in links}


def _town_blocks(rng: np.random.Generator, towns: Sequence[_Town]) -> _Layer:
    polygons: list[NDArray[np.object_]] = []
    covers: list[str] = []
    for town in towns:
        outline = _blob(rng, town.centre, town.radius_m)
        blocks = _cells(rng, outline, 125)
        blocks = blocks[shapely.contains(outline, shapely.centroid(blocks))]
        polygons.append(blocks)
        covers += list(rng.choice(["houses and gardens", "industry", "meadow"], len(blocks), p=[0.8, 0.1, 0.1]))
    return _Layer(np.concatenate(polygons), covers)


def _cells(rng: np.random.Generator, outline: Polygon, spacing_m: float) -> NDArray[np.object_]:
    """Irregular cells about `spacing_m` across that cover the outline and more."""
    west, south, east, north = outline.buffer(2 * spacing_m).bounds
    grid = np.stack(np.meshgrid(np.arange(west, east, spacing_m), np.arange(south, north, spacing_m)), -1).reshape(
        -1, 2
    )
    seeds = grid + rng.uniform(0, 0.85 * spacing_m, grid.shape)
    return shapely.get_parts(shapely.voronoi_polygons(MultiPoint(seeds)))


def _forest(rng: np.random.Generator, ground: _Ground) -> _Layer:
    """Woods with smooth edges, in stands of one kind."""
    woods = STRtree(_contours(ground.extent, ground.wildness))
    stands = _cells(rng, ground.extent.box, 600)
    stand, wood = woods.query(stands, predicate="intersects")
    pieces = shapely.intersection(stands[stand], woods.geometries[wood])
    coniferous = rng.random(len(stands)) < 0.16 + 0.3 * ground.hilliness_at(
        shapely.get_coordinates(shapely.centroid(stands))
    )
    return _Layer(pieces, ["coniferous forest" if coniferous[index] else "broadleaved forest" for index in stand])


def _shrubs(rng: np.random.Generator, ground: _Ground) -> _Layer:
    overgrown = fractal(rng, len(ground.wildness), 2.0) - 1.25
    polygons = _contours(ground.extent, np.minimum(ground.wildness + 0.55, overgrown))
    return _Layer(polygons, ["shrubs"] * len(polygons))


_CROPS = ("maize", "winter wheat", "oil pumpkin", "rapeseed", "meadow", "pasture")
_IN_THE_PLAIN = np.array([0.34, 0.29, 0.09, 0.09, 0.14, 0.05])
_IN_THE_HILLS = np.array([0.12, 0.08, 0.0, 0.0, 0.5, 0.3])


def _parcels(rng: np.random.Generator, ground: _Ground, taken: NDArray[np.object_]) -> _Layer:
    """Blocks of fields where nothing else is, each in strips of its own direction."""
    blocks = _cells(rng, ground.extent.box, 760)
    blocks = blocks[shapely.intersects(blocks, ground.extent.box) & (shapely.area(blocks) < 4 * 760**2)]
    centres = shapely.get_coordinates(shapely.centroid(blocks))
    hilly = ground.hilliness_at(centres)
    x, y = (centres - ground.extent.at(0, 0)).T / 1000
    directions = 0.9 * np.sin(x / 3.3 + 1) + 0.8 * np.cos(y / 2.7) + rng.normal(0, 0.35, len(blocks))
    fields = _minus(shapely.intersection(blocks, ground.extent.box), taken)
    strips = [_strips(rng, *entry) for entry in zip(blocks, fields, directions, strict=True)]
    covers = [
        name
        for parts, height in zip(strips, hilly, strict=True)
        for name in rng.choice(_CROPS, len(parts), p=_IN_THE_PLAIN + height * (_IN_THE_HILLS - _IN_THE_PLAIN))
    ]
    return _single_polygons(_Layer(np.concatenate(strips), covers))


def _strips(rng: np.random.Generator, block: Polygon, fields: BaseGeometry, direction: float) -> NDArray[np.object_]:
    """The block's fields cut into strips along `direction` (radians), and each row of strips across."""
    centre = np.array(block.centroid.coords[0])
    reach = float(np.hypot(*(shapely.get_coordinates(block) - centre).T).max())
    across = _edges(rng, reach, rng.choice([110, 150, 220], p=[0.4, 0.4, 0.2]))
    along = _edges(rng, reach, 520)
    low, left = (edges.ravel() for edges in np.meshgrid(across[:-1], along[:-1], indexing="ij"))
    high, right = (edges.ravel() for edges in np.meshgrid(across[1:], along[1:], indexing="ij"))
    corners = np.stack([[left, low], [right, low], [right, high], [left, high]]).transpose(2, 0, 1)
    cosine, sine = np.cos(direction), np.sin(direction)
    turned = corners @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    shapely.prepare(fields)
    strips = shapely.polygons(turned)
    strips = shapely.intersection(strips[shapely.intersects(fields, strips)], fields)
    kept: NDArray[np.object_] = strips[shapely.area(strips) > _SMALLEST_M2]
    return kept


def _edges(rng: np.random.Generator, reach: float, width: float) -> NDArray[np.float64]:
    """Positions from -reach to beyond reach, about `width` apart."""
    widths = width * rng.lognormal(0, 0.3, int(2 * reach / width * 1.6) + 2)
    return np.concatenate([[0], widths.cumsum()]) - reach


def _without_overlaps(layers: Iterable[_Layer], extent: Extent) -> tuple[list[_Layer], NDArray[np.object_]]:
    """Cut from every layer what the layers before it cover; single polygons inside the extent, and all in pieces."""
    taken = np.array([], dtype=object)
    cut = []
    for layer in layers:
        polygons = _minus(shapely.intersection(layer.polygons, extent.box), taken)
        cut.append(_single_polygons(_Layer(polygons, layer.covers)))
        taken = np.concatenate([taken, _tiled(cut[-1].polygons, extent)])
    return cut, taken


def _minus(polygons: NDArray[np.object_], taken: NDArray[np.object_]) -> NDArray[np.object_]:
    result = polygons.copy()
    own, other = STRtree(taken).query(polygons, predicate="intersects")
    starts = np.flatnonzero(np.diff(own, prepend=-1, append=len(polygons)))
    for first, last in pairwise(starts):
        cut = shapely.union_all(taken[other[first:last]])
        result[own[first]] = shapely.difference(polygons[own[first]], cut, grid_size=_GRID_M)
    return result


def _tiled(polygons: NDArray[np.object_], extent: Extent, side_m: float = 1000.0) -> NDArray[np.object_]:
    """The same area in pieces no larger than `side_m`, so that cutting with them is local."""
    west, south, east, north = extent.box.bounds
    x, y = (edges.ravel() for edges in np.meshgrid(np.arange(west, east, side_m), np.arange(south, north, side_m)))
    cells = shapely.box(x, y, x + side_m, y + side_m)
    cell, polygon = STRtree(polygons).query(cells, predicate="intersects")
    pieces = shapely.get_parts(shapely.intersection(cells[cell], polygons[polygon]))
    areas: NDArray[np.object_] = pieces[shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON]
    return areas  # without the lines and points where a cell only touches: they spoil unions


def _single_polygons(layer: _Layer) -> _Layer:
    """Polygons large enough to keep, with their covers."""
    parts, origin = shapely.get_parts(layer.polygons, return_index=True)
    keep = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (shapely.area(parts) > _SMALLEST_M2)
    return _Layer(parts[keep], [layer.covers[index if len(layer.covers) > 1 else 0] for index in origin[keep]])
