"""A tile: one raster that the service makes."""

import math
from dataclasses import dataclass, field

import shapely
from affine import Affine
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from tasks.grid.coordinates import crs_of, outline_to_lonlat

_DEGREE_M = 111_320.0  # of longitude at the equator


@dataclass(frozen=True, slots=True)
class Tile:
    """One raster that the service makes: an upright rectangle in a CRS.

    Attributes:
        name: unique in its grid or GeoPackage.
        epsg: code of the CRS.
        bounds: min_x, min_y, max_x, max_y in the CRS's unit (metres or degrees).
        width: columns, pixels.
        height: rows, pixels.
        outline: polygon or multipolygon in the CRS as WKB; pixels whose centre lies outside have no data. None: all of
            the rectangle counts.
        id: number beside the name; it tells no tiles apart (ids of a GeoPackage may repeat in another of its tables)
            and takes no part in comparisons. None: not known, as of a tile that was read from a manifest.
    """

    name: str
    epsg: int
    bounds: tuple[float, float, float, float]
    width: int
    height: int
    outline: bytes | None = None
    id: int | None = field(default=None, compare=False)

    @property
    def resolution(self) -> tuple[float, float]:
        """Pixel size in x and y, both positive, in the CRS's unit."""
        min_x, min_y, max_x, max_y = self.bounds
        return (max_x - min_x) / self.width, (max_y - min_y) / self.height

    @property
    def resolution_m(self) -> tuple[float, float]:
        """Pixel size in x and y in metres; of a pixel in degrees, at the middle of the tile."""
        x_resolution, y_resolution = self.resolution
        crs = crs_of(self.epsg)
        if crs.is_geographic:
            middle = math.radians((self.bounds[1] + self.bounds[3]) / 2)
            return x_resolution * _DEGREE_M * math.cos(middle), y_resolution * _DEGREE_M
        unit_m = crs.axis_info[0].unit_conversion_factor
        return x_resolution * unit_m, y_resolution * unit_m

    @property
    def transform(self) -> Affine:
        """From (column, row) to (x, y), north up: the origin is the upper-left corner."""
        x_resolution, y_resolution = self.resolution
        return Affine(x_resolution, 0.0, self.bounds[0], 0.0, -y_resolution, self.bounds[3])

    @property
    def shape(self) -> BaseGeometry:
        """What of the tile can have data, in its CRS: its outline, or the rectangle."""
        return shapely.box(*self.bounds) if self.outline is None else shapely.from_wkb(self.outline)


def lonlat_outline(tile: Tile) -> Polygon:
    """Rectangle of a tile in EPSG:4326 (longitude, latitude), with points added along the edges.

    Longitudes are continuous: a tile across the antimeridian goes beyond ±180.
    """
    return Polygon(shapely.get_coordinates(outline_to_lonlat(shapely.box(*tile.bounds), tile.epsg)))


def lonlat_shape(tile: Tile) -> BaseGeometry:
    """What of the tile can have data, as :func:`lonlat_outline` gives its rectangle."""
    return outline_to_lonlat(tile.shape, tile.epsg)
