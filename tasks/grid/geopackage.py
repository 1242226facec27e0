"""Tiles from a GeoPackage of the user's own: what the service asks of the file, and the tile of each feature.

The file is read as the SQLite database that it is: the rules are about what stands in it, while GDAL mends and
guesses (and takes most of a second to be imported).

Sources: Sentinel Hub, "Batch Processing API V2", GeoPackage input (the rules); OGC 12-128r19, "GeoPackage Encoding
Standard" 1.4, sections 1.1 (tables that describe the content) and 2.1 (features, their binary geometries).
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from pyproj.exceptions import CRSError
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from tasks.grid.coordinates import Bounds, crs_of
from tasks.grid.tile import Tile

MAX_PIXELS = 3500
"""Largest width and height of a feature's raster."""
MAX_FEATURES = 700_000
"""Largest number of features, over all tables."""

_LONGEST_IDENTIFIER = 200
"""In UTF-8; names of files have at most 255 bytes, and those of EOPatches begin with more."""
_ROWS_AT_ONCE = 10_000
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)  # of a binary geometry, by the code in its flags
_RECTANGLE = 1 - 1e-9  # share of its bounding box from which on a polygon counts as rectangle
_TABLES = """
    SELECT contents.table_name, columns.column_name, upper(columns.geometry_type_name),
        upper(systems.organization), systems.organization_coordsys_id
    FROM gpkg_contents AS contents
    LEFT JOIN gpkg_geometry_columns AS columns ON lower(columns.table_name) = lower(contents.table_name)
    LEFT JOIN gpkg_spatial_ref_sys AS systems ON systems.srs_id = columns.srs_id
    WHERE contents.data_type = 'features' ORDER BY contents.table_name
"""


@dataclass(frozen=True, slots=True)
class RasterSize:
    """Size of a feature's raster: columns and rows, or else the size of a pixel in the CRS's unit. None: not given."""

    width: int | None = None
    height: int | None = None
    resolution: float | None = None


NOT_GIVEN = RasterSize()
"""No defaults."""


class _Table(NamedTuple):
    """A feature table; `size_columns` are those of width, height and resolution that it has."""

    name: str
    geometry: str
    epsg: int
    key: str | None
    columns: frozenset[str]


class _Row(NamedTuple):
    """A feature as it stands in its table."""

    key: Any
    id: Any
    identifier: Any
    width: Any
    height: Any
    resolution: Any
    geometry: Any


def tiles_of_geopackage(path: str | PathLike[str], defaults: RasterSize = NOT_GIVEN) -> list[Tile]:
    """Read the tiles that a GeoPackage asks for, sorted by name.

    A feature's tile is the bounding box of its geometry, and has the outline where that is no rectangle; its name is
    the feature's ``identifier``, unique in the file, its id the feature's ``id`` (else the primary key), unique in the
    table. The raster has the feature's ``width`` and ``height`` or, unless it has both, its ``resolution``; a feature
    without either takes what it lacks from the defaults.

    Raises:
        ValueError: the file cannot be read or breaks a rule; the message names the rule and the feature.
    """
    try:
        with closing(_opened(path)) as database:
            tables = [_table(database, row) for row in database.execute(_TABLES).fetchall()]
            _check_count(sum(_count(database, table) for table in tables), path)
            tiles = [tile for table in tables for tile in _tiles(database, table, defaults)]
    except sqlite3.Error as error:
        raise ValueError(f"The GeoPackage {Path(path).name} cannot be read: {error}.") from error
    _refuse_repeats((tile.name for tile in tiles), "identifier must be unique over all tables")
    return sorted(tiles, key=lambda tile: tile.name)


# ---- tables ----


def _opened(path: str | PathLike[str]) -> sqlite3.Connection:
    """Open the file as it stands: without a journal beside it, and without running what its schema may bring."""
    database = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    database.execute("PRAGMA trusted_schema = OFF")
    return database


