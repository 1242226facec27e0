"""GeoPackages as GDAL writes them, some then broken by hand: each rule of the service has a test of its name."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

from tasks.grid import RasterSize, Tile, tiles_of_geopackage

BOX = box(0, 0, 1010, 1000)
TRIANGLE = Polygon([(0, 0), (1000, 0), (0, 1000)])
BOW_TIE = Polygon([(0, 0), (100, 100), (100, 0), (0, 300)])


def frame(
    crs: int | str | None = 32633, geometry: Sequence[BaseGeometry | None] | None = None, **columns: Sequence[Any]
) -> gpd.GeoDataFrame:
    """A table of features, boxes of 1010 x 1000 unless said."""
    count = len(next(iter(columns.values())))
    outlines = geometry or [affinity.translate(BOX, 10 * k) for k in range(count)]
    return gpd.GeoDataFrame(columns, geometry=outlines, crs=crs)


def written(folder: Path, *tables: gpd.GeoDataFrame, name: str = "tiles.gpkg", **options: Any) -> Path:
    """A GeoPackage with the tables t, t2, t3."""
    path = folder / name
    for number, table in enumerate(tables, start=1):
        layer = "t" if number == 1 else f"t{number}"
        pyogrio.write_dataframe(table, path, layer=layer, append=path.exists(), **options)
    return path


def changed(path: Path, statement: str, *values: Any) -> Path:
    """The GeoPackage after a statement that GDAL would not run."""
    with sqlite3.connect(path) as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:  # they call functions that only GDAL has
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(statement, values)
    database.close()
    return path


def sizes(path: Path, defaults: RasterSize | None = None) -> dict[str, tuple[int, int]]:
    tiles = tiles_of_geopackage(path) if defaults is None else tiles_of_geopackage(path, defaults)
    return {tile.name: (tile.width, tile.height) for tile in tiles}


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiles_of_geopackage(path)


# ---- tables ----


def test_several_tables_with_crs_of_their_own_are_read(tmp_path: Path) -> None:
    first = frame(id=[1, 2], identifier=["b", "a"], resolution=[10, 20])
    second = frame(crs=32634, id=[1], identifier=["c"], width=[101], height=[100], resolution=[5.0])
    third = frame(crs=4326, geometry=[box(14, 45, 14.01, 45.02)], identifier=["d"], resolution=[0.0001])
    assert tiles_of_geopackage(written(tmp_path, first, second, third)) == [
        Tile("a", 32633, (10.0, 0.0, 1020.0, 1000.0), 50, 50),
        Tile("b", 32633, (0.0, 0.0, 1010.0, 1000.0), 101, 100),
        Tile("c", 32634, (0.0, 0.0, 1010.0, 1000.0), 101, 100),
        Tile("d", 4326, (14.0, 45.0, 14.01, 45.02), 100, 200),
    ]


def test_a_table_as_eo_grow_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.gpkg"
    table = frame(id=[7, 8], identifier=["eopatch-7", "eopatch-8"], resolution=np.array([10, 10], np.int64))
    pyogrio.write_dataframe(table, path, layer="Grid EPSG:32633")
    assert [(tile.id, tile.name) for tile in tiles_of_geopackage(path)] == [
        (7, "eopatch-7"),
        (8, "eopatch-8"),
    ]


def test_the_geometry_column_may_have_any_name_and_a_third_dimension(tmp_path: Path) -> None:
    table = frame(identifier=["a"], resolution=[10], geometry=[shapely.force_3d(TRIANGLE, 5.0)])
    (tile,) = tiles_of_geopackage(written(tmp_path, table, GEOMETRY_NAME='the "shape"'))
    assert (tile.bounds, tile.shape.equals(TRIANGLE), tile.shape.has_z) == ((0, 0, 1000, 1000), True, False)


def test_tables_without_geometries_are_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10]))
    pyogrio.write_dataframe(gpd.pd.DataFrame({"identifier": ["a"]}), path, layer="notes", append=True)
    assert [name for name, _ in pyogrio.list_layers(path)] == ["t", "notes"]
    assert sizes(path) == {"a": (101, 100)}


def test_the_crs_of_every_table_must_be_of_epsg(tmp_path: Path) -> None:
    table = frame(crs="ESRI:54009", identifier=["a"], resolution=[10])
    check_refused(written(tmp_path, table), r"CRS of every table must be of EPSG; 't' has ESRI 54009\.")


@pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")
def test_every_table_must_have_a_crs(tmp_path: Path) -> None:
    check_refused(
        written(tmp_path, frame(crs=None, identifier=["a"], resolution=[10])), "must be of EPSG; 't' has GDAL 99999"
    )


def test_the_geometry_column_must_be_of_type_polygon_or_multipolygon(tmp_path: Path) -> None:
    table = frame(identifier=["a"], resolution=[10], geometry=[Point(1, 2)])
    check_refused(written(tmp_path, table), r"must be of type POLYGON or MULTIPOLYGON; 't' has POINT\.")


def test_a_feature_table_must_be_listed_with_its_geometry_column(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10]))
    check_refused(changed(path, "DELETE FROM gpkg_geometry_columns"), "must be of type POLYGON .* 't' has None")


def test_every_table_must_have_a_column_identifier(tmp_path: Path) -> None:
    check_refused(written(tmp_path, frame(name=["a"], resolution=[10])), r"a column 'identifier'; 't' has \['fid'")


# ---- number of features ----


def test_a_geopackage_must_not_be_empty(tmp_path: Path) -> None:
    path = changed(written(tmp_path, frame(identifier=["a"], resolution=[10])), "DELETE FROM t")
    check_refused(path, r"must have 1 to 700,000 features; tiles\.gpkg has 0\.")


def test_a_geopackage_must_not_have_more_than_700_000_features_over_all_tables(tmp_path: Path) -> None:
    path = written(tmp_path, *(frame(identifier=[name], resolution=[10]) for name in "ab"))
    numbers = "WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < 700000)"
    changed(path, f"INSERT INTO t (fid) {numbers} SELECT n FROM numbers")  # noqa: S608 (a literal)
    check_refused(path, r"must have 1 to 700,000 features; tiles\.gpkg has 700,001\.")


# ---- id and identifier ----


def test_the_id_is_the_features_own(tmp_path: Path) -> None:
    path = written(tmp_path, frame(id=[30, 10], identifier=["a", "b"], resolution=[10, 10]))
    assert {tile.name: tile.id for tile in tiles_of_geopackage(path)} == {"a": 30, "b": 10}


def test_a_missing_id_is_replaced_by_the_primary_key(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a", "b"], resolution=[10, 10]))
    changed(path, "UPDATE t SET fid = 70 + fid")
    assert [tile.id for tile in tiles_of_geopackage(path)] == [71, 72]


def test_the_id_may_be_the_primary_key(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10]), FID="id")
    assert [tile.id for tile in tiles_of_geopackage(path)] == [1]


def test_an_id_must_be_unique_in_its_table(tmp_path: Path) -> None:
    table = frame(id=[3, 3], identifier=["a", "b"], resolution=[10, 10])
    check_refused(written(tmp_path, table), r"id must be unique in table 't'; 1 are repeated, the first is 3\.")


def test_an_id_may_repeat_in_another_table(tmp_path: Path) -> None:
    tables = [frame(id=[1], identifier=[name], resolution=[10]) for name in "ab"]
    assert [tile.id for tile in tiles_of_geopackage(written(tmp_path, *tables))] == [1, 1]


@pytest.mark.parametrize(("ids", "told"), [(["x"], "'x'"), ([1.5], "1.5"), ([None], "None")])
def test_an_id_must_be_an_integer(tmp_path: Path, ids: list[Any], told: str) -> None:
    path = written(tmp_path, frame(id=ids, identifier=["a"], resolution=[10]))
    check_refused(path, rf"id must be an integer; 't' feature 1 \('a'\) has {told}\.")


@pytest.mark.parametrize("identifiers", [["a", None], ["a", ""]])
def test_an_identifier_must_not_be_missing(tmp_path: Path, identifiers: list[Any]) -> None:
    path = written(tmp_path, frame(identifier=identifiers, resolution=[10, 10]))
    check_refused(path, "identifier must be a text that is not empty; 't' feature 2 has (None|'')")


def test_an_identifier_must_be_a_text(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=[1], resolution=[10]))
    check_refused(path, "identifier must be a text .* has 1")


@pytest.mark.parametrize("identifier", ["a*", "what?", "field [1]", "a/b", "a\\b", "a\nb"])
def test_an_identifier_must_be_the_name_of_a_folder_and_no_pattern_of_names(tmp_path: Path, identifier: str) -> None:
    path = written(tmp_path, frame(identifier=["field 1", identifier], resolution=[10, 10]))
    check_refused(path, r"identifier becomes the name of a folder, which must not hold '.*'; 't' feature 2 \('")


@pytest.mark.parametrize("identifier", [".", "..", "x" * 201, "ž" * 101])
def test_an_identifier_must_be_short_and_no_other_folder(tmp_path: Path, identifier: str) -> None:
    path = written(tmp_path, frame(identifier=["ž" * 100, identifier], resolution=[10, 10]))
    check_refused(path, r"at most 200 bytes, and not '\.' or '\.\.'; 't' feature 2 ")


def test_an_identifier_must_be_unique_over_all_tables(tmp_path: Path) -> None:
    tables = [frame(crs=32633 + number, identifier=["a", f"b{number}"], resolution=[10, 10]) for number in range(2)]
    check_refused(written(tmp_path, *tables), r"identifier must be unique over all tables; 1 are .* 'a'\.")


# ---- geometries ----


@pytest.mark.parametrize(
    ("geometry", "told"),
    [
        (None, "none"),
        (Polygon(), "a Polygon of area 0"),
        (Polygon([(0, 0), (1, 1), (0, 0)]), "a Polygon of area 0"),
        (BOW_TIE, r"one with the fault Self-intersection\["),
    ],
)
def test_a_geometry_must_be_a_valid_polygon_with_a_surface(
    tmp_path: Path, geometry: BaseGeometry | None, told: str
) -> None:
    path = written(tmp_path, frame(identifier=["a", "b"], resolution=[10, 10], geometry=[BOX, geometry]))
    check_refused(path, rf"valid polygon or multipolygon with a surface; 't' feature 2 \('b'\) has {told}")


def test_a_geometry_of_another_kind_than_its_columns_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a", "b"], resolution=[10, 10], geometry=[BOX, Point(3, 4)]))
    check_refused(
        changed(path, "UPDATE gpkg_geometry_columns SET geometry_type_name = 'POLYGON'"),
        r"\('b'\) has a Point of area 0",
    )


@pytest.mark.parametrize("blob", [b"\0", b"GP\0\1\0\0\0\0", b"GP\0\xff\0\0\0\0\1\1\1\1", "text", 5])
def test_a_geometry_that_is_no_geopackage_binary_is_refused(tmp_path: Path, blob: Any) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10]))
    check_refused(changed(path, "UPDATE t SET geom = ?", blob), r"\('a'\) has none, or one that cannot be read")


@pytest.mark.parametrize("turned", [BOX, shapely.reverse(BOX), shapely.segmentize(BOX, 100), MultiPolygon([BOX])])
def test_an_upright_rectangle_needs_no_outline(tmp_path: Path, turned: BaseGeometry) -> None:
    (tile,) = tiles_of_geopackage(written(tmp_path, frame(identifier=["a"], resolution=[10], geometry=[turned])))
    assert tile == Tile("a", 32633, BOX.bounds, 101, 100)
    assert tile.shape.equals(BOX)


@pytest.mark.parametrize(
    "shape", [TRIANGLE, BOX - box(300, 300, 310, 310), MultiPolygon([box(0, 0, 9, 9), TRIANGLE.buffer(-20)])]
)
def test_any_other_geometry_is_kept_as_the_tiles_outline(tmp_path: Path, shape: BaseGeometry) -> None:
    (tile,) = tiles_of_geopackage(written(tmp_path, frame(identifier=["a"], resolution=[10], geometry=[shape])))
    assert tile.bounds == shape.bounds
    assert tile.shape.equals(shape)


# ---- sizes ----


def test_width_and_height_win_over_the_resolution(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], width=[5], height=[4], resolution=[10]))
    assert sizes(path) == {"a": (5, 4)}


def test_a_feature_that_lacks_width_or_height_takes_its_resolution(tmp_path: Path) -> None:
    columns = {"width": [5.0, None, 5.0], "height": [4.0, None, None], "resolution": [10.0, 10.0, 10.0]}
    assert sizes(written(tmp_path, frame(identifier=["a", "b", "c"], **columns))) == {
        "a": (5, 4),
        "b": (101, 100),
        "c": (101, 100),
    }


def test_the_size_of_a_raster_is_rounded_and_at_least_a_pixel(tmp_path: Path) -> None:
    shapes = [box(0, 0, 104, 96), box(0, 0, 1, 2)]
    path = written(tmp_path, frame(identifier=["a", "b"], resolution=[10, 10], geometry=shapes))
    assert sizes(path) == {"a": (10, 10), "b": (1, 1)}


@pytest.mark.parametrize("columns", [{}, {"width": [10]}, {"resolution": [None]}, {"width": [None], "height": [9]}])
def test_a_feature_must_have_width_and_height_or_a_resolution(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    path = written(tmp_path, frame(identifier=["a"], **columns))
    check_refused(path, r"width and height, or a resolution; 't' feature 1 \('a'\) has neither\.")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"width": [3501], "height": [1]}, "3501 x 1"),
        ({"width": [1], "height": [3501]}, "1 x 3501"),
        ({"width": [0], "height": [1]}, "0 x 1"),
        ({"width": [9], "height": [-1]}, "9 x -1"),
        ({"resolution": [0.25]}, "4040 x 4000"),
    ],
)
def test_a_raster_has_1_to_3500_pixels_a_side_also_when_derived(
    tmp_path: Path, columns: dict[str, list[Any]], told: str
) -> None:
    path = written(tmp_path, frame(identifier=["a"], **columns))
    check_refused(path, rf"1 to 3500 pixels a side; 't' feature 1 \('a'\) has {told}\.")


def test_a_raster_of_3500_pixels_a_side_is_allowed(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10], geometry=[box(0, 0, 35_000, 35_000)]))
    assert sizes(path) == {"a": (3500, 3500)}


@pytest.mark.parametrize("resolution", [0, -10, "ten"])
def test_a_resolution_must_be_a_number_above_0(tmp_path: Path, resolution: Any) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[resolution]))
    check_refused(path, rf"resolution must be a number above 0; 't' feature 1 \('a'\) has {resolution!r}\.")


@pytest.mark.parametrize("width", [10.5, "ten"])
def test_width_and_height_must_be_integers(tmp_path: Path, width: Any) -> None:
    path = written(tmp_path, frame(identifier=["a"], width=[width], height=[10]))
    check_refused(path, rf"width must be an integer; 't' feature 1 \('a'\) has {width!r}\.")


# ---- defaults ----


def test_default_width_and_height_fill_what_a_feature_lacks(tmp_path: Path) -> None:
    columns = {"width": [5, None, 5, None], "height": [4, None, None, None], "resolution": [None, None, None, 10]}
    path = written(tmp_path, frame(identifier=["a", "b", "c", "d"], **columns))
    assert sizes(path, RasterSize(width=7, height=8)) == {"a": (5, 4), "b": (7, 8), "c": (5, 8), "d": (101, 100)}


def test_a_default_resolution_is_taken_where_a_feature_lacks_a_size(tmp_path: Path) -> None:
    columns = {"width": [5, None, None], "height": [4, 4, None], "resolution": [None, None, 10]}
    path = written(tmp_path, frame(identifier=["a", "b", "c"], **columns))
    assert sizes(path, RasterSize(resolution=101)) == {"a": (5, 4), "b": (10, 10), "c": (101, 100)}


def test_with_defaults_no_column_for_the_size_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"]))
    assert sizes(path, RasterSize(width=3500, height=1)) == {"a": (3500, 1)}


def test_a_size_derived_from_the_default_resolution_is_limited_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 to 3500 pixels a side; .* has 10100 x 10000"):
        tiles_of_geopackage(written(tmp_path, frame(identifier=["a"])), RasterSize(resolution=0.1))


# ---- the file ----


def test_a_file_that_is_no_geopackage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("not a database")
    check_refused(tmp_path / "text.gpkg", r"text\.gpkg cannot be read: file is not a database")
    sqlite3.connect(tmp_path / "bare.gpkg").execute("CREATE TABLE t (x)").connection.close()
    check_refused(tmp_path / "bare.gpkg", r"bare\.gpkg cannot be read: no such table: gpkg_contents")
    check_refused(tmp_path / "none.gpkg", r"none\.gpkg cannot be read: unable to open")


def test_reading_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, frame(identifier=["a"], resolution=[10]), name="a tile#1?.gpkg")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")  # as QGIS leaves files
    database.close()
    before = path.read_bytes()
    path.chmod(0o400)
    assert sizes(path) == {"a": (101, 100)}
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


polygons = st.builds(
    lambda x, y, width, height, cut: (
        box(x, y, x + width, y + height) - box(x - 1, y - 1, x + cut * width, y + cut * height)
    ),
    *(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(10, 1e4), st.floats(10, 1e4), st.floats(0, 0.9)),
)


@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(polygons, min_size=1, max_size=30))
def test_geometries_come_out_as_gdal_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[Polygon]
) -> None:
    names = [f"f{number:02d}" for number in range(len(shapes))]
    table = frame(identifier=names, resolution=[10.0] * len(names), geometry=shapes)
    tiles = tiles_of_geopackage(written(tmp_path_factory.mktemp("any"), table))
    assert [tile.name for tile in tiles] == names
    assert [tile.bounds for tile in tiles] == [shape.bounds for shape in shapes]
    assert all(
        tile.shape.symmetric_difference(shape).area <= 1e-8 * shape.area
        for tile, shape in zip(tiles, shapes, strict=True)
    )
