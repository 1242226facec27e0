"""Polygons in a real PostGIS, on loopback."""

# ruff: noqa: S608 - our own literals

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from pydantic import SecretStr

from tasks.errors import InvalidInput
from tasks.grid import Tile
from tasks.reference import Reference, burn, check_reference, prepare_reference, reference_source
from tasks.reference.polygons import polygons_of_tile
from tasks.reference.postgis import PostgisCredentials
from tasks.storage import Storage
from tests.postgres import PASSWORD, USER, Postgres
from tests.tasks.delivery_files import TILE

DATABASE = "land"
MIN_X, MIN_Y, MAX_X, MAX_Y = TILE.bounds
WEST = shapely.box(MIN_X, MIN_Y, MIN_X + 320, MAX_Y)
WHOLE = shapely.box(*TILE.bounds)
FAR = shapely.box(MIN_X + 50_000, MIN_Y, MIN_X + 51_000, MAX_Y)
STORAGE = Storage()


@pytest.fixture(scope="module")
def postgis(postgres: Postgres) -> Postgres:
    """The server, with a database that has PostGIS and a table of polygons in longitude and latitude."""
    available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'postgis'"
    if postgres.query(available) == ["0"] and shutil.which("apt-get"):
        install = [shutil.which("apt-get"), "install", "-y", "-q", "postgresql-postgis"]
        subprocess.run(install, check=False, capture_output=True)
    if postgres.query(available) == ["0"]:
        pytest.skip("PostGIS is not installed; install it with: apt-get install postgresql-postgis")
    postgres.create(DATABASE)
    postgres.query(
        "CREATE EXTENSION postgis;"
        "CREATE TABLE parcels (id int PRIMARY KEY, code text, label text, area numeric, geom geometry(Polygon, 4326));"
        "CREATE INDEX ON parcels USING gist (geom);"
        "CREATE TABLE points (id int, geom geometry(Point, 4326));"
        "CREATE SCHEMA other;",
        DATABASE,
    )
    for number, (code, polygon) in enumerate([("1100", WHOLE), ("2000", WEST), ("1100", FAR), (None, WEST)]):
        value = "NULL" if code is None else f"'{code}'"
        # from the last row to the first: the primary key decides, not the place in the table
        insert(postgres, f"{10 - number}, {value}, 'nm {number}', 2", f"'{polygon.wkt}'::geometry")
    insert(postgres, "20, '1100', 'nothing', 2", None)
    return postgres


def as_sql(shape: shapely.Polygon, srid: int = 32633) -> str:
    return f"ST_GeomFromText('{shape.wkt}', {srid})"


def insert(postgres: Postgres, values: str, geometry: str | None) -> None:
    placed = "NULL" if geometry is None else f"ST_Transform(ST_SetSRID({geometry}, 32633), 4326)"
    postgres.query(f"INSERT INTO parcels VALUES ({values}, {placed})", DATABASE)


