"""The map of a job's tiles as the numbers of an SVG: outlines in longitude and latitude, north up, scaled to a frame.

Pure: features in, paths out. Up to DETAILED_TILES every tile can be pointed at; beyond that all tiles of a state are
one path, and only the failed ones can be.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import cos, radians

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon
from shapely.affinity import translate

from localhub.store import Feature, FeatureGroup
from tasks.grid import Tile, lonlat_outline

DETAILED_TILES = 1000
"""With more tiles than this, those of a state are drawn as one shape."""
LETTER_PIXELS = 16.0
"""Tiles that are smaller than this in the frame get no letter."""
_FRAME = (960.0, 540.0)
_TOLERANCE_PIXELS = 0.3  # a point of an outline that lies closer to the line between its neighbours is left out


class TileState(StrEnum):
    """What has become of a tile, in people's words; what has ended comes last."""

    PENDING = "pending"
    RUNNING = "running"
    TO_RETRY = "to retry"
    FATAL = "fatal"
    UNDELIVERED = "undelivered"
    NO_DATA = "no data"
    DONE = "done"

    @property
    def letter(self) -> str:
        """Stands for the state where colours cannot be told apart."""
        return self.value[0].upper()

    @property
    def css(self) -> str:
        """Name of the style."""
        return self.value.replace(" ", "-")


FAILED = (TileState.FATAL, TileState.UNDELIVERED)
ENDED = (*FAILED, TileState.NO_DATA, TileState.DONE)


def state_of(feature: Feature | FeatureGroup, *, processing: bool) -> TileState:
    """Return a feature's state; one that was begun counts as running only while its job is `processing`."""
    if feature.status == "FATAL":
        return TileState.FATAL
    if feature.status != "DONE":
        if not (feature.begun and processing):
            return TileState.PENDING
        return TileState.TO_RETRY if feature.tries else TileState.RUNNING
    if feature.error:
        return TileState.NO_DATA
    return TileState.DONE if feature.delivered else TileState.UNDELIVERED


@dataclass(frozen=True, slots=True)
class Shape:
    """One path of the map."""

    state: TileState
    d: str
    """Path data, in pixels of the frame."""
    title: str
    """What pointing at it tells."""
    centre: tuple[float, float] | None
    """Where the state's letter stands; None leaves it out."""


@dataclass(frozen=True, slots=True)
class TileMap:
    """What there is to draw."""

    width: float
    height: float
    """Pixels of the frame."""
    shapes: tuple[Shape, ...]
    extent: tuple[float, float, float, float]
    """West, south, east, north of all tiles, degrees."""
    detailed: bool
    """Whether every tile is a shape of its own."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    feature: Feature
    state: TileState
    ring: NDArray[np.float64]
    """(points, 2): x and y in pixels, y down."""

    @property
    def d(self) -> str:
        first, *others = (f"{x:.1f},{y:.1f}" for x, y in self.ring[:-1])
        return f"M{first}L{' '.join(others)}Z"

    @property
    def title(self) -> str:
        tries = f", {self.feature.tries} failed tries" if self.feature.tries else ""
        error = f": {self.feature.error}" if self.feature.error else ""
        return f"{self.feature.tile.name} {self.state}{tries}{error}"

    @property
    def centre(self) -> tuple[float, float] | None:
        low, high = self.ring.min(axis=0), self.ring.max(axis=0)
        if (high - low).min() < LETTER_PIXELS:
            return None
        x, y = (low + high) / 2
        return round(float(x), 1), round(float(y), 1)


def tile_map(features: Sequence[Feature], *, processing: bool) -> TileMap:
    """Return the map of one or more features."""
    outlines = _side_by_side([_outline(feature.tile) for feature in features])
    west, south, east, north = (float(value) for value in shapely.total_bounds(outlines))
    across = cos(radians((south + north) / 2))  # a degree of longitude, in degrees of latitude
    scale = min(_FRAME[0] / ((east - west) * across), _FRAME[1] / (north - south))

    def pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([(points[:, 0] - west) * across * scale, (north - points[:, 1]) * scale])

    simple = shapely.simplify(shapely.transform(outlines, pixels), _TOLERANCE_PIXELS)
    drawn = [
        _Drawn(feature, state_of(feature, processing=processing), shapely.get_coordinates(outline))
        for feature, outline in zip(features, simple, strict=True)
    ]
    detailed = len(drawn) <= DETAILED_TILES
    shapes = _one_each(drawn) if detailed else _one_a_state(drawn)
    width, height = ((east - west) * across * scale, (north - south) * scale)
    return TileMap(round(width, 1), round(height, 1), tuple(shapes), (west, south, east, north), detailed)


@lru_cache(maxsize=20_000)
def _outline(tile: Tile) -> Polygon:
    return lonlat_outline(tile)


def _side_by_side(outlines: list[Polygon]) -> list[Polygon]:
    """Return the outlines with longitudes that are continuous: none is more than 180° from the first."""
    middle = outlines[0].bounds[0]
    turns = [360.0 * round((middle - outline.bounds[0]) / 360.0) for outline in outlines]
    return [translate(outline, xoff=turn) if turn else outline for outline, turn in zip(outlines, turns, strict=True)]


def _one_each(drawn: Iterable[_Drawn]) -> Iterator[Shape]:
    return (Shape(one.state, one.d, one.title, one.centre) for one in drawn)


def _one_a_state(drawn: Sequence[_Drawn]) -> Iterator[Shape]:
    """Give one shape for each state, then the failed tiles on top."""
    grouped: defaultdict[TileState, list[_Drawn]] = defaultdict(list)
    for one in drawn:
        grouped[one.state].append(one)
    for state, members in sorted(grouped.items(), key=lambda item: item[0] in FAILED):
        singles = members[:DETAILED_TILES] if state in FAILED else []
        merged = members[len(singles) :]
        if merged:
            yield Shape(state, "".join(one.d for one in merged), f"{len(merged):,} tiles {state}", None)
        yield from _one_each(singles)


def tally(groups: Iterable[FeatureGroup], *, processing: bool) -> Counter[TileState]:
    """Return how many features are in which state."""
    counts: Counter[TileState] = Counter()
    for group in groups:
        counts[state_of(group, processing=processing)] += group.count
    return counts
