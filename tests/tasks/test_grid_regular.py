"""The grids in one CRS, 3, 6 and 7: the service's descriptors, and what a tiling has to fulfil."""

import hashlib
import re

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from shapely import MultiPolygon, Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

from tasks.grid import EUROPE, GRIDS, Tile, tiles_of_grid

LAEA_GRIDS = [6, 7]
DEGREE_NAME = re.compile(r"([EW])(\d{3})([NS])(\d{2})")
LAEA_NAME = re.compile(r"(100|20)kmE(\d+)N(\d+)")


def tiles(area: BaseGeometry, crs: int = 4326, grid_id: int = 3) -> list[Tile]:
    return tiles_of_grid(area, crs, grid_id, GRIDS[grid_id].resolutions[0])


def names(area: BaseGeometry, crs: int = 4326, grid_id: int = 3) -> list[str]:
    return [tile.name for tile in tiles(area, crs, grid_id)]


def corner(name: str) -> tuple[float, float]:
    """The lower-left corner that a name tells."""
    if match := DEGREE_NAME.fullmatch(name):
        east, north = int(match[2]), int(match[4])
        return (-east if match[1] == "W" else east), (-north if match[3] == "S" else north)
    match = LAEA_NAME.fullmatch(name)
    assert match is not None, name
    unit = {"100": 100_000, "20": 10_000}[match[1]]
    return int(match[2]) * unit, int(match[3]) * unit


def to(crs: int, geometry: BaseGeometry, edge: float = 0.01) -> BaseGeometry:
    """A geometry of longitudes and latitudes in another CRS, with many points along its edges."""
    convert = Transformer.from_crs(4326, crs, always_xy=True).transform
    return shapely.transform(shapely.segmentize(geometry, edge), lambda points: np.column_stack(convert(*points.T)))


@pytest.mark.parametrize(
    ("grid_id", "name", "size", "resolutions", "chunks", "single_crs", "unit"),
    [
        (0, "20km grid", 20040.0, [10, 20, 60], (334, 167), False, "METRE"),
        (1, "10km grid", 10000.0, [10, 20], (500, 500), False, "METRE"),
        (2, "100km grid", 100080.0, [60, 120, 240, 360], (278, 278), False, "METRE"),
        (
            3,
            "WGS84 1 degree grid",
            1.0,
            [0.0001, 0.0002, 0.0005, 0.0008, 0.001, 0.002, 0.005, 0.008],
            (500, 500),
            True,
            "DEGREE",
        ),
        (6, "LAEA 100km grid", 100000.0, [40, 50, 100], (0, 0), True, "METRE"),
        (7, "LAEA 20km grid", 20000.0, [10, 20], (0, 0), True, "METRE"),
    ],
)
def test_the_grids_are_as_the_service_describes_them(
    grid_id: int,
    name: str,
    size: float,
    resolutions: list[float],
    chunks: tuple[int, int],
    single_crs: bool,
    unit: str,
) -> None:
    grid = GRIDS[grid_id]
    assert (grid.name, grid.tile_size, list(grid.resolutions)) == (name, size, resolutions)
    assert ((grid.chunk_width, grid.chunk_height), grid.single_crs, grid.unit) == (chunks, single_crs, unit)
    assert all(abs(size / resolution - grid.pixels(resolution)) < 1e-6 for resolution in resolutions)


def test_there_are_no_grids_4_and_5() -> None:
    assert sorted(GRIDS) == [0, 1, 2, 3, 6, 7]


# ---- tiles by name ----


def test_a_degree_tile_is_named_by_its_lower_left_corner() -> None:
    assert tiles_of_grid(box(14.2, 45.3, 14.4, 45.5), 4326, 3, 0.0001) == [
        Tile("E014N45", 4326, (14.0, 45.0, 15.0, 46.0), 10_000, 10_000)
    ]
    assert names(box(-0.5, -0.5, 0.5, 0.5)) == ["E000N00", "E000S01", "W001N00", "W001S01"]


def test_laea_tiles_are_named_in_the_style_of_inspire() -> None:
    ljubljana = to(3035, box(14.50, 46.06, 14.51, 46.07))
    assert tiles_of_grid(ljubljana, 3035, 6, 40) == [
        Tile("100kmE46N25", 3035, (4_600_000, 2_500_000, 4_700_000, 2_600_000), 2500, 2500)
    ]
    assert tiles_of_grid(ljubljana, 3035, 7, 20) == [
        Tile("20kmE466N256", 3035, (4_660_000, 2_560_000, 4_680_000, 2_580_000), 1000, 1000)
    ]
    assert names(box(*EUROPE[:2], EUROPE[0] + 1, EUROPE[1] + 1), 3035, 7) == ["20kmE090N090"]


# ---- what a tiling has to fulfil ----