def _table(database: sqlite3.Connection, row: tuple[Any, ...]) -> _Table:
    name, geometry, geometry_type, organization, code = row
    if geometry_type not in {"POLYGON", "MULTIPOLYGON"}:
        raise ValueError(
            f"The geometry column of every table must be of type POLYGON or MULTIPOLYGON; '{name}' has {geometry_type}."
        )
    if organization != "EPSG" or not _is_epsg(code):
        raise ValueError(f"The CRS of every table must be of EPSG; '{name}' has {organization} {code}.")
    found = database.execute("SELECT name, type, pk FROM pragma_table_info(?)", (name,)).fetchall()
    columns = frozenset(column for column, _, _ in found)
    if "identifier" not in columns:
        raise ValueError(f"Every table must have a column 'identifier'; '{name}' has {sorted(columns)}.")
    keys = [column for column, kind, place in found if place and kind.upper() == "INTEGER"]
    if not keys and "id" not in columns:
        raise ValueError(f"Every table must have a column 'id' or an integer primary key; '{name}' has neither.")
    return _Table(name, geometry, code, keys[0] if keys else None, columns)


def _is_epsg(code: int) -> bool:
    try:
        crs_of(code)
    except CRSError:
        return False
    return True


def _count(database: sqlite3.Connection, table: _Table) -> int:
    return int(database.execute(f"SELECT count(*) FROM {_quoted(table.name)}").fetchone()[0])  # noqa: S608 (quoted)


