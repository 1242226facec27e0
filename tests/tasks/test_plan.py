"""The plan: area, tiles, price and what exists, and each wrong input refused with one clear message."""

from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import shapely
from pydantic import ValidationError
from shapely.geometry import mapping

from tasks.errors import InvalidInput
from tasks.grid import Tile
from tasks.ledger import TileState
from tasks.plan import (
    Area,
    Period,
    Tiling,
    TimeRange,
    area_geometry,
    plan_tiles,
    slug,
    survey,
)

SQUARE = shapely.box(14.4, 46.0, 14.6, 46.1)
BOW_TIE = shapely.Polygon([(14, 46), (15, 47), (15, 46), (14, 47), (14, 46)])
MONTH = TimeRange(date(2019, 6, 1), date(2019, 6, 30))


def refused(area: Area) -> str:
    with pytest.raises(InvalidInput) as caught:
        area_geometry(area)
    return str(caught.value)


def write(frame: gpd.GeoDataFrame, folder: Path, name: str = "area.gpkg") -> str:
    frame.to_file(folder / name, engine="pyogrio")
    return str(folder / name)


# ---- area ----


def feature(geometry: object) -> dict[str, Any]:
    return {"type": "Feature", "properties": {}, "geometry": geometry}


def test_a_box_is_west_south_east_north() -> None:
    geometry = area_geometry(Area(bbox=(14.4, 46.0, 14.6, 46.1)))
    assert geometry is not None
    assert geometry.equals(SQUARE)


@pytest.mark.parametrize(
    "geojson",
    [
        mapping(SQUARE),
        mapping(shapely.MultiPolygon([SQUARE])),
        mapping(shapely.force_3d(SQUARE, 300)),
        feature(mapping(SQUARE)),
        {
            "type": "FeatureCollection",
            "features": [feature(mapping(shapely.box(14.4, 46.0, 14.5, 46.1))), feature(mapping(SQUARE))],
        },
    ],
)
def test_every_kind_of_geojson_gives_its_polygons_without_heights(geojson: dict[str, Any]) -> None:
    geometry = area_geometry(Area(geojson=geojson))
    assert geometry is not None
    assert geometry.equals(SQUARE)
    assert not geometry.has_z


@pytest.mark.parametrize("name", ["area.gpkg", "area.geojson", "area.shp"])
def test_a_file_gives_the_union_of_its_polygons(tmp_path: Path, name: str) -> None:
    halves = [shapely.box(14.4, 46.0, 14.5, 46.1), shapely.box(14.5, 46.0, 14.6, 46.1)]
    geometry = area_geometry(Area(file=write(gpd.GeoDataFrame(geometry=halves, crs=4326), tmp_path, name)))
    assert geometry is not None
    assert geometry.equals(SQUARE)


def test_a_file_in_another_crs_is_reprojected_with_its_long_edges_bent(tmp_path: Path) -> None:
    wide = shapely.box(4_300_000, 2_500_000, 4_900_000, 2_600_000)
    geometry = area_geometry(Area(file=write(gpd.GeoDataFrame(geometry=[wide], crs=3035), tmp_path)))
    dense = gpd.GeoSeries([wide.segmentize(100)], crs=3035).to_crs(4326).iloc[0]
    assert geometry is not None
    assert geometry.symmetric_difference(dense).area < 1e-4 * dense.area


def test_no_area_is_no_geometry() -> None:
    assert area_geometry(Area()) is None


def test_an_area_is_given_once() -> None:
    with pytest.raises(ValidationError, match="given 2 times, as bbox and file; give one of bbox, geojson, file"):
        Area(bbox=(14, 46, 15, 47), file="x.gpkg")


@pytest.mark.parametrize(
    "bbox", [(15, 46, 14, 47), (14, 47, 15, 46), (14, 46, 14, 47), (14, 46, 15, 91), (float("nan"), 46, 15, 47)]
)
def test_a_box_with_its_corners_exchanged_or_outside_of_the_world_is_refused(
    bbox: tuple[float, float, float, float],
) -> None:
    assert "west, south, east, north in degrees are needed, west < east and south < north" in refused(Area(bbox=bbox))