@st.composite
def lonlat_areas(draw: st.DrawFn) -> Polygon:
    """Small areas anywhere, also such that go on beyond the antimeridian."""
    west, south = draw(st.floats(-180, 180)), draw(st.floats(-90, 87))
    return box(west, south, west + draw(st.floats(0.01, 4)), south + draw(st.floats(0.01, 3)))


@st.composite
def laea_areas(draw: st.DrawFn) -> Polygon:
    west = draw(st.floats(EUROPE[0], EUROPE[2] - 300_000))
    south = draw(st.floats(EUROPE[1], EUROPE[3] - 300_000))
    return box(west, south, west + draw(st.floats(100, 300_000)), south + draw(st.floats(100, 300_000)))


def check_tiling(found: list[Tile], area: BaseGeometry, size: float) -> None:
    """Tiles are named by their place, cover the area, do not overlap, and none is idle."""
    assert [tile.name for tile in found] == sorted({tile.name for tile in found})
    assert all(tile.bounds[:2] == corner(tile.name) for tile in found)
    boxes = shapely.box(*np.array([tile.bounds for tile in found]).T)
    covered = shapely.union_all(boxes)
    assert covered.area == pytest.approx(len(found) * size**2)
    assert area.difference(covered).area <= 1e-5 * size * area.length
    assert shapely.intersects(boxes, area).all()


@settings(max_examples=60, deadline=None)
@given(area=lonlat_areas())
def test_degree_tiles_cover_an_area_anywhere_without_overlap_under_reversible_names(area: Polygon) -> None:
    turns = (affinity.translate(area, xoff=turn) for turn in (0, -360))
    within = shapely.union_all([turned & box(-180, -90, 180, 90) for turned in turns])
    check_tiling(tiles(area), within, 1.0)


@settings(max_examples=60, deadline=None)
@given(area=laea_areas(), grid_id=st.sampled_from(LAEA_GRIDS))
def test_laea_tiles_cover_an_area_of_europe_without_overlap_under_reversible_names(area: Polygon, grid_id: int) -> None:
    check_tiling(tiles(area, 3035, grid_id), area, GRIDS[grid_id].tile_size)


@settings(max_examples=30, deadline=None)
@given(grid_id=st.sampled_from([3, *LAEA_GRIDS]), lon=st.floats(-9, 30), lat=st.floats(36, 68), data=st.data())
def test_any_point_of_an_area_in_another_crs_lies_in_a_tile(
    grid_id: int, lon: float, lat: float, data: st.DataObject
) -> None:
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(lon, lat)
    area = box(x, y, x + 150_000, y + 80_000)
    at = data.draw(st.floats(x, x + 150_000)), data.draw(st.floats(y, y + 80_000))
    target = 4326 if grid_id == 3 else 3035
    point = Point(Transformer.from_crs(32633, target, always_xy=True).transform(*at))
    slack = GRIDS[grid_id].tile_size * 1e-4  # an edge of the area bends by a metre or two between its points
    assert any(box(*tile.bounds).buffer(slack).covers(point) for tile in tiles(area, 32633, grid_id))


# ---- selection ----


def test_touching_along_an_edge_does_not_select_a_tile() -> None:
    assert names(box(14, 45, 15, 46)) == ["E014N45"]
    assert len(names(box(14 - 1e-4, 45 - 1e-4, 15 + 1e-4, 46 + 1e-4))) == 9
    assert names(box(4_600_000, 2_500_000, 4_700_000, 2_600_000), 3035, 6) == ["100kmE46N25"]
    assert len(names(box(4_599_999, 2_499_999, 4_700_001, 2_600_001), 3035, 6)) == 9


def test_a_hole_selects_no_degree_tiles() -> None:
    ring = box(10.1, 40.1, 14.9, 44.9).difference(box(10.9, 40.9, 14.1, 44.1))
    assert len(names(ring)) == 25 - 9


def test_the_curved_edge_of_an_area_in_degrees_is_followed_in_laea() -> None:
    parallel = box(-8, 54.99, 28, 55.0)  # its chord lies 170 km off
    found = tiles(parallel, 4326, 7)
    dense = to(3035, parallel, 0.001)
    assert all(box(*tile.bounds).intersects(dense) for tile in found)
    assert shapely.union_all(shapely.box(*np.array([tile.bounds for tile in found]).T)).buffer(5).covers(dense)


def test_an_area_over_the_antimeridian_gives_degree_tiles_of_both_sides() -> None:
    expected = ["E179S17", "W180S17"]
    assert names(box(179.5, -16.8, 180.5, -16.2)) == expected
    assert names(box(-180.5, -16.8, -179.5, -16.2)) == expected
    assert names(MultiPolygon([box(179.5, -16.8, 180, -16.2), box(-180, -16.8, -179.5, -16.2)])) == expected
    assert names(to(3832, box(179.5, -16.8, 180.5, -16.2)), 3832) == expected
    assert names(to(32760, box(179.5, -16.8, 180.5, -16.2)), 32760) == expected