@pytest.fixture
def url(postgis: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The database's address without the password, which is in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return f"postgresql://{USER}@127.0.0.1:{postgis.port}/{DATABASE}"


def reference_in(url: str, **changes: object) -> Reference:
    given = {"file": url, "layer": "parcels", "class_column": "code", "class_table": {"1100": 1, "2000": 2}}
    return Reference.model_validate(given | changes)


def test_polygons_of_a_table_become_labels_in_the_order_of_its_primary_key(url: str, tmp_path: Path) -> None:
    reference = reference_in(url, name_column="label")

    prepared = prepare_reference(reference, STORAGE, [TILE], tmp_path)

    found = polygons_of_tile(tmp_path, TILE)
    assert found is not None
    assert found.names.to_pylist() == ["nm 1", "nm 0"]  # ids 9 and 10
    assert (burn(found.wkb, found.ids, TILE).classes == 1).all()
    findings = prepared.findings
    assert (findings.polygons, findings.without_polygon, findings.without_class) == (2, 1, 1)


def test_a_table_may_have_longitudes_of_0_to_360(url: str, postgis: Postgres, tmp_path: Path) -> None:
    postgis.query(
        "CREATE TABLE islands (id int PRIMARY KEY, geom geometry(Polygon, 4326));"
        "INSERT INTO islands VALUES (3, ST_MakeEnvelope(177, -19, 184, -15, 4326)), (4, NULL)",
        DATABASE,
    )
    tile = Tile("t", 32701, (390_000, 8_120_000, 390_320, 8_120_320), 32, 32)  # at 178 degrees west

    reference = Reference(file=url, layer="islands", class_column="id")
    prepared = prepare_reference(reference, STORAGE, [tile], tmp_path)
    postgis.query("DROP TABLE islands", DATABASE)

    found = polygons_of_tile(tmp_path, tile)
    assert found is not None
    assert (burn(found.wkb, found.ids, tile).classes == 3).all()
    assert prepared.findings.polygons == 1


def test_a_reference_in_a_database_is_checked_at_once(url: str) -> None:
    source = check_reference(reference_in(url), STORAGE).sources[0]

    assert (source.name, source.size) == (f"127.0.0.1/{DATABASE}/public.parcels", 5)
    with pytest.raises(
        InvalidInput, match=r"column code: 1 rows have values .* not in the class table \('1100'\).*'2000'"
    ):
        check_reference(reference_in(url, class_table={"1100": 1}), STORAGE)
    with pytest.raises(InvalidInput, match="has no column kind; its columns are id, code, label, area"):
        check_reference(reference_in(url, class_column="kind"), STORAGE)
    with pytest.raises(InvalidInput, match=r"table roads is not in it.*public.parcels, public.points"):
        check_reference(reference_in(url, layer="roads"), STORAGE)
    with pytest.raises(InvalidInput, match="has no polygon but geometries of type Point"):
        check_reference(reference_in(url, layer="points", class_column="id"), STORAGE)


def test_numbers_with_decimals_are_classes_when_they_are_whole(url: str) -> None:
    assert check_reference(reference_in(url, class_column="area", class_table=None), STORAGE)


@pytest.mark.parametrize(
    "change",
    [
        ("code = '2000' WHERE id = 10", "code = '1100' WHERE id = 10"),
        ("code = '' WHERE id = 7", "code = NULL WHERE id = 7"),
        ("id = 30 WHERE id = 9", "id = 9 WHERE id = 30"),  # it covers another polygon then
    ],
)
def test_a_changed_row_makes_it_another_reference(url: str, postgis: Postgres, change: tuple[str, str]) -> None:
    before = reference_source(reference_in(url), STORAGE)
    assert reference_source(reference_in(url), STORAGE) == before

    postgis.query(f"UPDATE parcels SET {change[0]}", DATABASE)
    changed = reference_source(reference_in(url), STORAGE)
    postgis.query(f"UPDATE parcels SET {change[1]}", DATABASE)

    assert changed != before
    assert reference_source(reference_in(url), STORAGE) == before


def test_a_wrong_password_is_told_without_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "not-the-one")

    with pytest.raises(InvalidInput, match=r"password authentication failed.*PGPASSWORD in the environment") as caught:
        check_reference(reference_in(url), STORAGE)

    assert "not-the-one" not in str(caught.value)


@pytest.mark.usefixtures("prefect_server")
def test_a_block_has_user_and_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD")
    parts = urlsplit(url)
    without_user = f"postgresql://{parts.hostname}:{parts.port}{parts.path}"
    PostgisCredentials(user=USER, password=SecretStr(PASSWORD)).save("land-reader", overwrite=True)

    assert check_reference(reference_in(without_user, credentials_block="land-reader"), STORAGE).sources[0].size == 5
    with pytest.raises(InvalidInput, match=r"no 'PostGIS Credentials .* block named 'nobody'"):
        check_reference(reference_in(without_user, credentials_block="nobody"), STORAGE)


def test_a_database_that_is_not_there_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"cannot be read: .*Check the URL, that the server runs"):
        check_reference(reference_in("postgresql://127.0.0.1:9/land"), STORAGE)


def test_what_is_near_the_tiles_is_all_that_is_read(url: str, tmp_path: Path, postgis: Postgres) -> None:
    """The far polygon with a value in no class does not matter where values are not checked at once."""
    postgis.query("UPDATE parcels SET code = 'bog' WHERE id = 8", DATABASE)
    prepared = prepare_reference(reference_in(url), STORAGE, [TILE], tmp_path)
    postgis.query("UPDATE parcels SET code = '1100' WHERE id = 8", DATABASE)

    assert prepared.findings.unmapped == {}
    assert np.isin(polygons_of_tile(tmp_path, TILE).ids, [1, 2]).all()


# ---- tables of other forms ----


@pytest.fixture
def tables(postgis: Postgres) -> Iterator[Postgres]:
    """For tables in the schema "other", which are gone afterwards."""
    yield postgis
    postgis.query("DROP SCHEMA other CASCADE; CREATE SCHEMA other", DATABASE)


