"""The tiling rule of the UTM grids against real tiles, literals from the service, and geometry."""

import re
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from shapely import MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from tasks.grid import GRIDS, Tile, lonlat_outline, tiles_of_grid

LATITUDES = {0: 80.7, 1: 80.6, 2: 81.0}  # documented coverage


def around(lon: float, lat: float, radius_deg: float = 0.001) -> Polygon:
    return box(lon - radius_deg, lat - radius_deg, lon + radius_deg, lat + radius_deg)


def names(area: BaseGeometry, crs: int = 4326, grid_id: int = 1) -> list[str]:
    return [tile.name for tile in tiles_of_grid(area, crs, grid_id, GRIDS[grid_id].resolutions[-1])]


@pytest.fixture(scope="module")
def real_tiles(test_data: Path) -> dict[str, Tile]:
    """Sentinel Hub's own tiles of grid 0 over France, zones 30 and 31."""
    source = test_data / "tiling-grid-0-sample.gpkg"
    tiles = {}
    for layer, _ in pyogrio.list_layers(source):
        frame = pyogrio.read_dataframe(source, layer=layer)
        for name, geometry in zip(frame["name"], frame.geometry, strict=True):
            tiles[name] = Tile(name, frame.crs.to_epsg(), geometry.bounds, 2004, 2004)
    return tiles


# ---- real tiles ----


def test_every_real_tile_of_grid_0_comes_out_with_its_name_and_outline(real_tiles: dict[str, Tile]) -> None:
    area = shapely.union_all([lonlat_outline(tile) for tile in real_tiles.values()])
    ours = {tile.name: tile for tile in tiles_of_grid(area, 4326, 0, 10)}
    assert len(real_tiles) == 1465
    assert {name: ours.get(name) for name in real_tiles} == real_tiles


def test_no_tile_is_given_where_the_real_grid_leaves_a_redundant_one_out(real_tiles: dict[str, Tile]) -> None:
    area = shapely.union_all([lonlat_outline(tile) for tile in real_tiles.values()])
    inside = area.buffer(1e-6)
    extra = [tile for tile in tiles_of_grid(area, 4326, 0, 10) if tile.name not in real_tiles]
    assert extra, "tiles beyond the sample's border overlap the border's tiles"
    assert [tile.name for tile in extra if inside.covers(lonlat_outline(tile))] == []


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("28PBB_2_6", (220_000, 1_630_000, 230_000, 1_640_000)),
        ("28PBB_2_7", (220_000, 1_620_000, 230_000, 1_630_000)),
        ("28PBB_3_6", (230_000, 1_630_000, 240_000, 1_640_000)),
    ],
)
def test_real_tiles_of_grid_1_come_out(name: str, bounds: tuple[float, float, float, float]) -> None:
    assert tiles_of_grid(box(*bounds), 32628, 1, 10) == [Tile(name, 32628, bounds, 1000, 1000)]


def test_a_tile_of_the_southern_hemisphere_has_its_zone_and_false_northing() -> None:
    (tile,) = tiles_of_grid(around(28.05, -26.20), 4326, 1, 20)
    assert (tile.name, tile.epsg) == ("35JPM_0_9", 32735)
    assert tile.bounds == (600_000, 7_100_000, 610_000, 7_110_000)
    assert tile.width == tile.height == 500


def test_grid_2_has_one_tile_a_square() -> None:
    (tile,) = tiles_of_grid(around(4.0, 51.0), 4326, 2, 120)
    assert tile == Tile("31UES_0_0", 32631, (499_980, 5_599_920, 600_060, 5_700_000), 834, 834)


# ---- zones, bands and letters ----


