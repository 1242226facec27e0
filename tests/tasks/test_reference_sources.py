"""Files that are damaged, odd or rare: their rows are used, counted or refused, and none vanishes."""

import json
import sqlite3
import struct
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from tasks.errors import InvalidInput
from tasks.reference import Reference, burn, check_reference, prepare_reference, reference_source
from tasks.reference.polygons import TilePolygons, polygons_of_tile
from tasks.reference.preparation import Findings
from tasks.reference.sources import ROW_BY_ROW
from tasks.storage import Storage
from tests.tasks.delivery_files import TILE

MIN_X, MIN_Y, MAX_X, MAX_Y = TILE.bounds
WHOLE = shapely.box(*TILE.bounds)
WEST = shapely.box(MIN_X, MIN_Y, MIN_X + 320, MAX_Y)
CORNERS = list(WHOLE.exterior.coords)
STORAGE = Storage()


def write(path: Path, geometries: list[Any], **columns: Any) -> Path:
    frame = gpd.GeoDataFrame(columns, geometry=geometries, crs=32633)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyogrio.write_dataframe(frame, path, **({"SPATIAL_INDEX": "NO"} if path.suffix == ".gpkg" else {}))
    return path


def edit(path: Path, *statements: str, **values: Any) -> Path:
    """Change a GeoPackage as a database."""
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement, values)
        database.commit()
    return path


def of_wkb(path: Path, wkb: list[bytes], kind: str = "GEOMETRY") -> Path:
    """A GeoPackage with any geometries."""
    write(path, [WHOLE] * len(wkb), LULC_ID=list(range(2, 2 + len(wkb))))
    for number, one in enumerate(wkb, 1):
        blob = struct.pack("<2sBBi", b"GP", 0, 1, 32633) + one
        edit(path, "UPDATE r SET geom = :blob WHERE fid = :number", blob=blob, number=number)
    return edit(path, "UPDATE gpkg_geometry_columns SET geometry_type_name = :kind", kind=kind)


def checked_and_prepared(path: Path, folder: Path, **changes: Any) -> tuple[TilePolygons, Findings]:
    reference = Reference.model_validate({"file": str(path)} | changes)
    check_reference(reference, STORAGE)
    prepared = prepare_reference(reference, STORAGE, [TILE], folder)
    found = polygons_of_tile(folder, TILE)
    assert found is not None
    return found, prepared.findings


def refused(path: Path, folder: Path, message: str, **changes: Any) -> None:
    """Both before anything is bought and when it is used."""
    reference = Reference.model_validate({"file": str(path)} | changes)
    with pytest.raises(InvalidInput, match=message):
        check_reference(reference, STORAGE)
    with pytest.raises(InvalidInput, match=message):
        prepare_reference(reference, STORAGE, [TILE], folder)


# ---- rows that cannot be read ----


def test_a_shapefile_whose_attributes_are_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.shp", [WHOLE] * 5000, LULC_ID=[2] * 5000)
    attributes = path.with_suffix(".dbf").read_bytes()
    path.with_suffix(".dbf").write_bytes(attributes[: len(attributes) // 2])

    refused(path, tmp_path / "work", r"r\.shp says that it has 5,000 rows, but 2,498 could be read; copy it again")


def test_rows_that_are_marked_as_deleted_are_none_that_are_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "r.shp", [WHOLE, WEST, WEST], LULC_ID=[2, 3, 4])
    attributes = bytearray(path.with_suffix(".dbf").read_bytes())
    _, head, length = struct.unpack("<IHH", attributes[4:12])
    attributes[head + length] = ord("*")  # of the second row
    path.with_suffix(".dbf").write_bytes(attributes)

    assert checked_and_prepared(path, tmp_path / "work")[0].ids.tolist() == [2, 4]


def test_a_geopackage_with_a_page_of_rubbish_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WHOLE] * 5000, LULC_ID=[2] * 5000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)

    refused(path, tmp_path / "work", "5,000 rows, but .* could be read; copy it again|database disk image is malformed")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])  # half of it ends just before a row
def test_a_flatgeobuf_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "r.fgb", [WHOLE] * 5000, LULC_ID=[2] * 5000)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    refused(path, tmp_path / "work", "5,000 rows, but the last one cannot be read; copy it again")