def found_in(url: str, folder: Path, layer: str, **changes: object) -> list[int]:
    """Ids of the polygons in the order of burning, after the check."""
    reference = reference_in(url, layer=layer, **({"class_table": None} | changes))
    check_reference(reference, STORAGE)
    prepare_reference(reference, STORAGE, [TILE], folder)
    found = polygons_of_tile(folder, TILE)
    assert found is not None
    return found.ids.tolist()


def test_of_several_columns_of_polygons_one_must_be_named(url: str, tables: Postgres, tmp_path: Path) -> None:
    tables.query(
        "CREATE TABLE other.two (id int PRIMARY KEY, code int, envelope geometry(Polygon, 32633), "
        "geom geometry(MultiPolygon, 32633), label_at geometry(MultiPoint, 32633));"
        f"INSERT INTO other.two VALUES (1, 2, {as_sql(WHOLE)}, ST_Multi({as_sql(WEST)}), NULL)",
        DATABASE,
    )

    for layer in ("two", "other.two"):
        with pytest.raises(
            InvalidInput, match=r"has several columns of polygons.*: other.two.envelope, other.two.geom"
        ):
            check_reference(reference_in(url, layer=layer), STORAGE)
    assert found_in(url, tmp_path, "other.two.geom") == [2]
    area = shapely.area(shapely.from_wkb(polygons_of_tile(tmp_path, TILE).wkb[0].as_py()))
    assert area == pytest.approx(WEST.area)
    with pytest.raises(InvalidInput, match="has no polygon but geometries of type Multipoint"):
        check_reference(reference_in(url, layer="other.two.label_at"), STORAGE)


def test_points_and_lines_beside_the_polygons_do_not_count(url: str, tables: Postgres, tmp_path: Path) -> None:
    tables.query(
        "CREATE TABLE other.one (id int PRIMARY KEY, code int, centre geometry(Point, 32633), "
        "edge geometry(MultiLineString, 32633), geom geometry(Polygon, 32633));"
        f"INSERT INTO other.one VALUES (1, 2, NULL, NULL, {as_sql(WHOLE)})",
        DATABASE,
    )

    assert found_in(url, tmp_path, "one") == [2]


@pytest.mark.parametrize("kind", ["TABLE", "VIEW", "MATERIALIZED VIEW"])
def test_without_a_key_the_order_is_that_of_class_name_and_geometry(
    url: str, tables: Postgres, tmp_path: Path, kind: str
) -> None:
    tables.query(
        f"CREATE {kind} other.v AS SELECT code, label, ST_GeomFromText(wkt, 32633)::geometry(Polygon, 32633) AS geom "
        f"FROM (VALUES (5, 'b', '{WHOLE.wkt}'), (2, 'a', '{WEST.wkt}'), (3, '', '{WEST.wkt}')) rows (code, label, wkt)",
        DATABASE,
    )
    before = reference_source(reference_in(url, layer="v", class_table=None), STORAGE)

    assert found_in(url, tmp_path, "v", name_column="label") == [2, 3, 5]
    if kind == "TABLE":
        tables.query("UPDATE other.v SET label = label WHERE code = 2", DATABASE)  # it lies elsewhere now
        assert found_in(url, tmp_path / "again", "v", name_column="label") == [2, 3, 5]
        assert reference_source(reference_in(url, layer="v", class_table=None), STORAGE) == before


def test_a_crs_without_an_authority_is_read_from_its_description(url: str, tables: Postgres, tmp_path: Path) -> None:
    for srid, authority in ((990001, "NULL"), (990002, "'of-our-own'")):
        tables.query(
            "INSERT INTO spatial_ref_sys (srid, auth_name, auth_srid, srtext, proj4text) "
            f"SELECT {srid}, {authority}, 7, srtext, proj4text FROM spatial_ref_sys WHERE srid = 32633;"
            f"CREATE TABLE other.t{srid} (id int PRIMARY KEY, code int, geom geometry(Polygon, {srid}));"
            f"INSERT INTO other.t{srid} VALUES (1, 2, {as_sql(WHOLE, srid)})",
            DATABASE,
        )

        assert found_in(url, tmp_path / str(srid), f"t{srid}") == [2]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_booleans_are_what_they_are_in_files(url: str, tables: Postgres, tmp_path: Path, suffix: str) -> None:
    tables.query(
        "CREATE TABLE other.flags (id int PRIMARY KEY, wet boolean, geom geometry(Polygon, 32633));"
        f"INSERT INTO other.flags VALUES (1, true, {as_sql(WHOLE)}), (2, NULL, {as_sql(WHOLE)}), "
        f"(3, false, {as_sql(WEST)})",
        DATABASE,
    )
    frame = gpd.GeoDataFrame(
        {"wet": pd.array([True, None, False], "boolean")}, geometry=[WHOLE, WHOLE, WEST], crs=32633
    )
    file = tmp_path / f"flags.{suffix}"
    frame.to_parquet(file) if suffix == "parquet" else pyogrio.write_dataframe(frame, file)

    for number, table in enumerate([{True: 2, False: 1}, {"true": 2, "false": 1}]):
        names = []
        for source in ({}, {"file": str(file), "layer": None}):
            folder = tmp_path / f"{number}{len(source)}"
            changes = {"layer": "flags", "class_column": "wet", "name_column": "wet", "class_table": table} | source
            assert found_in(url, folder, **changes) == [2, 1]
            names.append(polygons_of_tile(folder, TILE).names.to_pylist())
        assert names == [["true", "false"]] * 2