@pytest.mark.parametrize(
    ("place", "lon", "lat", "square"),
    [
        ("Ljubljana", 14.51, 46.02, "33TVL"),
        ("Madrid", -3.70, 40.42, "30TVK"),
        ("Jerusalem", 35.21, 31.78, "36SYA"),
        ("Quito", -78.50, -0.20, "17MQV"),
        ("Sydney", 151.20, -33.87, "56HLH"),
        ("Cape Town", 18.42, -33.92, "34HBH"),
        ("Longyearbyen", 15.63, 78.22, "33XWG"),
        ("Bergen, of zone 32 although 5.3 E is in 31", 5.33, 60.39, "32VKN"),
        ("Paris", 2.35, 48.86, "31UDQ"),
        ("the equator, northern side", 9.0, 0.05, "32NNF"),
    ],
)
def test_places_lie_in_their_mgrs_square(place: str, lon: float, lat: float, square: str) -> None:
    del place
    assert square in {name[:5] for name in names(around(lon, lat))}


def test_an_area_over_two_zones_gives_tiles_of_both() -> None:
    tiles = tiles_of_grid(box(11.5, 46.0, 13.0, 46.2), 4326, 1, 10)
    assert {tile.epsg for tile in tiles} == {32632, 32633}


def test_an_area_over_the_equator_gives_tiles_of_both_hemispheres() -> None:
    assert {tile.epsg for tile in tiles_of_grid(around(9.04, 0, 0.02), 4326, 1, 10)} == {32632, 32732}


def test_an_area_over_the_antimeridian_gives_tiles_of_zones_60_and_1() -> None:
    halves = MultiPolygon([box(179.5, -17, 180, -16.5), box(-180, -17, -178, -16.5)])
    assert names(halves) == names(box(179.5, -17, 182, -16.5))
    assert {name[:2] for name in names(halves)} == {"60", "01"}


def test_south_western_norway_has_no_tile_of_zone_31() -> None:
    assert {name[:2] for name in names(box(4.5, 60, 5.5, 61))} == {"32"}


def test_svalbard_has_no_tile_of_an_even_zone() -> None:
    assert {name[:2] for name in names(box(10, 77, 26, 80), grid_id=2)} == {"31", "33", "35"}


def test_the_square_that_only_touches_its_norwegian_strip_exists_as_in_the_sentinel_2_tiling() -> None:
    assert "31VED_0_0" in names(around(3.05, 57.73))


# ---- selection ----


def test_touching_along_an_edge_does_not_select_a_tile() -> None:
    assert names(box(500_000, 5_100_000, 510_000, 5_110_000), 32633) == ["33TWM_0_9"]
    assert len(names(box(499_999, 5_099_999, 510_001, 5_110_001), 32633)) == 9


def test_an_area_in_another_crs_selects_the_same_tiles() -> None:
    area = shapely.segmentize(box(14.0, 46.0, 14.6, 46.4), 0.01)
    convert = Transformer.from_crs(4326, 3035, always_xy=True).transform
    laea = shapely.transform(area, lambda points: np.column_stack(convert(points[:, 0], points[:, 1])))
    assert names(laea, 3035) == names(area)


def test_a_long_edge_is_followed_as_a_straight_line_of_its_own_crs() -> None:
    parallel = box(-3, 47.99, 3, 48.0)  # in UTM the parallel bends by more than a tile from its chord
    tiles = [lonlat_outline(tile) for tile in tiles_of_grid(parallel, 4326, 1, 10)]
    assert all(tile.intersects(parallel) for tile in tiles)
    assert shapely.union_all(tiles).buffer(1e-6).covers(parallel)


def test_a_hole_selects_no_tiles() -> None:
    ring = box(500_000, 5_100_000, 550_000, 5_150_000).difference(box(509_000, 5_109_000, 541_000, 5_141_000))
    assert len(names(ring, 32633)) == 25 - 9


def test_a_country_is_tiled_within_two_seconds(test_data: Path) -> None:
    border = pyogrio.read_dataframe(test_data / "reference" / "slovenia-border.geojson")
    start = time.perf_counter()
    tiles = tiles_of_grid(border.geometry.iloc[0], border.crs.to_epsg(), 1, 10)
    assert time.perf_counter() - start < 2
    assert len(tiles) == 260
    assert {tile.epsg for tile in tiles} == {32633}