@pytest.mark.parametrize(
    ("geojson", "text"),
    [
        ({"type": "Polygon", "coordinates": []}, "is empty"),
        ({"type": "FeatureCollection", "features": []}, "is empty"),
        (mapping(BOW_TIE), "Self-intersection"),
        ({"type": "FeatureCollection", "features": [feature(mapping(BOW_TIE))]}, "Self-intersection"),
        (mapping(shapely.Point(14, 46)), "is a Point; give a Polygon"),
        ({"type": "FeatureCollection", "features": [feature(mapping(shapely.Point(14, 46)))]}, "is a Point"),
        (mapping(shapely.box(465300, 5079500, 465400, 5079600)), "no longitudes and latitudes in degrees"),
        (feature(None), "is not a GeoJSON geometry"),
        ({"type": "Polygon"}, "is not a GeoJSON geometry"),
        ({"type": "Polygon", "coordinates": [[["a", "b"]]]}, "is not a GeoJSON geometry"),
        ({"type": "Circle", "coordinates": [1, 2]}, "is not a GeoJSON geometry"),
        ({"type": "FeatureCollection"}, "is not a GeoJSON geometry"),
        ({"type": "FeatureCollection", "features": [1]}, "is not a GeoJSON geometry"),
        ({}, "is not a GeoJSON geometry"),
    ],
)
def test_geojson_without_a_sound_polygon_is_refused(geojson: dict[str, Any], text: str) -> None:
    assert text in refused(Area(geojson=geojson))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("no GeoPackage")
    for name in ("missing.gpkg", "text.gpkg"):
        text = refused(Area(file=str(tmp_path / name)))
        assert text.startswith(f"The area file {tmp_path / name} cannot be read")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_file_without_a_crs_is_refused(tmp_path: Path) -> None:
    assert "has no geometries with a CRS; set its CRS" in refused(
        Area(file=write(gpd.GeoDataFrame(geometry=[SQUARE]), tmp_path, "area.shp"))
    )


def test_a_table_without_geometries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    assert "has no geometries with a CRS" in refused(Area(file=str(tmp_path / "table.csv")))


@pytest.mark.parametrize(
    ("geometry", "text"),
    [(BOW_TIE, "invalid geometry: Self-intersection"), (shapely.Point(14, 46), "is a Point; give a Polygon")],
)
def test_a_file_without_a_sound_polygon_is_refused(tmp_path: Path, geometry: shapely.Geometry, text: str) -> None:
    assert text in refused(Area(file=write(gpd.GeoDataFrame(geometry=[geometry], crs=4326), tmp_path)))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame(geometry=[SQUARE], crs=4326)
    frame.iloc[:0].to_file(tmp_path / "area.gpkg", engine="pyogrio", geometry_type="Polygon")
    assert "is empty; give a polygon" in refused(Area(file=str(tmp_path / "area.gpkg")))


# ---- period, names ----


def test_a_period_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValidationError, match="ends on 2019-01-01, before it starts on 2019-02-01; exchange"):
        Period(start=date(2019, 2, 1), end=date(2019, 1, 1))


def test_a_step_longer_than_the_period_is_refused() -> None:
    with pytest.raises(ValidationError, match="step of 31 days is longer than the period of 30 days; shorten"):
        Period(start=date(2019, 6, 1), end=date(2019, 6, 30), step_days=31)
    assert Period(start=date(2019, 6, 1), end=date(2019, 6, 30), step_days=30).step_days == 30


def test_results_are_named_by_area_and_period() -> None:
    assert slug(Area(name="Škofja Loka / East"), MONTH) == "skofja-loka-east-20190601-20190630"
    assert slug(Area(name="Žiče"), MONTH) != slug(Area(name="Čiče"), MONTH)
    with pytest.raises(ValueError, match=r"area.name needs a Latin letter or a digit"):
        Area(name="Москва")
    with pytest.raises(ValidationError, match="name"):
        Area(name="—")


# ---- tiles ----


def test_tiles_of_a_grid_are_whole_and_sorted() -> None:
    tiles = plan_tiles(Tiling(), SQUARE)
    assert [tile.name for tile in tiles] == sorted(tile.name for tile in tiles)
    assert {(tile.width, tile.height) for tile in tiles} == {(500, 500)}


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be 0, 1 or 2"):
        Tiling.model_validate({"grid": 4})