@pytest.mark.parametrize(("crs", "row", "pole"), [(3413, "N89", 1), (3031, "S90", -1), (3995, "N89", 1)])
def test_an_area_around_a_pole_gives_the_degree_tiles_of_all_longitudes(crs: int, row: str, pole: int) -> None:
    around_pole = names(box(-100_000, -100_000, 100_000, 100_000), crs)  # 0.9 degrees of latitude; 1.3 in the corners
    assert sum(name.endswith(row) for name in around_pole) == 360
    assert len(around_pole) > 360
    annulus = Point(0, 0).buffer(200_000).difference(Point(0, 0).buffer(150_000))
    assert not any(name.endswith(row) for name in names(annulus, crs))
    latitude = Transformer.from_crs(crs, 4326, always_xy=True).transform(0, 150_000)[1]
    assert len(names(annulus, crs)) == 360, f"one row of latitude {latitude * pole:.2f}"


def test_an_area_beyond_90_degrees_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"beyond what tiling grid 3 \(WGS84 1 degree grid\) covers, .* y -90 to 90 in"
    ):
        tiles(box(0, 89, 1, 90.5))


@pytest.mark.parametrize(
    ("place", "lon", "lat"),
    [
        ("Iceland", -24.5, 65.5),
        ("Svalbard", 33.4, 80.2),
        ("Svalbard's northernmost island", 20.8, 80.8),
        ("the Azores", -31.27, 39.5),
        ("the Canaries", -18.16, 27.7),
        ("eastern Turkey", 44.8, 39.6),
        ("Cyprus", 33.0, 34.6),
    ],
)
@pytest.mark.parametrize("grid_id", LAEA_GRIDS)
def test_the_laea_grids_cover_the_documented_places(place: str, lon: float, lat: float, grid_id: int) -> None:
    del place
    assert tiles(box(lon, lat, lon + 0.01, lat + 0.01), 4326, grid_id)


@pytest.mark.parametrize(
    "area", [box(-70, 40, -69, 41), box(150, -34, 151, -33), box(-180, -90, 180, 90), box(-190, 10, -170, 20)]
)
@pytest.mark.parametrize("grid_id", LAEA_GRIDS)
def test_the_laea_grids_refuse_an_area_beyond_europe(area: Polygon, grid_id: int) -> None:
    message = r"beyond what tiling grid \d \(LAEA \d+km grid\) covers, x 900,000 to 7,400,000 .* in EPSG:3035"
    with pytest.raises(ValueError, match=message):
        tiles(area, 4326, grid_id)


def test_a_resolution_in_degrees_is_refused_with_its_unit() -> None:
    message = r"Resolution 10° is not offered by tiling grid 3 \(WGS84 1 degree grid\); choose 0.0001, .* or 0.008°\."
    with pytest.raises(ValueError, match=message):
        tiles_of_grid(box(14, 45, 15, 46), 4326, 3, 10)
    with pytest.raises(ValueError, match=r"grid 7 \(LAEA 20km grid\); choose 10 or 20 m\."):
        tiles_of_grid(box(14, 45, 15, 46), 4326, 7, 40)


# ---- a tile in degrees ----


def test_the_pixels_of_a_degree_tile_are_known_in_metres() -> None:
    (tile,) = tiles_of_grid(box(14.2, 59.3, 14.4, 59.5), 4326, 3, 0.0001)
    assert tile.resolution == (0.0001, 0.0001)
    assert tile.resolution_m == pytest.approx((5.65, 11.13), rel=2e-3)  # cos 59.5 = 0.5075
    assert tiles(box(4_600_000, 2_500_000, 4_600_001, 2_500_001), 3035, 7)[0].resolution_m == (10, 10)


# ---- ids ----


def test_tiles_have_stable_ids_of_63_bits_that_differ_from_grid_to_grid() -> None:
    (tile,) = tiles_of_grid(box(14.2, 45.3, 14.4, 45.5), 4326, 3, 0.001)
    digest = hashlib.blake2b(b"3/E014N45", digest_size=8).hexdigest()
    assert tile.id == int(digest, 16) // 2 < 2**63
    ids = [tile.id for grid_id in GRIDS for tile in tiles(box(14, 45, 16, 46), 4326, grid_id)]
    assert len(set(ids)) == len(ids) > 200


def test_the_id_of_a_tile_does_not_depend_on_the_resolution() -> None:
    at = box(14.2, 45.3, 14.21, 45.31)
    assert [[tile.id for tile in tiles_of_grid(at, 4326, 1, resolution)] for resolution in (10, 20)] == [
        [tile.id for tile in tiles(at, 4326, 1)]
    ] * 2
