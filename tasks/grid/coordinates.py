"""Bringing areas and outlines from one CRS to another: edges get points first, longitudes stay in one piece."""

from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely import Point
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]
"""min_x, min_y, max_x, max_y."""
LONLAT = 4326
"""EPSG code of longitude and latitude; the order is x, y everywhere."""

_MAX_EDGE_DEG, _MAX_EDGE_M = 0.1, 10_000.0  # longest edge of an area when it is reprojected
_EDGE_PARTS = 8  # segments into which an edge of a tile or square is cut when it is reprojected
_CUT_M = 0.01  # half the width of the cut through an area around a pole


@lru_cache(maxsize=1024)
def transformer(source: int, target: int) -> Transformer:
    """Give the transformation between two EPSG codes, x before y in both."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def crs_of(epsg: int) -> CRS:
    """Give the CRS of an EPSG code.

    Raises:
        pyproj.exceptions.CRSError: there is none.
    """
    return CRS.from_epsg(epsg)


def transformed(geometry: BaseGeometry, source: int, target: int) -> BaseGeometry:
    """Reproject each point of a geometry."""
    convert = transformer(source, target).transform
    return shapely.transform(geometry, lambda points: np.column_stack(convert(points[:, 0], points[:, 1])))


def near(lon: NDArray[np.float64], centre: float) -> NDArray[np.float64]:
    """Longitudes moved by whole turns to within 180 degrees of a centre."""
    return (np.asarray(lon) - centre + 180) % 360 - 180 + centre


def ring_of(bounds: Bounds) -> NDArray[np.float64]:
    """Closed outline of a rectangle with points along the edges, shape (points, 2)."""
    return shapely.get_coordinates(with_points(shapely.box(*bounds).exterior))


def with_points(geometry: BaseGeometry) -> BaseGeometry:
    """Add points along the edges of a tile's outline, as many as its reprojection needs."""
    min_x, min_y, max_x, max_y = geometry.bounds
    return shapely.segmentize(geometry, max(max_x - min_x, max_y - min_y) / _EDGE_PARTS)


def outline_to_lonlat(geometry: BaseGeometry, epsg: int) -> BaseGeometry:
    """Reproject a tile's outline to longitude and latitude; across the antimeridian it goes on beyond ±180."""
    return _continuous(transformed(with_points(geometry), epsg, LONLAT))


def area_to_lonlat(area: BaseGeometry, crs: int) -> BaseGeometry:
    """Reproject an area to longitude and latitude, with points added to its edges.

    Longitudes are continuous across the antimeridian: the area may reach beyond ±180. One that lies around a pole is
    cut along the antimeridian, and reaches from -180 to 180.
    """
    if crs_of(crs).is_geographic:
        return transformed(shapely.segmentize(area, _MAX_EDGE_DEG), crs, LONLAT)
    cut = _cut_at_pole(area, crs)
    if cut is not None:
        turned = transformed(shapely.segmentize(cut, _MAX_EDGE_M), crs, LONLAT)
        return shapely.transform(turned, lambda points: np.column_stack([near(points[:, 0], 0.0), points[:, 1]]))
    return _continuous(transformed(shapely.segmentize(area, _MAX_EDGE_M), crs, LONLAT))


def _continuous(lonlat: BaseGeometry) -> BaseGeometry:
    start = float(shapely.get_coordinates(lonlat)[0, 0])
    return shapely.transform(lonlat, lambda points: np.column_stack([near(points[:, 0], start), points[:, 1]]))


def _cut_at_pole(area: BaseGeometry, crs: int) -> BaseGeometry | None:
    """Take a centimetre along the antimeridian out of an area around a pole, so that no edge crosses it; else None."""
    for latitude in (90.0, -90.0):
        x, y = transformer(LONLAT, crs).transform(np.full(100, 180.0), np.linspace(latitude, 0.0, 100))
        if np.isfinite([x, y]).all() and area.convex_hull.covers(Point(x[0], y[0])):
            return area.difference(shapely.LineString(np.column_stack([x, y])).buffer(_CUT_M))
    return None
