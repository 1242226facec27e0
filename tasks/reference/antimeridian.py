"""CRSs whose x goes around the Earth, and polygons that lie across the edge at which x begins and ends there."""

from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from tasks.reference.projection import Transform
from tasks.reference.shapes import Geometries, Shapes


@lru_cache(maxsize=256)
def turn_of(crs: CRS) -> float:
    """How far it is once around the Earth along x, in a CRS's unit; infinite where x does not go around.

    It does where x is the longitude, or grows with it evenly and alike in all latitudes, as in cylindrical projections.
    PROJ takes points of such a CRS beyond its edge for those a turn away.
    """
    if crs.is_geographic:
        return 2 * np.pi / float(crs.axis_info[0].unit_conversion_factor)
    if not crs.is_projected or crs.geodetic_crs is None:
        return np.inf
    eighth = turn_of(crs.geodetic_crs) / 8
    longitudes, latitudes = np.meshgrid(eighth * np.arange(4), eighth * np.array([-1, 0, 1]))
    x, _ = _from_degrees(crs).transform(longitudes, latitudes)
    if not np.isfinite(x).all():
        return np.inf
    steps = np.diff(x, axis=1)  # at one of the three, x may begin again
    turn = 8 * float(np.median(steps))
    return abs(turn) if turn and np.allclose(steps % turn, turn / 8, rtol=1e-9, atol=0) else np.inf


def turns(distance: NDArray[np.float64], turn: float) -> NDArray[np.float64]:
    """The whole turns in distances, to the nearest."""
    return np.rint(distance / turn) * turn if np.isfinite(turn) else np.zeros(len(distance))


def eastwards(distance: float) -> Transform:
    """Give what moves points along x."""
    return lambda points: np.asarray(points + np.array([distance, 0.0]))


def continuous(shapes: Shapes, crs: CRS) -> Shapes:
    """Bring polygons together whose points PROJ put at both edges of a CRS, if need be beyond one of them.

    Args:
        shapes: in the CRS, finite or missing; no edge is half a turn long.
        crs: x of any other than those with a finite :func:`turn_of` is continuous.
    """
    turn = turn_of(crs)
    across = _wider(shapes.bounds, turn / 2)
    if len(across) == 0:
        return shapes
    polygons, poles = shapes.geometries().copy(), _poles(crs)
    parts, polygon = shapely.get_parts(polygons[across], return_index=True)
    wide = _wider(shapely.bounds(parts), turn / 2)
    parts[wide] = [_continuous(part, turn, poles) for part in parts[wide]]
    by_polygon = np.split(parts, np.flatnonzero(np.diff(polygon)) + 1)
    polygons[across] = [shapely.multipolygons(shapely.get_parts(some)) for some in by_polygon]
    return Geometries(polygons)


def _wider(bounds: NDArray[np.float64], than: float) -> NDArray[np.int64]:
    return np.flatnonzero(bounds[:, 2] - bounds[:, 0] > than)


def _continuous(polygon: shapely.Polygon, turn: float, poles: tuple[float, float]) -> shapely.Geometry:
    shell, *holes = (_filled(ring, turn, poles) for ring in (polygon.exterior, *polygon.interiors))
    within = [shapely.transform(holes, eastwards(shift)) for shift in (0.0, -turn, turn)]
    return shapely.difference(shell, shapely.union_all(within)) if holes else shell


def _filled(ring: shapely.LinearRing, turn: float, poles: tuple[float, float]) -> shapely.Geometry:
    """What a ring encloses; of one around a pole, up to that pole."""
    points = shapely.get_coordinates(ring)
    points[:, 0] -= np.cumsum(turns(np.diff(points[:, 0], prepend=points[:1, 0]), turn))
    first, last = points[0, 0], points[-1, 0]
    if abs(last - first) > turn / 2:
        pole = poles[int(points[:, 1].mean() > sum(poles) / 2)]
        points = np.vstack([points, [(last, pole), (first, pole)]])
    return shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)


@lru_cache(maxsize=256)
def _poles(crs: CRS) -> tuple[float, float]:
    """Give y of the South Pole and the North Pole; of a projection that has them infinitely far, what PROJ has."""
    quarter = turn_of(crs.geodetic_crs) / 4
    return tuple(_from_degrees(crs).transform([0, 0], [-quarter, quarter])[1])


def _from_degrees(crs: CRS) -> Transformer:
    """From longitude and latitude of a CRS's own datum."""
    return Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