@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
def test_rings_that_are_open_are_closed_and_polygons_that_cannot_be_read_are_counted(
    tmp_path: Path, suffix: str
) -> None:
    polygons = [[CORNERS], [CORNERS[:-1]], [CORNERS, [(MIN_X + 1, MIN_Y + 1)]], [CORNERS, [CORNERS[0]] * 2]]
    path = tmp_path / f"r.{suffix}"
    if suffix == "gpkg":
        of_wkb(path, [polygon_wkb(rings) for rings in polygons])
    else:
        path.write_text(geojson(polygons))

    found, findings = checked_and_prepared(path, tmp_path / "work")

    assert found.ids.tolist() == [2, 3]
    assert (burn(found.wkb, found.ids, TILE).classes == 3).all()
    assert (findings.polygons, findings.repaired, findings.without_polygon) == (2, 1, 2)


def polygon_wkb(rings: list[Any]) -> bytes:
    return struct.pack("<BII", 1, 3, len(rings)) + b"".join(
        struct.pack("<I", len(ring)) + b"".join(struct.pack("<dd", *point) for point in ring) for ring in rings
    )


def geojson(polygons: list[Any]) -> str:
    features = [
        {
            "type": "Feature",
            "properties": {"LULC_ID": number},
            "geometry": {"type": "Polygon", "coordinates": rings},
        }
        for number, rings in enumerate(polygons, 2)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})


@pytest.mark.parametrize(
    ("geometries", "ids"),
    [
        ([WHOLE, None, WEST], [2, 4]),
        ([None, WHOLE], [3]),
        ([WHOLE, None], [2]),
        ([WHOLE, shapely.Polygon(), WEST], [2, 4]),
        ([WHOLE, None, None, WEST] * 5000, [number for number in range(2, 20_002) if number % 4 in {1, 2}]),
    ],
)
def test_a_flatgeobuf_without_an_index_may_have_rows_without_a_geometry(
    tmp_path: Path, geometries: list[Any], ids: list[int]
) -> None:
    count = len(geometries)
    frame = gpd.GeoDataFrame({"code": range(2, 2 + count)}, geometry=geometries, crs=32633)
    pyogrio.write_dataframe(frame, tmp_path / "r.fgb", SPATIAL_INDEX="NO")
    table = [{"id": 1, "codes": ["*"]}]

    found, findings = checked_and_prepared(
        tmp_path / "r.fgb", tmp_path / "work", class_column="code", name_column="code", class_table=table
    )

    assert found.names.to_pylist() == list(map(str, ids))
    assert shapely.area(shapely.from_wkb(found.wkb[0].as_py())) == WHOLE.area
    assert findings.without_polygon == count - len(ids)


def test_a_flatgeobuf_with_an_index_and_a_row_without_a_geometry_is_refused(tmp_path: Path) -> None:
    """As GDAL does not write it."""
    path = write(tmp_path / "r.fgb", [WHOLE, WHOLE], LULC_ID=[2, 3])
    content = bytearray(path.read_bytes())
    row = next(at for at in range(len(content) - 8, 0, -1) if uint32(content, at) == len(content) - at - 4)
    table = row + 4 + uint32(content, row + 4)
    fields = table - uint32(content, table)
    struct.pack_into("<H", content, fields + 4, 0)  # the first one, geometry, is not there (flatbuffers, "Internals")
    path.write_bytes(content)
    pyogrio.set_gdal_config_options({ROW_BY_ROW: None})

    with pytest.raises(InvalidInput, match=r"r\.fgb has a spatial index and rows without .*ogr2ogr --config OGR_FLATG"):
        checked_and_prepared(path, tmp_path / "work")


def uint32(content: bytes | bytearray, at: int) -> int:
    return int(struct.unpack_from("<I", content, at)[0])


# ---- formats and paths ----


@pytest.mark.parametrize(
    ("name", "driver"), [("r.tab", "MapInfo File"), ("r.vrt", "OGR_VRT"), ("r.csv", "CSV"), ("r.kml", "KML")]
)
def test_formats_of_which_not_all_files_are_known_are_refused(tmp_path: Path, name: str, driver: str) -> None:
    path = tmp_path / name
    if driver == "OGR_VRT":
        layers = [
            f'<OGRVRTLayer name="{layer}"><SrcDataSource>{tmp_path / layer}.shp</SrcDataSource></OGRVRTLayer>'
            for layer in ("s", "t")
            if write(tmp_path / f"{layer}.shp", [WHOLE], LULC_ID=[2])
        ]
        path.write_text(f"<OGRVRTDataSource>{''.join(layers)}</OGRVRTDataSource>")
    elif driver == "CSV":
        path.write_text("LULC_ID\n2\n")
    else:
        frame = gpd.GeoDataFrame({"LULC_ID": [2]}, geometry=[WHOLE], crs=32633)
        pyogrio.write_dataframe(frame.to_crs(4326) if driver == "KML" else frame, path, driver=driver)

    message = f"in the format '(LIB)?{driver}', which is not read; GeoPackage, .*GeoParquet are.*ogr2ogr polygons.gpkg"
    refused(path, tmp_path / "work", message)


