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

from tasks.errors import InvalidInput
from tasks.reference.address import host_and_database
from tasks.reference.sources import BATCH_ROWS, Bounds, Rows, check_types, known_crs

CONNECT_SECONDS = 10


class PostgisCredentials(Block):
    """A user of a PostGIS database, kept by Prefect and named, never passed, as a parameter."""

    _block_type_name = "PostGIS Credentials (eopatch-flow)"
    _block_type_slug = "eopatch-flow-postgis-credentials"

    user: str = Field(title="User")
    password: SecretStr = Field(title="Password")


class PostgisSource:
    """A table with a geometry column. Use it as a context, which connects.

    Args:
        url: of the database, without a password.
        layer: table, or schema.table; None where there is only one with a geometry.
        title: how messages call it.
        credentials_block: name of a block with user and password; None for those of libpq (PGPASSWORD, ~/.pgpass).

    Raises:
        InvalidInput: the database does not answer, refuses, or has no such table.
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
        columns = filter(None, (*self._keys, class_column, name_column, self._geometry))
        row = sql.SQL("ROW({})::text").format(sql.SQL(", ").join(map(sql.Identifier, columns)))
        hashed = sql.SQL("SELECT count(*), coalesce(sum(hashtextextended({}, 0)::numeric), 0)").format(row)
        count, checksum = self._one(hashed + self._from())
        return int(count), str(checksum)

    def values(self, column: str) -> Iterator[pa.Array]:
        """See :class:`tasks.reference.sources.Source`."""
        for rows in self._batches(sql.SQL("SELECT {}").format(self._plain(column)) + self._from()):
            yield pa.array([row[0] for row in rows])

    def rows(self, class_column: str, name_column: str | None, bounds: Bounds | None) -> Iterator[Rows]:
        """See :class:`tasks.reference.sources.Source`; rows come in the order of the primary key."""
        geometry = sql.Identifier(self._geometry)
        fields = [self._plain(class_column), *([self._plain(name_column)] if name_column else [])]
        fields.append(sql.SQL("ST_AsBinary(ST_CurveToLine(ST_Force2D({})))").format(geometry))
        query = sql.SQL("SELECT {}").format(sql.SQL(", ").join(fields)) + self._from()
        if bounds is not None:
            box = sql.SQL(", ").join(map(sql.Literal, (*bounds, self._srid)))
            query += sql.SQL(" WHERE {} && ST_MakeEnvelope({})").format(geometry, box)
        before = 0
        for rows in self._batches(query + sql.SQL(" ORDER BY ") + self._order):
            columns = list(zip(*rows, strict=True))
            names = pa.array([None if name is None else str(name) for name in columns[1]]) if name_column else None
            places = np.arange(before, before + len(rows))
            yield Rows(places, pa.array(columns[0]), names, pa.array(columns[-1], pa.binary()))
            before += len(rows)

    def without_geometry(self) -> int | None:
        """See :class:`tasks.reference.sources.Source`."""
        nothing = sql.SQL(" WHERE {0} IS NULL OR ST_IsEmpty({0})").format(sql.Identifier(self._geometry))
        return int(self._one(sql.SQL("SELECT count(*)") + self._from() + nothing)[0])

    def _find_table(self) -> None:
        """Look up schema, table, geometry column, CRS, columns and order."""
        found = self._all(
            "SELECT f_table_schema, f_table_name, f_geometry_column, srid, type FROM geometry_columns ORDER BY 1, 2, 3"
        )
        matching = [row for row in found if self._layer in {None, row[1], f"{row[0]}.{row[1]}"}]
        if len({row[:2] for row in matching}) != 1:
            asked = "no table was named"
            if self._layer is not None:
                asked = f"table {self._layer} is not in it, or in several schemas"
            tables = ", ".join(dict.fromkeys(f"{row[0]}.{row[1]}" for row in found)) or "none with geometries"
            raise InvalidInput(f"{self.title}: {asked}; name one of its tables as layer: {tables}.")
        self._schema, self._table, self._geometry, self._srid, kind = matching[0]
        authority = self._all("SELECT auth_name, auth_srid FROM spatial_ref_sys WHERE srid = %s", self._srid)
        self.crs: CRS = known_crs(f"{authority[0][0]}:{authority[0][1]}" if authority else None, self.title)
        check_types([str(kind).title().replace("Linestring", "LineString")], self.title)
        described = self._all(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            self._schema,
            self._table,
        )
        self._types = {name: kind for name, kind in described if name != self._geometry}
        keys = self._all(
            "SELECT a.attname FROM pg_index i "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE i.indisprimary AND i.indrelid = %s::regclass ORDER BY array_position(i.indkey::int2[], a.attnum)",
            sql.Identifier(self._schema, self._table).as_string(self._connection),
        )
        self._keys = [key for (key,) in keys]
        self._order = sql.SQL(", ").join(map(sql.Identifier, self._keys)) if keys else sql.SQL("ctid")

    def _plain(self, column: str) -> sql.Composable:
        """A column as numbers or text that Arrow knows."""
        cast = {"numeric": "::float8", "integer": "", "bigint": "", "smallint": "", "double precision": "", "real": ""}
        return sql.Identifier(column) + sql.SQL(cast.get(self._types[column], "::text"))

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
            raise InvalidInput(
                f"{self.title} cannot be read: {' '.join(str(error).split())}. Check the URL, that the server runs, "
                "and the password: of reference.credentials_block, else PGPASSWORD in the environment."
            ) from error


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