@st.composite
def areas(draw: st.DrawFn) -> Polygon:
    lon, lat = draw(st.floats(-179, 179)), draw(st.floats(-80, 80))
    width, height = draw(st.floats(0.01, 0.6)), draw(st.floats(0.01, 0.3))
    return box(lon, lat, lon + width, lat + height)


@settings(max_examples=60, deadline=None)
@given(area=areas(), grid_id=st.sampled_from(sorted(LATITUDES)), data=st.data())
def test_every_point_of_an_area_is_in_a_tile_and_names_are_unique(
    area: Polygon, grid_id: int, data: st.DataObject
) -> None:
    tiles = tiles_of_grid(area, 4326, grid_id, GRIDS[grid_id].resolutions[0])
    found = [tile.name for tile in tiles]
    assert found == sorted(set(found))
    assert all(re.fullmatch(r"\d\d[C-X][A-Z][A-V]_\d_\d", name) for name in found)
    west, south, east, north = area.bounds
    lon, lat = data.draw(st.floats(west, east)), data.draw(st.floats(south, north))
    assert any(_contains(tile, lon, lat) for tile in tiles)


def _contains(tile: Tile, lon: float, lat: float) -> bool:
    point = Point(Transformer.from_crs(4326, tile.epsg, always_xy=True).transform(lon, lat))
    return bool(box(*tile.bounds).buffer(0.2).covers(point))


@settings(max_examples=40, deadline=None)
@given(area=areas(), grid_id=st.sampled_from(sorted(LATITUDES)))
def test_a_tile_is_found_again_by_its_own_outline(area: Polygon, grid_id: int) -> None:
    resolution = GRIDS[grid_id].resolutions[0]
    tile = tiles_of_grid(area, 4326, grid_id, resolution)[0]
    if max(abs(lat) for lat in lonlat_outline(tile).bounds[1::2]) <= LATITUDES[grid_id]:
        assert tile in tiles_of_grid(box(*tile.bounds), tile.epsg, grid_id, resolution)


# ---- refusals ----


def test_an_unknown_grid_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Tiling grid 5 is not known; choose one of 0 \(20km grid\), 1 \(10km grid\)"):
        tiles_of_grid(around(14, 46), 4326, 5, 10)


def test_a_resolution_that_the_grid_lacks_is_refused_with_those_it_has() -> None:
    message = r"Resolution 15 m is not offered by tiling grid 1 \(10km grid\); choose 10 or 20 m\."
    with pytest.raises(ValueError, match=message):
        tiles_of_grid(around(14, 46), 4326, 1, 15)


def test_an_area_beyond_the_grids_latitudes_is_refused() -> None:
    message = r"from latitude 79\.50° to 81\.50°, but tiling grid 1 \(10km grid\) covers -80\.6° to 80\.6°"
    with pytest.raises(ValueError, match=message):
        tiles_of_grid(around(14, 80.5, 1.0), 4326, 1, 10)


def test_a_self_crossing_area_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"not a valid polygon: Self-intersection\[0\.5 0\.5\]"):
        tiles_of_grid(Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), 4326, 1, 10)


@pytest.mark.parametrize("area", [Polygon(), Point(14, 46), shapely.LineString([(14, 46), (15, 46)])])
def test_an_area_without_a_surface_is_refused(area: BaseGeometry) -> None:
    with pytest.raises(ValueError, match="must be a polygon with a surface"):
        tiles_of_grid(area, 4326, 1, 10)


# ---- a tile ----


def test_a_tile_knows_its_resolution_and_transform() -> None:
    tile = Tile("x", 32633, (465181.0, 5079244.0, 466180.5, 5080254.0), 100, 101)
    assert tile.resolution == (9.995, 10.0)
    assert tile.transform * (0, 0) == (465181.0, 5080254.0)
    assert tile.transform * (100, 101) == (466180.5, 5079244.0)


def test_an_outline_across_the_antimeridian_is_in_one_piece() -> None:
    (tile,) = tiles_of_grid(around(179.999, -16.5), 4326, 1, 10)
    west, _, east, _ = lonlat_outline(tile).bounds
    assert 0 < east - west < 0.11