@pytest.mark.parametrize("driver", ["GeoJSON", "GeoJSONSeq"])
def test_features_one_a_line_are_geojson_as_well(tmp_path: Path, driver: str) -> None:
    frame = gpd.GeoDataFrame({"LULC_ID": [2]}, geometry=[WHOLE], crs=32633).to_crs(4326)
    pyogrio.write_dataframe(frame, tmp_path / "r.json", driver=driver)

    assert checked_and_prepared(tmp_path / "r.json", tmp_path / "work")[0].ids.tolist() == [2]


@pytest.mark.parametrize("part", ["dbf", "shx", "SHP"])
def test_any_part_of_a_shapefile_that_is_named_stands_for_the_whole(tmp_path: Path, part: str) -> None:
    path = write(tmp_path / "r.shp", [WHOLE], LULC_ID=[2])
    if part == "SHP":
        path = path.rename(tmp_path / "r.SHP")
    named = Reference(file=str(tmp_path / f"r.{part}"))
    before = check_reference(named, STORAGE)
    assert before.sources[0].size == sum(one.stat().st_size for one in tmp_path.glob("r.*"))
    assert checked_and_prepared(Path(named.file), tmp_path / "work")[0].ids.tolist() == [2]

    path.write_bytes(path.read_bytes() + b" ")

    assert reference_source(named, STORAGE) != before


def test_a_file_geodatabase_is_all_that_is_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "r.gdb"
    frame = gpd.GeoDataFrame({"LULC_ID": [2]}, geometry=[WHOLE], crs=32633)
    pyogrio.write_dataframe(frame, path, layer="land", driver="OpenFileGDB")
    reference = Reference(file=str(path), layer="land")
    before = check_reference(reference, STORAGE)
    assert checked_and_prepared(path, tmp_path / "work")[0].ids.tolist() == [2]

    table = max(path.glob("*.gdbtable"))
    table.write_bytes(table.read_bytes() + b" ")

    assert reference_source(reference, STORAGE) != before


@pytest.mark.parametrize("name", ["a!b.gpkg", "a;b.gpkg", "a.gpkg?"])
def test_a_path_that_would_be_opened_as_another_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "r.gpkg", [WHOLE], LULC_ID=[2]).rename(tmp_path / name)

    refused(path, tmp_path / "work", "cannot be opened, as its path has a '!' or ';', or '\\?' at the end; rename it")


def test_signs_in_a_path_are_its_own(tmp_path: Path) -> None:
    for number, name in enumerate(["a?b.gpkg", "a#b.gpkg", "100%.gpkg", "a:b.gpkg", "č [x] {1}.gpkg"]):
        path = write(tmp_path / "r.gpkg", [WHOLE], LULC_ID=[2]).rename(tmp_path / name)
        assert checked_and_prepared(path, tmp_path / str(number))[0].ids.tolist() == [2]


# ---- geometries and coordinates ----

CIRCLE = [(MIN_X + 120, MIN_Y + 240), (MIN_X + 320, MIN_Y + 440), (MIN_X + 520, MIN_Y + 240), (MIN_X + 320, MIN_Y + 40)]
ARCS = struct.pack("<BII", 1, 8, 5) + b"".join(struct.pack("<dd", *point) for point in [*CIRCLE, CIRCLE[0]])
CURVE_POLYGON = struct.pack("<BII", 1, 10, 1) + ARCS
BIG_ENDIAN = (
    struct.pack(">BII", 0, 10, 1)
    + struct.pack(">BII", 0, 8, 5)
    + b"".join(struct.pack(">dd", *point) for point in [*CIRCLE, CIRCLE[0]])
)


@pytest.mark.parametrize(
    ("kind", "circle"),
    [
        ("CURVEPOLYGON", CURVE_POLYGON),
        ("GEOMETRY", BIG_ENDIAN),
        ("MULTISURFACE", struct.pack("<BII", 1, 12, 1) + CURVE_POLYGON),
    ],
)
def test_arcs_become_chains_of_segments(tmp_path: Path, kind: str, circle: bytes) -> None:
    path = of_wkb(tmp_path / "r.gpkg", [shapely.to_wkb(WEST), circle, shapely.to_wkb(WEST)], kind)

    found, findings = checked_and_prepared(path, tmp_path / "work")

    assert (found.ids.tolist(), findings.polygons) == ([2, 3, 4], 3)
    area = shapely.area(shapely.from_wkb(found.wkb[1].as_py()))
    assert area == pytest.approx(np.pi * 200**2, rel=0.002)