def _check_count(count: int, path: str | PathLike[str]) -> None:
    if not 0 < count <= MAX_FEATURES:
        raise ValueError(f"The GeoPackage must have 1 to {MAX_FEATURES:,} features; {Path(path).name} has {count:,}.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- features ----


def _tiles(database: sqlite3.Connection, table: _Table, defaults: RasterSize) -> Iterator[Tile]:
    ids: list[int] = []
    rows = database.execute(_select(table))
    while chunk := [_Row(*row) for row in rows.fetchmany(_ROWS_AT_ONCE)]:
        shapes = _geometries(table, chunk)
        outlines = _outlines(shapes)
        for row, bounds, outline in zip(chunk, shapely.bounds(shapes).tolist(), outlines, strict=True):
            ids.append(_id(table, row))
            width, height = _pixels(_where(table, row), row, defaults, bounds)
            yield Tile(row.identifier, table.epsg, tuple(bounds), width, height, outline, ids[-1])
    _refuse_repeats(ids, f"id must be unique in table '{table.name}'")


def _select(table: _Table) -> str:
    """The statement for a table's rows, as :class:`_Row` has them; columns that it lacks are NULL."""
    key = _quoted(table.key or "id")
    number = '"id"' if "id" in table.columns else key
    others = [name if name in table.columns else "NULL" for name in ("identifier", "width", "height", "resolution")]
    columns = ", ".join([key, number, *others, _quoted(table.geometry)])
    return f"SELECT {columns} FROM {_quoted(table.name)}"  # noqa: S608 (quoted)


def _where(table: _Table, row: _Row) -> str:
    named = f" ('{row.identifier}')" if isinstance(row.identifier, str) and row.identifier else ""
    return f"'{table.name}' feature {row.key}{named}"


def _id(table: _Table, row: _Row) -> int:
    _check_identifier(table, row)
    if type(row.id) is not int:
        raise ValueError(f"id must be an integer; {_where(table, row)} has {row.id!r}.")
    return row.id


def _check_identifier(table: _Table, row: _Row) -> None:
    if not isinstance(row.identifier, str) or not row.identifier:
        raise ValueError(f"identifier must be a text that is not empty; {_where(table, row)} has {row.identifier!r}.")
    if row.identifier in {".", ".."} or len(row.identifier.encode()) > _LONGEST_IDENTIFIER:
        raise ValueError(
            f"identifier becomes the name of a folder: at most {_LONGEST_IDENTIFIER} bytes, and not '.' or '..'; "
            f"{_where(table, row)} has {row.identifier[:40]!r}."
        )
    bad = {character for character in row.identifier if character in "*?[]/\\" or not character.isprintable()}
    if bad:
        raise ValueError(
            f"identifier becomes the name of a folder, which must not hold {' '.join(map(repr, sorted(bad)))}; "
            f"{_where(table, row)} does."
        )


def _refuse_repeats(values: Iterable[object], rule: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{rule}; {len(repeated)} are repeated, the first is {repeated[0]!r}.")


# ---- geometries ----


def _geometries(table: _Table, rows: list[_Row]) -> list[BaseGeometry]:
    """Geometries without a third dimension; each is a valid polygon with a surface, or multipolygon."""
    shapes = shapely.force_2d(shapely.from_wkb([_wkb(row.geometry) for row in rows], on_invalid="ignore"))
    areas = shapely.area(shapes)
    good = np.isin(shapely.get_type_id(shapes), [3, 6]) & (areas > 0) & np.isfinite(areas) & shapely.is_valid(shapes)
    for position in np.flatnonzero(~good)[:1].tolist():
        raise ValueError(
            f"The geometry must be a valid polygon or multipolygon with a surface; {_where(table, rows[position])} has "
            f"{_fault(shapes[position])}."
        )
    return list(shapes)


def _fault(shape: BaseGeometry | None) -> str:
    if shape is None:
        return "none, or one that cannot be read"
    if not isinstance(shape, Polygon | MultiPolygon) or not 0 < shape.area < math.inf:
        return f"a {shape.geom_type} of area {shape.area:g}"
    return f"one with the fault {shapely.is_valid_reason(shape)}"


def _wkb(value: Any) -> bytes | None:
    """The WKB in a GeoPackage's binary geometry; None for what is none, or an extended one."""
    if not isinstance(value, bytes) or len(value) < 8 or value[:2] != b"GP":
        return None
    flags = value[3]
    envelope = flags >> 1 & 0b111
    if flags & 0b100000 or envelope >= len(_ENVELOPE_BYTES):
        return None
    return value[8 + _ENVELOPE_BYTES[envelope] :]


def _outlines(shapes: list[BaseGeometry]) -> list[bytes | None]:
    """WKB of the geometries that are no upright rectangles."""
    boxes = shapely.box(*shapely.bounds(shapes).T)
    rectangular = shapely.area(shapes) >= _RECTANGLE * shapely.area(boxes)
    return [None if whole else shapely.to_wkb(shape) for shape, whole in zip(shapes, rectangular, strict=True)]


# ---- sizes ----


def _pixels(where: str, row: _Row, defaults: RasterSize, bounds: Bounds) -> tuple[int, int]:
    """Width and height of a feature's raster."""
    size = _completed(_own_size(where, row), defaults)
    if size.width is not None and size.height is not None:
        width, height = size.width, size.height
    elif size.resolution is not None:
        width, height = (max(round((bounds[2 + axis] - bounds[axis]) / size.resolution), 1) for axis in (0, 1))
    else:
        raise ValueError(f"A feature must have width and height, or a resolution; {where} has neither.")
    if not (1 <= width <= MAX_PIXELS and 1 <= height <= MAX_PIXELS):
        raise ValueError(f"A raster may have 1 to {MAX_PIXELS} pixels a side; {where} has {width} x {height}.")
    return width, height


def _own_size(where: str, row: _Row) -> RasterSize:
    width, height = (_whole(where, name, getattr(row, name)) for name in ("width", "height"))
    resolution = row.resolution
    if resolution is not None and not (isinstance(resolution, int | float) and 0 < resolution < math.inf):
        raise ValueError(f"resolution must be a number above 0; {where} has {resolution!r}.")
    return RasterSize(width, height, resolution)


def _whole(where: str, name: str, value: Any) -> int | None:
    """A number of pixels; whole numbers in a column of reals count, as some writers make them when one is missing."""
    if value is None:
        return None
    if not isinstance(value, int | float) or value % 1 != 0:
        raise ValueError(f"{name} must be an integer; {where} has {value!r}.")
    return int(value)


def _completed(own: RasterSize, defaults: RasterSize) -> RasterSize:
    """Own width and height, else the own resolution, else the own size filled up from the defaults."""
    if own.width is not None and own.height is not None:
        return own
    if own.resolution is not None:
        return RasterSize(resolution=own.resolution)
    width = defaults.width if own.width is None else own.width
    height = defaults.height if own.height is None else own.height
    return RasterSize(width, height, defaults.resolution)
