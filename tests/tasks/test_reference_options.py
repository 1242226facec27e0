"""Options of the reference: classes, priorities, shapes of polygons, several files, several zones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import s3fs
import shapely
from pydantic import ValidationError
from pyproj import CRS, Transformer
from rasterio.features import rasterize

from tasks.errors import InvalidInput
from tasks.grid import Tile
from tasks.reference import Reference, burn, check_reference, check_units, prepare_reference, reference_source
from tasks.reference.polygons import TilePolygons, areas_m2, polygons_of_tile
from tasks.reference.preparation import SourceIdentity
from tasks.reference.shapes import Geometries
from tasks.storage import Storage
from tests.tasks.delivery_files import TILE

MIN_X, MIN_Y, MAX_X, MAX_Y = TILE.bounds
WEST, EAST = shapely.box(MIN_X, MIN_Y, MIN_X + 320, MAX_Y), shapely.box(MIN_X + 320, MIN_Y, MAX_X, MAX_Y)
WHOLE = shapely.box(*TILE.bounds)
HALF_THE_WORLD = shapely.Polygon([(-60, -10), (105, 0), (179, -10), (179, 85), (-60, 85)])


def write(path: Path, geometries: list[Any], epsg: int = 32633, **columns: list[Any]) -> str:
    frame = gpd.GeoDataFrame(columns, geometry=geometries, crs=epsg)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyogrio.write_dataframe(frame, path, append=path.exists(), layer=path.stem)
    return str(path)


def found_by(reference: Reference, folder: Path, tile: Tile = TILE) -> TilePolygons:
    prepare_reference(reference, Storage(), [tile], folder)
    found = polygons_of_tile(folder, tile)
    assert found is not None
    return found


def labels(reference: Reference, folder: Path, tile: Tile = TILE) -> np.ndarray:
    found = found_by(reference, folder, tile)
    return burn(found.wkb, found.ids, tile, all_touched=reference.all_touched).classes


# ---- classes ----


def test_codes_may_be_prefixes_and_the_longest_one_counts(tmp_path: Path) -> None:
    codes = ["311", "312", "3121", "99", "2"]
    boxes = [shapely.box(MIN_X + 100 * i, MIN_Y, MIN_X + 100 * (i + 1), MAX_Y) for i in range(5)]
    table = [
        {"id": 2, "codes": ["31*"]},
        {"id": 3, "codes": ["312*"]},
        {"id": 4, "codes": ["312", 2]},
        {"id": 9, "codes": ["*"]},
    ]
    reference = Reference(file=write(tmp_path / "r.gpkg", boxes, code=codes), class_column="code", class_table=table)

    assert found_by(reference, tmp_path / "work").ids.tolist() == [2, 4, 3, 9, 4]


def test_names_and_colours_come_from_the_class_table_and_else_from_si_lulc(tmp_path: Path) -> None:
    table = [{"id": 2, "name": "Gozd", "colour": "#00ff00"}, {"id": 5}, {"id": 40, "name": "Ceste"}]
    path = write(tmp_path / "r.gpkg", [WEST, EAST, EAST], LULC_ID=[2, 5, 40])
    reference = Reference.model_validate({"file": path, "class_table": table})

    assert found_by(reference, tmp_path / "work").names.to_pylist() == ["Gozd", "WATER", "Ceste"]
    assert reference.classes is not None
    assert [(one.name, one.colour) for one in reference.classes[:2]] == [("Gozd", "#00ff00"), ("WATER", "#069af3")]
    assert reference.classes[2].colour.startswith("#")


def test_a_mapping_from_values_to_ids_is_short_for_a_list_of_classes() -> None:
    short = Reference(file="r.gpkg", class_table={1100: 1, "2000": 2, 1300.0: 2})
    long = Reference.model_validate(
        {"file": "r.gpkg", "class_table": [{"id": 1, "codes": ["1100"]}, {"id": 2, "codes": ["2000", "1300"]}]}
    )

    assert short == long
    assert Reference.model_validate(json.loads(short.model_dump_json())) == short


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"id": 1}, {"id": 1, "codes": ["x"]}], "class_table has the id 1 more than once"),
        ([{"id": 1, "codes": ["2"]}, {"id": 2}], "class_table has the code 2 more than once"),
        ([{"id": 256}], "less than or equal to 255"),
        ([{"id": 1, "colour": "red"}], "pattern"),
        ([], "at least 1 item"),
    ],
)
def test_a_class_table_that_contradicts_itself_is_refused(table: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Reference.model_validate({"file": "r.gpkg", "class_table": table})


def test_values_in_no_class_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WEST, EAST, EAST, WHOLE], code=["a", "bog", "bog", "moor"])
    reference = Reference(file=path, class_column="code", class_table={"a": 7}, unmapped="leave out")

    prepared = prepare_reference(reference, Storage(), [TILE], tmp_path / "work")

    found = polygons_of_tile(tmp_path / "work", TILE)
    assert found is not None
    assert found.ids.tolist() == [7]
    assert found.unmapped == {"bog": 2, "moor": 1}
    assert prepared.findings.unmapped == {"bog": 2, "moor": 1}


def test_ids_that_do_not_fit_are_left_out_and_not_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WHOLE] * 3, LULC_ID=[5.0, 261.0, 5.5])

    found = found_by(Reference(file=path, unmapped="leave out"), tmp_path / "work")

    assert found.ids.tolist() == [5]
    assert found.unmapped == {"261": 1, "5.5": 1}


def test_the_class_with_the_higher_priority_wins_whatever_the_order_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WEST, WHOLE, WEST], LULC_ID=[5, 2, 1])
    table = [{"id": 5, "priority": 1}, {"id": 2}, {"id": 1, "priority": -1}]

    found = labels(Reference.model_validate({"file": path, "class_table": table}), tmp_path / "work")

    assert (found[:, :16] == 5).all()
    assert (found[:, 16:] == 2).all()


# ---- shapes ----


def test_a_buffer_grows_and_shrinks_polygons_by_metres_also_from_longitude_and_latitude(tmp_path: Path) -> None:
    middle = shapely.box(MIN_X + 200, MIN_Y + 200, MIN_X + 400, MIN_Y + 400)
    lonlat = gpd.GeoSeries([middle], crs=32633).to_crs(4326)
    path = write(tmp_path / "r.gpkg", list(lonlat), 4326, LULC_ID=[2])

    for buffer_m, side_px in ((0.0, 10), (-40.0, 6), (40.0, 14)):
        found = labels(Reference(file=path, buffer_m=buffer_m), tmp_path / f"work{buffer_m}")
        corners = 0 if buffer_m <= 0 else 4  # round ones
        assert side_px**2 - corners <= np.count_nonzero(found) <= side_px**2


def test_a_polygon_beside_the_tile_reaches_into_it_by_its_buffer(tmp_path: Path) -> None:
    beside = shapely.box(MIN_X - 1500, MIN_Y, MIN_X - 1000, MAX_Y)
    path = write(tmp_path / "r.gpkg", [beside], LULC_ID=[2])

    assert (labels(Reference(file=path, buffer_m=1040), tmp_path / "work")[:, :2] == 2).all()


@pytest.mark.parametrize("buffer_m", [-10, -100, -2000, 300])
def test_a_buffer_leaves_what_a_continent_covers(tmp_path: Path, buffer_m: float) -> None:
    path = write(tmp_path / "r.gpkg", [HALF_THE_WORLD], 4326, LULC_ID=[7])

    assert (labels(Reference(file=path, buffer_m=buffer_m), tmp_path / "work") == 7).all()


def test_small_polygons_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [shapely.box(MIN_X, MIN_Y, MIN_X + 50, MIN_Y + 50), WEST], LULC_ID=[1, 2])

    prepared = prepare_reference(Reference(file=path, min_area_m2=2501), Storage(), [TILE], tmp_path / "work")

    assert (prepared.findings.polygons, prepared.findings.too_small) == (1, 1)


@pytest.mark.parametrize("epsg", [4326, 3857, 6933])
def test_the_area_of_a_polygon_that_is_cut_is_that_of_the_whole(tmp_path: Path, epsg: int) -> None:
    south = shapely.box(MIN_X, MIN_Y, MAX_X, MIN_Y + 100)
    (lonlat,) = gpd.GeoSeries([south], crs=32633).to_crs(4326)
    two = shapely.MultiPolygon([lonlat, shapely.affinity.translate(lonlat, -115)])  # 128,000 m² together
    project = Transformer.from_crs(4326, epsg, always_xy=True).transform
    shapes = [
        shapely.transform(shapely.segmentize(shape, 1), lambda points: np.column_stack(project(*points.T)))
        for shape in (HALF_THE_WORLD, two)
    ]
    path = write(tmp_path / "r.parquet", shapes, epsg, LULC_ID=[7, 8])

    for min_area_m2, large in ((127_000, 2), (129_000, 1), (1.8e14, 1), (1.9e14, 0)):
        reference = Reference(file=path, min_area_m2=min_area_m2)
        found = prepare_reference(reference, Storage(), [TILE], tmp_path / str(min_area_m2)).findings
        assert (found.polygons, found.too_small) == (large, 2 - large)


EARTH_M2 = 510_065_621_724_089.0
"""Surface of the ellipsoid of WGS 84."""


@pytest.mark.parametrize(
    ("shape", "epsg", "area_m2"),
    [
        (shapely.box(-180, -90, 180, 90), 4326, EARTH_M2),
        (shapely.box(0, 0, 360, 90), 4326, EARTH_M2 / 2),
        (shapely.box(90, -90, 270, 0), 4326, EARTH_M2 / 4),
        (shapely.box(90, -90, 270, 0).difference(shapely.box(170, -90, 190, -0.1)), 4326, EARTH_M2 / 4 * 0.8891),
        (shapely.box(-180, -60, -179, 0).union(shapely.box(179, -60, 180, 0)), 4326, EARTH_M2 / 360 * 0.8647),
        (shapely.Point(0, 0).buffer(5e6), 3573, shapely.Point(0, 0).buffer(5e6).area),  # around the pole
        (WHOLE, 32633, WHOLE.area / 0.9996**2 / 1.0001),
    ],
)
def test_areas_are_those_on_the_ellipsoid(shape: Any, epsg: int, area_m2: float) -> None:
    (found,) = areas_m2(Geometries(np.array([shape], object)), CRS(epsg))

    assert found == pytest.approx(area_m2, rel=1e-3)


def test_the_area_of_what_has_no_place_is_no_number() -> None:
    shapes = np.array([shapely.box(0, 0, 10, 95), None, shapely.box(0, 0, 10, 90)], object)

    assert np.isnan(areas_m2(Geometries(shapes), CRS(4326))).tolist() == [True, True, False]


def test_all_touched_pixels_are_those_of_gdal(tmp_path: Path) -> None:
    triangle = shapely.Polygon([(MIN_X + 33, MIN_Y + 41), (MIN_X + 477, MIN_Y + 99), (MIN_X + 210, MIN_Y + 403)])
    path = write(tmp_path / "r.gpkg", [triangle], LULC_ID=[2])
    expected = rasterize([(triangle, 2)], (TILE.height, TILE.width), transform=TILE.transform, all_touched=True)

    np.testing.assert_array_equal(labels(Reference(file=path, all_touched=True), tmp_path / "work"), expected)


def tile_at(lon: float, lat: float, epsg: int) -> Tile:
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    return Tile(f"{lon}_{lat}", epsg, (x, y, x + 320, y + 320), 32, 32)


@pytest.mark.parametrize("option", ["buffer_m", "min_area_m2"])
def test_metres_are_refused_for_tiles_in_degrees(option: str) -> None:
    check_units(Reference(file="r.gpkg"), [tile_at(15, 46, 4326)])
    with pytest.raises(InvalidInput, match="need tiles in metres, but those in EPSG:4326 are in degrees"):
        check_units(Reference.model_validate({"file": "r.gpkg", option: 5.0}), [tile_at(15, 46, 4326)])


@pytest.mark.parametrize("option", ["buffer_m", "min_area_m2"])
def test_metres_are_refused_where_they_are_none_on_the_ground(option: str) -> None:
    reference = Reference.model_validate({"file": "r.gpkg", option: 5.0})

    check_units(reference, [tile_at(3, 61, 32632), tile_at(15, 46, 32633), tile_at(-9, 38, 3035), tile_at(1, 1, 3857)])
    message = r"at tile 15_46 a metre on the ground is 1\.44 in EPSG:3857; leave them at 0, or choose another"
    with pytest.raises(InvalidInput, match=message):
        check_units(reference, [tile_at(1, 1, 3857), tile_at(15, 46, 3857), tile_at(15, 20, 3857)])


def test_areas_need_a_projection_that_keeps_areas_only() -> None:
    stretched = [tile_at(15, 46, 6933)]

    check_units(Reference(file="r.gpkg", min_area_m2=5), stretched)
    with pytest.raises(InvalidInput, match=r"a metre on the ground is 1\.25 in EPSG:6933"):
        check_units(Reference(file="r.gpkg", buffer_m=5), stretched)


# ---- files ----


def test_later_files_cover_earlier_ones_and_may_have_other_columns_and_crs(tmp_path: Path) -> None:
    first = write(tmp_path / "land.gpkg", [WHOLE], kind=["field"])
    lonlat = list(gpd.GeoSeries([WEST], crs=32633).to_crs(4326))
    second = write(tmp_path / "water.parquet", lonlat, 4326, code=[7000])
    reference = Reference.model_validate(
        {
            "file": first,
            "class_column": "kind",
            "class_table": {"field": 1, 7000: 5},
            "more_files": [{"file": second, "class_column": "code"}],
        }
    )

    found = labels(reference, tmp_path / "work")

    assert (found[:, :16] == 5).all()
    assert (found[:, 16:] == 1).all()
    assert [one.name for one in reference_source(reference, Storage()).sources] == ["land.gpkg", "water.parquet"]


def test_two_layers_of_a_file_follow_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "map.gpkg", [WHOLE], LULC_ID=[1])
    pyogrio.write_dataframe(gpd.GeoDataFrame({"LULC_ID": [5]}, geometry=[WEST], crs=32633), path, layer="water")
    layers = {"file": path, "layer": "map", "more_files": [{"file": path, "layer": "water"}]}

    found = labels(Reference.model_validate(layers), tmp_path / "work")

    assert (found[:, :16] == 5).all()
    assert (found[:, 16:] == 1).all()


def test_geoparquet_has_a_crs_and_refuses_layers_and_what_is_no_geoparquet(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [WEST, None], LULC_ID=[2, 3])

    prepared = prepare_reference(Reference(file=path), Storage(), [TILE], tmp_path / "work")
    assert (prepared.findings.polygons, prepared.findings.without_polygon) == (1, 1)
    with pytest.raises(InvalidInput, match="GeoParquet has no layers"):
        found_by(Reference(file=path, layer="x"), tmp_path / "work")
    (tmp_path / "plain.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(InvalidInput, match="is not readable as GeoParquet"):
        found_by(Reference(file=str(tmp_path / "plain.parquet")), tmp_path / "work")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("point", [1, 6])
@pytest.mark.parametrize("kind", ["ring", "hole", "two", "collection"])
def test_polygons_with_a_point_that_has_no_place_are_counted_and_left_out(
    tmp_path: Path, kind: str, point: int, number: float
) -> None:
    octagon = shapely.Point(MIN_X + 200, MIN_Y + 200).buffer(150, quad_segs=2)
    two = shapely.MultiPolygon([WEST, shapely.box(MIN_X + 400, MIN_Y, MIN_X + 500, MAX_Y)])
    shapes = {
        "ring": octagon,
        "hole": WHOLE.difference(shapely.box(MIN_X + 100, MIN_Y + 100, MIN_X + 200, MIN_Y + 200)),
        "two": two,
        "collection": shapely.GeometryCollection([two]),
    }
    wkb = shapely.to_wkb(shapes[kind])
    place = wkb.index(shapely.get_coordinates(shapes[kind])[point].astype("<f8").tobytes())
    wkb = wkb[:place] + np.float64(number).astype("<f8").tobytes() + wkb[place + 8 :]
    path = Path(write(tmp_path / "r.parquet", [shapes[kind], EAST], LULC_ID=[1, 2]))
    table = pq.read_table(path)
    column = table.column_names.index("geometry")
    pq.write_table(table.set_column(column, table.schema.field(column), [[wkb, shapely.to_wkb(EAST)]]), path)

    prepared = prepare_reference(Reference(file=str(path)), Storage(), [TILE], tmp_path / "work")

    assert (prepared.findings.polygons, prepared.findings.without_polygon) == (1, 1)
    assert polygons_of_tile(tmp_path / "work", TILE).ids.tolist() == [2]


def test_rows_without_a_geometry_are_counted_also_where_an_index_leaves_them_out(tmp_path: Path) -> None:
    for options in ({}, {"SPATIAL_INDEX": "NO"}):
        path = tmp_path / f"r{len(options)}.gpkg"
        frame = gpd.GeoDataFrame({"LULC_ID": [1, 2, 3]}, geometry=[WEST, None, None], crs=32633)
        pyogrio.write_dataframe(frame, path, **options)

        prepared = prepare_reference(Reference(file=str(path)), Storage(), [TILE], tmp_path / path.stem)

        assert (prepared.findings.polygons, prepared.findings.without_polygon) == (1, 2)


# ---- tiles ----


def test_a_polygon_across_two_zones_and_many_tiles_is_in_each(tmp_path: Path) -> None:
    outline = shapely.Polygon([(11.9, 46.9), (12.1, 46.9), (12.1, 47.1), (11.9, 47.1)])
    hole = shapely.Polygon([(11.99, 46.99), (12.01, 46.99), (12.01, 47.01), (11.99, 47.01)])
    path = write(tmp_path / "r.geojson", [shapely.segmentize(outline.difference(hole), 0.001)], 4326, LULC_ID=[2])
    tiles = []
    for epsg in (32632, 32633):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(12.0, 47.0)
        for east in (-2000, 0):
            west, south = round(x, -1) + east, round(y, -1) - 1000
            tiles.append(Tile(f"{epsg}_{east}", epsg, (west, south, west + 2000, south + 2000), 200, 200))

    prepare_reference(Reference(file=path), Storage(), tiles, tmp_path / "work")

    for tile in tiles:
        found = polygons_of_tile(tmp_path / "work", tile)
        assert found is not None
        columns, rows = np.meshgrid(np.arange(200) + 0.5, np.arange(200) + 0.5)
        lon, lat = Transformer.from_crs(tile.epsg, 4326, always_xy=True).transform(*(tile.transform * (columns, rows)))
        expected = np.where(shapely.contains_xy(outline.difference(hole), lon, lat), 2, 0)
        got = burn(found.wkb, found.ids, tile).classes
        assert np.count_nonzero(got != expected) <= 4  # an edge of 100 m is not as straight there
        assert {0, 2} == set(np.unique(got))


def test_a_tile_that_was_not_prepared_is_told_from_one_without_polygons(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2])
    empty = Tile("far", 32633, (MIN_X + 9000, MIN_Y, MAX_X + 9000, MAX_Y), 32, 24)

    prepare_reference(Reference(file=path), Storage(), [TILE, empty], tmp_path / "work")

    found = polygons_of_tile(tmp_path / "work", empty)
    assert found is not None
    assert len(found.ids) == 0
    assert polygons_of_tile(tmp_path / "work", Tile("other", 32633, TILE.bounds, 32, 24)) is None
    assert polygons_of_tile(tmp_path / "work", Tile("other", 32632, TILE.bounds, 32, 24)) is None


def test_of_a_layer_with_one_polygon_for_each_class_a_tile_has_only_what_touches_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tiles = [
        Tile(f"{east}_{north}", 32633, (x, y, x + 640, y + 480), 32, 24)
        for east, x in enumerate((MIN_X, MIN_X + 640, MIN_X + 9000))
        for north, y in enumerate((MIN_Y, MIN_Y + 480))
    ]
    corners = np.stack(np.meshgrid(np.arange(-20, 60), np.arange(-20, 60)), -1).reshape(-1, 2) * 60.0 + (MIN_X, MIN_Y)
    boxes = shapely.box(*corners.T, *(corners + random.uniform(20, 60, corners.shape)).T)
    codes = random.choice(["1", "2", "bog", "none"], len(boxes), p=[0.4, 0.4, 0.1, 0.1])
    apart = write(tmp_path / "apart.gpkg", list(boxes), code=[None if code == "none" else code for code in codes])
    whole = [shapely.MultiPolygon(boxes[codes == code].tolist()) for code in ("2", "bog", "1", "none")]
    dissolved = write(tmp_path / "dissolved.gpkg", whole, code=["2", "bog", "1", None])
    options = {"class_column": "code", "class_table": {"1": 1, "2": 2}, "unmapped": "leave out"}

    found = []
    for path in (apart, dissolved):
        folder = tmp_path / Path(path).stem
        prepared = prepare_reference(Reference.model_validate({"file": path} | options), Storage(), tiles, folder)
        found.append([polygons_of_tile(folder, tile) for tile in tiles])

    assert (prepared.findings.polygons, prepared.findings.without_class) == (2, 1)
    assert prepared.findings.unmapped == {"bog": 1}
    for tile, ones, wholes in zip(tiles, *found, strict=True):
        assert ones is not None
        assert wholes is not None
        near = bool(len(ones.ids))
        assert (wholes.ids.tolist(), wholes.unmapped, wholes.without_class) == (
            ([2, 1], {"bog": 1}, 1) if near else ([], {}, 0)
        )
        shapes = shapely.from_wkb(wholes.wkb.to_numpy(zero_copy_only=False))
        expected = [
            boxes[(codes == str(number)) & shapely.intersects(boxes, shapely.box(*tile.bounds))]
            for number in wholes.ids
        ]
        assert [
            shapely.equals(one, shapely.MultiPolygon(list(many))) for one, many in zip(shapes, expected, strict=True)
        ] == [True] * len(shapes)
        np.testing.assert_array_equal(
            burn(wholes.wkb, wholes.ids, tile).classes, burn(ones.wkb, ones.ids, tile).classes
        )
    assert [len(ones.ids) > 0 for ones in found[0] if ones] == [True] * 4 + [False] * 2


def test_the_smallest_area_and_the_buffer_are_those_of_the_whole_polygon(tmp_path: Path) -> None:
    far = shapely.box(MIN_X + 5000, MIN_Y, MIN_X + 5100, MIN_Y + 100)
    here = shapely.box(MIN_X + 100, MIN_Y + 100, MIN_X + 140, MIN_Y + 140)
    path = write(tmp_path / "r.gpkg", [shapely.MultiPolygon([far, here]), here], LULC_ID=[2, 3])

    found = found_by(Reference(file=path, min_area_m2=5000, buffer_m=20), tmp_path / "work")

    assert found.ids.tolist() == [2]
    (shape,) = shapely.from_wkb(found.wkb.to_pylist())
    assert shape.bounds == (MIN_X + 80, MIN_Y + 80, MIN_X + 160, MIN_Y + 160)


# ---- identity ----


@pytest.mark.parametrize(
    "change",
    [
        {"buffer_m": 5.0},
        {"min_area_m2": 5.0},
        {"all_touched": True},
        {"unmapped": "leave out"},
        {"class_table": [{"id": 2, "name": "Gozd"}]},
        {"class_table": [{"id": 2, "priority": 1}]},
        {"class_table": [{"id": 2, "codes": ["2", "3"]}]},
        {"name_column": "LULC_ID"},
    ],
)
def test_each_option_that_changes_labels_makes_it_another_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    given = {"file": write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2]), "class_table": [{"id": 2}]}

    before = reference_source(Reference.model_validate(given), Storage())

    assert reference_source(Reference.model_validate(given | change), Storage()) != before


def test_a_colour_changes_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2])
    sources = [
        reference_source(Reference.model_validate({"file": path, "class_table": [{"id": 2, "colour": one}]}), Storage())
        for one in ("#000000", "#ffffff")
    ]

    assert sources[0] == sources[1]


def test_the_order_of_classes_and_codes_changes_no_labels() -> None:
    table: list[dict[str, Any]] = [
        {"id": 1, "codes": ["1100"], "name": "FIELD"},
        {"id": 2, "codes": ["1300", "2000"], "priority": 3},
        {"id": 7},
    ]
    turned = [*table[:0:-1], table[0]]
    turned[1] = table[1] | {"codes": ["2000", "1300"]}

    hashes = {
        Reference.model_validate({"file": "r.gpkg", "class_table": one}).class_table_sha256 for one in (table, turned)
    }

    assert hashes == {"56d974dc0fc82c40418ce29ea82d11fcb344255fa7933fec26a5be44c6567728"}  # as it ever was


def test_the_identity_of_one_file_is_its_size_and_time(tmp_path: Path) -> None:
    """As it ever was: another one would have every EOPatch labelled again."""
    for suffix in ("gpkg", "geojson", "fgb", "parquet"):
        path = Path(write(tmp_path / f"r.{suffix}", [WEST], LULC_ID=[2]))

        source = reference_source(Reference(file=str(path)), Storage()).sources[0]

        assert source == SourceIdentity(path.name, path.stat().st_size, str(path.stat().st_mtime))


@pytest.mark.parametrize("part", ["shp", "dbf", "prj", "cpg", "shx"])
def test_a_change_to_any_part_of_a_shapefile_makes_it_another_reference(tmp_path: Path, part: str) -> None:
    reference = Reference(file=write(tmp_path / "r.shp", [WEST], LULC_ID=[2]))
    write(tmp_path / "r2.shp", [WEST], LULC_ID=[2])
    before = reference_source(reference, Storage())

    os.utime(tmp_path / f"r2.{part}", (1, 1))
    assert reference_source(reference, Storage()) == before
    os.utime(tmp_path / f"r.{part}", (1, 1))

    assert reference_source(reference, Storage()) != before


EDITOR = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA journal_mode = wal")
print("open", flush=True)
for number in map(int, sys.stdin):
    database.execute("UPDATE r SET LULC_ID = ?", [number])
    database.commit()
    print("written", flush=True)
"""