def test_arcs_in_a_collection_are_told_what_to_do_about(tmp_path: Path) -> None:
    path = of_wkb(tmp_path / "r.gpkg", [struct.pack("<BII", 1, 7, 1) + CURVE_POLYGON])

    with pytest.raises(InvalidInput, match=r"r\.gpkg has geometries that cannot be used: .*CONVERT_TO_LINEAR"):
        checked_and_prepared(path, tmp_path / "work")


def test_a_crs_without_a_place_on_earth_is_refused(tmp_path: Path) -> None:
    local = edit(
        write(tmp_path / "r.gpkg", [WHOLE], LULC_ID=[2]),
        "INSERT OR IGNORE INTO gpkg_spatial_ref_sys VALUES ('Undefined Cartesian SRS', -1, 'NONE', -1, 'x', '')",
        "UPDATE gpkg_geometry_columns SET srs_id = -1",
        "UPDATE gpkg_contents SET srs_id = -1",
    )
    refused(local, tmp_path / "work", "'Undefined Cartesian SRS', which is not tied to the Earth; assign the one")

    site = write(tmp_path / "s.shp", [WHOLE], LULC_ID=[2])
    site.with_suffix(".prj").write_text('LOCAL_CS["site",UNIT["metre",1]]')
    refused(site, tmp_path / "work", "'site', which is not tied to the Earth")


def test_geoparquet_of_old_is_read(tmp_path: Path) -> None:
    described = {"encoding": "WKB", "geometry_type": "Polygon", "crs": "EPSG:32633"}
    meta = {"primary_column": "geometry", "version": "0.4.0", "columns": {"geometry": described}}
    table = pa.table({"LULC_ID": [2], "geometry": pa.array([shapely.to_wkb(WHOLE)], pa.binary())})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(meta)}), tmp_path / "r.parquet")

    assert checked_and_prepared(tmp_path / "r.parquet", tmp_path / "work")[0].ids.tolist() == [2]


def test_geoparquet_of_views_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [WHOLE, WEST], LULC_ID=[2, 3], code=["a", "b"])
    table = pq.read_table(path)
    kinds = {"LULC_ID": pa.int64(), "code": pa.string_view(), "geometry": pa.binary_view()}
    columns = {name: pa.array(table[name].to_pylist(), kind) for name, kind in kinds.items()}
    pq.write_table(pa.table(columns).replace_schema_metadata(table.schema.metadata), path)

    classes = {"class_column": "code", "class_table": {"a": 7, "b": 8}}
    assert checked_and_prepared(path, tmp_path / "classes", **classes)[0].ids.tolist() == [7, 8]
    assert checked_and_prepared(path, tmp_path / "names", name_column="code")[0].names.to_pylist() == ["a", "b"]
    refused(path, tmp_path / "work", r"the column is text.*Values: 'a', 'b'\.", class_column="code")


# ---- rows and columns ----


def test_row_numbers_such_as_times_neither_overflow_nor_mix_files(tmp_path: Path) -> None:
    first = write(tmp_path / "first.gpkg", [WHOLE, WHOLE, WHOLE], LULC_ID=[3, 4, 2])
    for number, fid in enumerate([20240115123457, 7, 20240115123456], 1):
        edit(first, f"UPDATE first SET fid = {fid} WHERE fid = {number}")  # noqa: S608 - our own literals
    second = write(tmp_path / "second.gpkg", [WEST], LULC_ID=[5])

    found, _ = checked_and_prepared(first, tmp_path / "work", more_files=[{"file": str(second)}])

    assert found.ids.tolist() == [4, 2, 3, 5]


@pytest.mark.parametrize("column", ["class_column", "name_column"])
def test_a_column_of_lists_is_refused(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "r.parquet", [WHOLE], LULC_ID=[2], kinds=[["field", "meadow"]])

    refused(path, tmp_path / "work", r"column kinds has values of type list.*choose one with text", **{column: "kinds"})


def test_text_in_another_encoding_than_the_file_says_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.shp", [WHOLE, WEST], LULC_ID=[2, 3], kind=["les", "gozdič"])
    attributes = path.with_suffix(".dbf")
    attributes.write_bytes(attributes.read_bytes().replace("č".encode(), "č ".encode("cp1250")))

    message = r"r\.shp, column kind has text that is not in the encoding .*\.cpg.*-oo ENCODING=CP1250"
    refused(path, tmp_path / "work", message, name_column="kind")
    refused(path, tmp_path / "work", message, class_column="kind", class_table={"les": 2}, unmapped="leave out")
    path.with_suffix(".cpg").write_text("1250")
    assert checked_and_prepared(path, tmp_path / "again", name_column="kind")[0].names.to_pylist() == ["les", "gozdič"]