def test_a_domain_over_a_domain_is_what_they_are_over(url: str, tables: Postgres, tmp_path: Path) -> None:
    tables.query(
        "CREATE DOMAIN other.amount AS numeric(5, 2); CREATE DOMAIN other.cover AS other.amount CHECK (VALUE > 0);"
        "CREATE TABLE other.d (id int PRIMARY KEY, code other.cover, geom geometry(Polygon, 32633));"
        f"INSERT INTO other.d VALUES (1, 2, {as_sql(WHOLE)})",
        DATABASE,
    )

    assert found_in(url, tmp_path, "d", name_column="code") == [2]
    assert polygons_of_tile(tmp_path, TILE).names.to_pylist() == ["2"]


def test_geography_is_told_and_a_view_of_it_is_read(url: str, tables: Postgres, tmp_path: Path) -> None:
    tables.query(
        "CREATE TABLE other.g (id int PRIMARY KEY, code int, geog geography(Polygon, 4326));"
        f"INSERT INTO other.g VALUES (1, 2, ST_Transform({as_sql(WHOLE)}, 4326)::geography)",
        DATABASE,
    )

    for layer in ("g", "other.g", "other.g.geog"):
        with pytest.raises(InvalidInput, match=r"column other\.g\.geog is of type geography, .*CREATE VIEW") as caught:
            check_reference(reference_in(url, layer=layer), STORAGE)
    tables.query("CREATE VIEW" + str(caught.value).partition("CREATE VIEW")[2], DATABASE)
    assert found_in(url, tmp_path, "g_geometry") == [2]


def test_a_column_without_an_srid_is_told_what_to_do_about(url: str, tables: Postgres, tmp_path: Path) -> None:
    tables.query(
        "CREATE TABLE other.t (id int PRIMARY KEY, code int, geom geometry);"
        f"INSERT INTO other.t VALUES (1, 2, {as_sql(WHOLE, 0)});"
        "CREATE VIEW other.v AS SELECT id, code, ST_Buffer(geom, 0) AS geom FROM other.t",
        DATABASE,
    )
    message = r"column other\.{}\.geom has no coordinate reference system \(its SRID is 0\); .* ALTER TABLE other\.{}"
    for layer in ("v", "t"):
        with pytest.raises(InvalidInput, match=message.format(layer, layer)) as caught:
            check_reference(reference_in(url, layer=layer), STORAGE)

    statement = str(caught.value)[str(caught.value).index("ALTER") :].partition(";")[0]
    tables.query(f"DROP VIEW other.v; {statement}", DATABASE)
    assert found_in(url, tmp_path, "t") == [2]


def test_a_view_that_fails_is_told_as_such(url: str, tables: Postgres) -> None:
    tables.query("CREATE VIEW other.v AS SELECT 1 / (id - id) AS code, geom FROM parcels", DATABASE)

    with pytest.raises(InvalidInput, match=r"division by zero\. Check the table, and the user's rights\."):
        check_reference(reference_in(url, layer="v"), STORAGE)


def test_a_user_who_may_read_nothing_is_told(url: str, tables: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.query("CREATE ROLE stranger LOGIN PASSWORD 'x'", DATABASE)
    try:
        monkeypatch.setenv("PGPASSWORD", "x")
        with pytest.raises(InvalidInput, match="one of its tables as layer: none that its user may read"):
            check_reference(reference_in(url.replace(USER, "stranger")), STORAGE)
    finally:
        tables.query("DROP ROLE stranger", DATABASE)
