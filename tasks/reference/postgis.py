"""Reference polygons in a PostGIS table, given by URL. The password comes from a block, PGPASSWORD or ~/.pgpass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import psycopg
import pyarrow as pa
from prefect.blocks.core import Block
from psycopg import sql
from pydantic import Field, SecretStr
from pyproj import CRS
from pyproj.database import get_authorities

from tasks.errors import InvalidInput
from tasks.reference.address import host_and_database
from tasks.reference.sources import BATCH_ROWS, Bounds, Rows, check_types, has_areas, known_crs

CONNECT_SECONDS = 10


class PostgisCredentials(Block):
    """A user of a PostGIS database, kept by Prefect and named, never passed, as a parameter."""

    _block_type_name = "PostGIS Credentials (eopatch-flow)"
    _block_type_slug = "eopatch-flow-postgis-credentials"

    user: str = Field(title="User")
    password: SecretStr = Field(title="Password")


class PostgisSource:
    """A table or view with a column of polygons. Use it as a context, which connects.

    Rows have the order of the primary key; without one that of their text: class, name and geometry, so that what is
    the later row depends on nothing else.

    Args:
        url: of the database, without a password.
        layer: table, schema.table or schema.table.column; None where there is only one with polygons.
        title: how messages call it.
        credentials_block: name of a block with user and password; None for those of libpq (PGPASSWORD, ~/.pgpass).

    Raises:
        InvalidInput: the database does not answer, refuses, or has no such table, or several that it may be.
    """

    def __init__(self, url: str, layer: str | None, title: str, credentials_block: str | None) -> None:
        self.title = title
        self._url = url
        self._layer = layer
        self._login = _login(credentials_block)

    def __enter__(self) -> Self:
        with self._told():
            self._connection = psycopg.connect(self._url, connect_timeout=CONNECT_SECONDS, **self._login)
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._connection.read_only = True
            self._find_table()
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    @property
    def columns(self) -> Sequence[str]:
        """All but the geometry."""
        return list(self._types)

    @property
    def place(self) -> str:
        """Host, database and table."""
        return f"{host_and_database(self._url)}/{self._schema}.{self._table}"

    def version(self, class_column: str, name_column: str | None) -> tuple[int, str]:
        """Number of rows, and a checksum over keys, classes, names and geometries.

        It does not depend on where rows lie. Keys are in it since they say which of two polygons is the later one.
        """
        row = self._as_text(*self._keys, class_column, name_column, self._geometry)
        hashed = sql.SQL("SELECT count(*), coalesce(sum(hashtextextended({}, 0)::numeric), 0)").format(row)
        count, checksum = self._one(hashed + self._from())
        return int(count), str(checksum)

    def values(self, column: str) -> Iterator[pa.Array]:
        """See :class:`tasks.reference.sources.Source`."""
        for rows in self._batches(sql.SQL("SELECT {}").format(self._plain(column)) + self._from()):
            yield pa.array([row[0] for row in rows])

    def rows(self, class_column: str, name_column: str | None, bounds: Bounds | None) -> Iterator[Rows]:
        """See :class:`tasks.reference.sources.Source`."""
        geometry = sql.Identifier(self._geometry)
        fields = [self._plain(class_column), *([self._plain(name_column)] if name_column else [])]
        fields.append(sql.SQL("ST_AsBinary(ST_CurveToLine(ST_Force2D({})))").format(geometry))
        query = sql.SQL("SELECT {}").format(sql.SQL(", ").join(fields)) + self._from()
        if bounds is not None:
            box = sql.SQL(", ").join(map(sql.Literal, (*bounds, self._srid)))
            query += sql.SQL(" WHERE {} && ST_MakeEnvelope({})").format(geometry, box)
        before = 0
        order: list[sql.Composable] = [sql.Identifier(key) for key in self._keys]
        if not order:
            order = [self._as_text(class_column, name_column, self._geometry) + sql.SQL(' COLLATE "C"')]
        for rows in self._batches(query + sql.SQL(" ORDER BY ") + sql.SQL(", ").join(order)):
            columns = list(zip(*rows, strict=True))
            names = pa.array(columns[1]) if name_column else None
            places = np.arange(before, before + len(rows))
            yield Rows(places, pa.array(columns[0]), names, pa.array(columns[-1], pa.binary()))
            before += len(rows)

    def extent(self) -> Bounds | None:
        """See :class:`tasks.reference.sources.Source`."""
        sides = sql.SQL(", ").join(map(sql.SQL, ("ST_XMin(b)", "ST_YMin(b)", "ST_XMax(b)", "ST_YMax(b)")))
        extent = sql.SQL("SELECT {} FROM (SELECT ST_Extent({}) AS b").format(sides, sql.Identifier(self._geometry))
        west, south, east, north = self._one(extent + self._from() + sql.SQL(") AS bounds"))
        return None if west is None else (west, south, east, north)

    def without_geometry(self) -> int | None:
        """See :class:`tasks.reference.sources.Source`."""
        nothing = sql.SQL(" WHERE {0} IS NULL OR ST_IsEmpty({0})").format(sql.Identifier(self._geometry))
        return int(self._one(sql.SQL("SELECT count(*)") + self._from() + nothing)[0])

    def _find_table(self) -> None:
        """Look up schema, table, geometry column, CRS, columns and keys."""
        self._schema, self._table, self._geometry, self._srid, kind = self._only()
        self.crs: CRS = self._find_crs(kind)
        table = sql.Identifier(self._schema, self._table).as_string(self._connection)
        described = self._all(
            "WITH RECURSIVE types AS ("
            "SELECT attnum, attname, atttypid AS type FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
            "UNION ALL SELECT attnum, attname, typbasetype FROM types JOIN pg_type ON oid = type WHERE typbasetype <> 0"
            ") SELECT attname, format_type(type, NULL) FROM types JOIN pg_type ON oid = type "
            "WHERE typbasetype = 0 ORDER BY attnum",  # of a domain, whatever it is over
            table,
        )
        self._types = {name: kind for name, kind in described if name != self._geometry}
        keys = self._all(
            "SELECT a.attname FROM pg_index i "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE i.indisprimary AND i.indrelid = %s::regclass ORDER BY array_position(i.indkey::int2[], a.attnum)",
            table,
        )
        self._keys = [key for (key,) in keys]

    def _only(self) -> tuple[str, str, str, int, str]:
        """Schema, table, column, SRID and type of what was asked for; points and lines beside polygons do not count."""
        found = self._all(
            "SELECT f_table_schema, f_table_name, f_geometry_column, srid, type FROM geometry_columns ORDER BY 1, 2, 3"
        )
        asked_for = list(filter(self._is_asked_for, found))
        matching = [row for row in asked_for if has_areas(row[4])] or asked_for
        tables = {row[:2] for row in matching}
        if not tables:
            self._refuse_geography()
        if len(tables) != 1:
            asked = "no table was named"
            if self._layer is not None:
                asked = f"table {self._layer} is not in it, or in several schemas"
            names = ", ".join(dict.fromkeys(f"{row[0]}.{row[1]}" for row in found)) or "none that its user may read"
            raise InvalidInput(f"{self.title}: {asked}; name one of its tables as layer: {names}.")
        check_types([str(row[4]).capitalize() for row in matching], self.title)
        if len(matching) != 1:
            columns = ", ".join(".".join(row[:3]) for row in matching)
            raise InvalidInput(
                f"{self.title}: table {matching[0][1]} has several columns of polygons; name one as layer: {columns}."
            )
        return matching[0][:5]

    def _is_asked_for(self, row: tuple[Any, ...]) -> bool:
        return self._layer in {None, row[1], ".".join(row[:2]), ".".join(row[:3])}

    def _refuse_geography(self) -> None:
        found = self._all("SELECT f_table_schema, f_table_name, f_geography_column, srid, type FROM geography_columns")
        for schema, name, column, srid, kind in filter(self._is_asked_for, found):
            table = f"{schema}.{name}"
            rows = f"SELECT *, {column}::geometry({kind}, {srid}) AS geom FROM {table}"  # noqa: S608 - only told
            raise InvalidInput(
                f"{self.title}: column {table}.{column} is of type geography, which is not read; make a view of it and "
                f"name that as layer, for example with: CREATE VIEW {table}_geometry AS {rows}"
            )

    def _find_crs(self, kind: str) -> CRS:
        """CRS of the geometry column: by its authority where PROJ has that, else as it is described."""
        found = self._all(
            "SELECT auth_name, auth_srid, srtext, proj4text FROM spatial_ref_sys WHERE srid = %s", self._srid
        )
        authority, number, wkt, proj = found[0] if found else (None, None, None, None)
        described = f"{authority}:{number}" if authority in get_authorities() else wkt or proj
        if not described:
            table, column, typed = f"{self._schema}.{self._table}", self._geometry, f"geometry({kind}, 32633)"
            raise InvalidInput(
                f"{self.title}: column {table}.{column} has no coordinate reference system (its SRID is {self._srid}); "
                f"assign the one that its coordinates are in, for example with: ALTER TABLE {table} ALTER COLUMN "
                f"{column} TYPE {typed} USING ST_SetSRID({column}, 32633); in a view, with: "
                f"ST_SetSRID({column}, 32633)::{typed}"
            )
        return known_crs(described, self.title)

    @staticmethod
    def _as_text(*columns: str | None) -> sql.Composed:
        """A row's columns as one text, in which NULL differs from an empty text."""
        return sql.SQL("ROW({})::text").format(sql.SQL(", ").join(map(sql.Identifier, filter(None, columns))))

    def _plain(self, column: str) -> sql.Composable:
        """A column as numbers, booleans or text that Arrow knows."""
        known = {"integer", "bigint", "smallint", "double precision", "real", "boolean"}
        cast = "::float8" if self._types[column] == "numeric" else "::text"
        return sql.Identifier(column) + sql.SQL("" if self._types[column] in known else cast)

    def _from(self) -> sql.Composed:
        return sql.SQL(" FROM {}").format(sql.Identifier(self._schema, self._table))

    def _batches(self, query: sql.Composed) -> Iterator[list[tuple[Any, ...]]]:
        with self._told(), self._connection.cursor("rows", binary=True) as cursor:
            cursor.itersize = BATCH_ROWS
            cursor.execute(query)
            while rows := cursor.fetchmany(BATCH_ROWS):
                yield rows

    def _all(self, query: Any, *arguments: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, arguments or None).fetchall()

    def _one(self, query: sql.Composed) -> tuple[Any, ...]:
        with self._told():
            return self._all(query)[0]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what the database says; libpq's messages have no passwords."""
        try:
            yield
        except psycopg.errors.UndefinedTable as error:
            raise InvalidInput(f"{self.title} has no PostGIS; run CREATE EXTENSION postgis there.") from error
        except psycopg.Error as error:
            hint = "Check the table, and the user's rights."
            if isinstance(error, psycopg.OperationalError):
                hint = (
                    "Check the URL, that the server runs, and the password: of reference.credentials_block, else "
                    "PGPASSWORD in the environment."
                )
            raise InvalidInput(f"{self.title} cannot be read: {' '.join(str(error).split())}. {hint}") from error


def _login(credentials_block: str | None) -> dict[str, Any]:
    if not credentials_block:
        return {}
    try:
        block = PostgisCredentials.load(credentials_block)
    except ValueError as error:
        raise InvalidInput(
            f"There is no 'PostGIS Credentials (eopatch-flow)' block named '{credentials_block}'; create it in the "
            "Prefect UI."
        ) from error
    assert isinstance(block, PostgisCredentials)  # noqa: S101 - load is also typed for coroutines
    return {"user": block.user, "password": block.password.get_secret_value()}