DOMAIN = """
CREATE TABLE IF NOT EXISTS gpkg_extensions (table_name TEXT, column_name TEXT, extension_name TEXT, definition TEXT,
    scope TEXT, UNIQUE (table_name, column_name, extension_name));
CREATE TABLE gpkg_data_column_constraints (constraint_name TEXT, constraint_type TEXT, value TEXT, min NUMERIC,
    min_is_inclusive BOOLEAN, max NUMERIC, max_is_inclusive BOOLEAN, description TEXT);
CREATE TABLE gpkg_data_columns (table_name TEXT, column_name TEXT, name TEXT, title TEXT, description TEXT,
    mime_type TEXT, constraint_name TEXT, PRIMARY KEY (table_name, column_name));
INSERT INTO gpkg_extensions VALUES ('gpkg_data_columns', NULL, 'gpkg_schema', 'x', 'read-write');
INSERT INTO gpkg_extensions VALUES ('gpkg_data_column_constraints', NULL, 'gpkg_schema', 'x', 'read-write');
INSERT INTO gpkg_data_column_constraints VALUES ('cover', 'enum', '1', NULL, NULL, NULL, NULL, 'field');
INSERT INTO gpkg_data_column_constraints VALUES ('cover', 'enum', '2', NULL, NULL, NULL, NULL, 'forest');
INSERT INTO gpkg_data_columns VALUES ('r', 'LULC_ID', NULL, NULL, NULL, NULL, 'cover')
"""


def test_integers_with_described_codes_are_integers_and_their_descriptions_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WHOLE, WEST, WEST], LULC_ID=np.array([2, 1, 7], np.int32))
    edit(path, *DOMAIN.split(";"))

    assert checked_and_prepared(path, tmp_path / "ids")[0].ids.tolist() == [2, 1, 7]
    table = {2: 20, 1: 10, 7: 70}
    found, _ = checked_and_prepared(path, tmp_path / "table", class_table=table, name_column="LULC_ID")
    assert found.ids.tolist() == [20, 10, 70]
    assert found.names.to_pylist() == ["forest", "field", None]


def test_only_categories_that_a_row_has_must_be_classes(tmp_path: Path) -> None:
    classes = pd.Categorical(["field", "forest"], categories=["field", "bog", "forest"])
    path = write(tmp_path / "r.parquet", [WHOLE, WEST], LULC_ID=classes)

    found, findings = checked_and_prepared(path, tmp_path / "work", class_table={"field": 1, "forest": 2})

    assert (found.ids.tolist(), findings.unmapped) == ([1, 2], {})
    refused(path, tmp_path / "other", r"1 rows have values.*Values: 'forest'\.", class_table={"field": 1})


def test_numbers_that_are_text_are_told_to_be_text(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WHOLE], LULC_ID=["2"])

    refused(path, tmp_path / "work", "from 0 to 255; the column is text; give a class_table from values to ids")
    assert checked_and_prepared(path, tmp_path / "work", class_table={2: 2})[0].ids.tolist() == [2]


def test_text_that_looks_like_a_code_is_told_from_it(tmp_path: Path) -> None:
    values = ["311 ", "", "c\u030c", "31\u200b1", "č", "311"]
    path = write(tmp_path / "r.gpkg", [WHOLE] * len(values), LULC_ID=values)

    message = r"\('311', 'č'\).*Values: '', '311 ', '31\\u200b1', 'c\\u030c'\."
    refused(path, tmp_path / "work", message, class_table={"311": 1, "č": 2})


def test_numbers_that_are_large_text_are_told_to_be_text(tmp_path: Path) -> None:
    text = pd.array(["2"], pd.ArrowDtype(pa.large_string()))
    path = write(tmp_path / "r.parquet", [WHOLE], LULC_ID=text)
    assert pq.read_schema(path).field("LULC_ID").type == pa.large_string()

    refused(path, tmp_path / "work", r"from 0 to 255; the column is text; .*Values: '2'\.")


def test_whole_decimals_are_integers(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [WHOLE, WEST], LULC_ID=[Decimal("2.00"), Decimal("20.00")])

    assert checked_and_prepared(path, tmp_path / "ids")[0].ids.tolist() == [2, 20]
    assert checked_and_prepared(path, tmp_path / "table", class_table={2: 3, 20: 4})[0].ids.tolist() == [3, 4]
    half = write(tmp_path / "half.parquet", [WHOLE], LULC_ID=[Decimal("2.50")])
    refused(half, tmp_path / "work", r"Values: 2\.5\.")