@pytest.mark.parametrize("grid", [3, 6, 7])
def test_a_grid_whose_tile_names_are_not_published_is_refused_with_the_reason(grid: int) -> None:
    with pytest.raises(
        ValidationError, match=f"tiling grid {grid} cannot be followed tile by tile: .* choose 0, 1 or 2"
    ):
        Tiling.model_validate({"grid": grid})


def test_a_resolution_that_the_grid_lacks_is_refused() -> None:
    expected = r"Resolution 15 m is not offered by tiling grid 1 \(10km grid\); choose 10 or 20 m"
    with pytest.raises(InvalidInput, match=expected):
        plan_tiles(Tiling(resolution_m=15), SQUARE)


def test_an_area_outside_of_the_grid_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"covers -80.6° to 80.6°; cut the area"):
        plan_tiles(Tiling(), shapely.box(10, 85, 11, 86))


def test_a_grid_needs_an_area() -> None:
    with pytest.raises(InvalidInput, match=r"No area is given; give one of area.bbox, area.geojson, area.file"):
        plan_tiles(Tiling(), None)


@pytest.fixture
def geopackage(tmp_path: Path) -> str:
    """Five tiles of 1 km in a row from west to east."""
    boxes = [shapely.box(465000 + 1000 * i, 5079000, 466000 + 1000 * i, 5080000) for i in range(5)]
    columns = {"id": range(5), "identifier": [f"t{i}" for i in range(5)], "resolution": [10.0] * 5}
    return write(gpd.GeoDataFrame(columns, geometry=boxes, crs=32633), tmp_path, "tiles.gpkg")


def test_a_geopackage_gives_all_of_its_tiles_without_an_area(geopackage: str) -> None:
    tiles = plan_tiles(Tiling(geopackage=geopackage), None)
    assert [(tile.name, tile.width, tile.height) for tile in tiles] == [(f"t{i}", 100, 100) for i in range(5)]


def lonlat(min_x: float, max_x: float) -> shapely.Geometry:
    box = gpd.GeoSeries([shapely.box(min_x, 5079400, max_x, 5079600)], crs=32633)
    return box.to_crs(4326).iloc[0]


def test_an_area_selects_among_the_tiles_of_a_geopackage(geopackage: str) -> None:
    tiling = Tiling(geopackage=geopackage)
    assert [tile.name for tile in plan_tiles(tiling, lonlat(466500, 468500))] == ["t1", "t2", "t3"]
    assert len(plan_tiles(tiling, shapely.box(-180, -90, 180, 90))) == 5
    with pytest.raises(InvalidInput, match=r"overlaps no tile of .*tiles.gpkg; check its coordinates"):
        plan_tiles(tiling, shapely.box(100, 10, 101, 11))


def test_a_common_edge_does_not_select_a_tile(geopackage: str) -> None:
    edge = shapely.box(465000, 5079000, 466000, 5080000)
    area = gpd.GeoSeries([edge.segmentize(100)], crs=32633).to_crs(4326).iloc[0]
    assert [tile.name for tile in plan_tiles(Tiling(geopackage=geopackage), area)] == ["t0"]


@pytest.mark.parametrize("name", ["missing.gpkg", "text.gpkg"])
def test_a_geopackage_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.gpkg").write_text("no GeoPackage")
    with pytest.raises(InvalidInput, match=f"The GeoPackage {name} cannot be read"):
        plan_tiles(Tiling(geopackage=str(tmp_path / name)), None)


def test_a_geopackage_that_breaks_a_rule_is_told_which(tmp_path: Path) -> None:
    path = write(gpd.GeoDataFrame({"identifier": ["a"]}, geometry=[SQUARE], crs=4326), tmp_path)
    with pytest.raises(InvalidInput, match="must have width and height, or a resolution; 'area' feature 1"):
        plan_tiles(Tiling(geopackage=path), None)


def tiles(count: int) -> list[Tile]:
    return [Tile(f"t{i}", 32633, (0, 0, 10_000, 10_000), 1000, 1000) for i in range(count)]


# ---- survey ----


def test_a_survey_tells_of_each_tile_what_exists() -> None:
    records = survey(tiles(40), lambda tile: tile.name != "t0", lambda tile: tile.name == "t2")
    assert [record.tile.name for record in records] == [f"t{i}" for i in range(40)]
    states = [TileState.PENDING, TileState.CONVERTED, TileState.LABELLED] + [TileState.CONVERTED] * 37
    assert [record.state for record in records] == states