def test_what_is_written_to_a_geopackage_that_is_open_elsewhere_makes_it_another_reference(tmp_path: Path) -> None:
    path = tmp_path / "r.gpkg"
    frame = gpd.GeoDataFrame({"LULC_ID": [2]}, geometry=[WHOLE], crs=32633)
    pyogrio.write_dataframe(frame, path, SPATIAL_INDEX="NO")  # its triggers need functions of GDAL
    reference = Reference(file=str(path))
    command = [sys.executable, "-c", EDITOR, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as editor:
        assert editor.stdin is not None
        assert editor.stdout is not None
        assert editor.stdout.readline() == "open\n"
        before = reference_source(reference, Storage())
        assert before.sources[0].version == str(path.stat().st_mtime)

        editor.stdin.write("5\n")
        editor.stdin.flush()
        assert editor.stdout.readline() == "written\n"

        changed = reference_source(reference, Storage())
        assert changed != before
        assert (labels(reference, tmp_path / "work") == 5).all()
        assert reference_source(reference, Storage()) == changed


def test_a_change_in_a_folder_makes_it_another_reference(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    write(tmp_path / "maps" / "r.shp", [WHOLE], LULC_ID=[2])
    reference = Reference(file=str(tmp_path / "maps"))
    before = check_reference(reference, Storage())
    assert before.sources[0].name == "maps"

    times = (tmp_path / "maps").stat()
    pyogrio.write_dataframe(gpd.GeoDataFrame({"LULC_ID": [5]}, geometry=[WHOLE], crs=32633), tmp_path / "r.shp")
    (tmp_path / "maps" / "r.dbf").write_bytes((tmp_path / "r.dbf").read_bytes())
    os.utime(tmp_path / "maps", (times.st_atime, times.st_mtime))

    assert reference_source(reference, Storage()) != before
    assert (labels(reference, tmp_path / "work") == 5).all()


def test_a_folder_on_s3_is_read_as_a_whole(
    tmp_path: Path, s3_files: s3fs.S3FileSystem, bucket: str, storage: Storage
) -> None:
    (tmp_path / "maps").mkdir()
    write(tmp_path / "maps" / "r.shp", [WHOLE], LULC_ID=[2])
    s3_files.put(str(tmp_path / "maps"), f"{bucket}/maps", recursive=True)
    reference = Reference(file=f"s3://{bucket}/maps")

    source = check_reference(reference, storage)
    prepare_reference(reference, storage, [TILE], tmp_path / "work")

    assert polygons_of_tile(tmp_path / "work", TILE).ids.tolist() == [2]
    s3_files.pipe_file(f"{bucket}/maps/r.cpg", b"UTF-8\n")
    assert reference_source(reference, storage) != source
