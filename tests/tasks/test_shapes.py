"""Polygons as flat arrays against shapely, and points by polynomials against PROJ."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from tasks.grid import Tile
from tasks.reference import polygons as polygons_module
from tasks.reference.polygons import Surroundings, polygons_of_tile, zones_of
from tasks.reference.projection import transform_between
from tasks.reference.shapes import Geometries, joined, single_rings

SQUARE = shapely.box(500_000, 5_000_000, 500_100, 5_000_100)
BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
COMB = shapely.Polygon([(0, 0), (30, 0), (30, 20), (20, 20), (20, 1), (10, 1), (10, 20), (0, 20)])
HOLED = shapely.Polygon([(0, 0), (30, 0), (30, 20)], [[(10, 2), (12, 2), (12, 4)]])
ODD: dict[str, bytes | None] = {
    "null": None,
    "nothing": b"",
    "a point": shapely.to_wkb(shapely.Point(1, 2)),
    "an empty polygon": shapely.to_wkb(shapely.Polygon()),
    "a hole": shapely.to_wkb(HOLED),
    "several parts": shapely.to_wkb(shapely.MultiPolygon([BOW_TIE, COMB])),
    "heights": shapely.to_wkb(shapely.force_3d(SQUARE)),
    "big endian": shapely.to_wkb(SQUARE, byte_order=0),
    "an open ring": shapely.to_wkb(SQUARE)[:-8] + b"\0" * 8,
    "an end that is missing": shapely.to_wkb(SQUARE)[:-1],
    "more behind its end": shapely.to_wkb(SQUARE) + b"\0" * 16,
}


def wkb(*values: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind or pa.binary())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_rings_are_found_among_all_that_is_not_one(kind: pa.DataType) -> None:
    alone = shapely.to_wkb(shapely.MultiPolygon([COMB]))
    column = wkb(b"before", shapely.to_wkb(SQUARE), *ODD.values(), alone, kind=kind)[1:]  # a part of an array

    rows, rings = single_rings(column)

    assert rows.tolist() == [0, len(column) - 1]
    assert [shapely.get_parts(one).tolist() for one in rings.geometries()] == [[SQUARE], [COMB]]
    np.testing.assert_array_equal(rings.bounds, shapely.bounds([SQUARE, COMB]))


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_a_single_ring_alone_is_not_found(odd: str) -> None:
    rows, rings = single_rings(wkb(ODD[odd]))

    assert (len(rows), len(rings), rings.bounds.shape, len(rings.plain())) == (0, 0, (0, 4), 0)


def test_no_rows_have_no_rings() -> None:
    rows, rings = single_rings(wkb())

    assert (len(rows), len(rings.wkb())) == (0, 0)


def test_rings_and_geometries_give_the_same_multipolygons() -> None:
    polygons = np.array([SQUARE, COMB, shapely.MultiPolygon([BOW_TIE])], object)
    _, rings = single_rings(wkb(*shapely.to_wkb(polygons)))

    moved = [
        some.transformed(lambda points: points + 0.1).take(np.array([0, 2])) for some in (rings, Geometries(polygons))
    ]

    assert moved[0].wkb() == moved[1].wkb()
    assert set(shapely.get_type_id(shapely.from_wkb(moved[0].wkb()))) == {shapely.GeometryType.MULTIPOLYGON}


def test_multipolygons_are_taken_apart_and_joined_again() -> None:
    several = np.array([shapely.MultiPolygon([SQUARE, COMB]), HOLED, None, shapely.MultiPolygon([BOW_TIE])], object)

    parts, polygon = Geometries(several).parts()

    assert parts.geometries().tolist() == [SQUARE, COMB, HOLED, BOW_TIE]
    assert polygon.tolist() == [0, 0, 1, 3]
    assert joined(parts.wkb(), np.array([2, 1, 1])) == Geometries(several[[0, 1, 3]]).wkb()
    assert joined(parts.wkb()[:0], np.array([], np.int64)).to_pylist() == []


def test_a_square_is_plain_but_what_crosses_itself_or_is_not_seen_from_its_middle_is_not() -> None:
    double = shapely.Polygon([(0, 0), (9, 0), (0, 9), (-9, -9), (8, 0), (1, 9), (-8, -9)])  # twice around
    _, rings = single_rings(wkb(*shapely.to_wkb([SQUARE, shapely.reverse(SQUARE), BOW_TIE, COMB, double])))

    assert rings.plain().tolist() == [True, True, False, False, False]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-4, 1.0, 300.0]), st.sampled_from([None, 0.25]))
def test_no_ring_that_is_plain_is_invalid(seed: int, size: float, step: float | None) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(-1, 1, (200, random.integers(3, 9), 2))
    around = np.argsort(np.arctan2(corners[..., 1], corners[..., 0]), axis=1)
    some = random.uniform(size=200) < 0.8  # of which many are seen from their middle
    corners[some] = np.take_along_axis(corners, around[..., np.newaxis], axis=1)[some]
    corners = np.round(corners / step) * step if step else corners
    polygons = shapely.polygons(corners * size + (500_000, 5_000_000))

    rows, rings = single_rings(wkb(*shapely.to_wkb(polygons)))

    plain = rows[rings.plain()]
    assert shapely.is_valid(polygons[plain]).all()
    assert (shapely.area(polygons[plain]) > 0).all()


def test_plain_rings_of_real_land_use_are_valid_and_not_few(test_data: Path) -> None:
    polygons = pyogrio.read_dataframe(test_data / "reference" / "slovenia-land-use.gpkg").geometry.to_numpy()

    rows, rings = single_rings(wkb(*shapely.to_wkb(polygons)))

    plain = rows[rings.plain()]
    assert len(plain) > 0.3 * len(polygons)
    assert shapely.is_valid(polygons[plain]).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_all_bounds_that_meet_a_box_come_near_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 1e6, (random.integers(1, 30), 2))
    boxes = np.hstack([corner, corner + random.uniform(1, 1e5, corner.shape)])
    low = random.uniform(-2e5, 1.2e6, (300, 2))
    bounds = np.hstack([low, low + random.choice([1.0, 1e4, 1e6], (300, 1))])
    bounds[0, 2] = np.inf

    near = Surroundings(boxes).meet(bounds)

    meets = shapely.intersects(shapely.box(*bounds[1:].T)[:, np.newaxis], shapely.box(*boxes.T)).any(axis=1)
    assert near[1:][meets].all()
    assert not near[0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 4, 15, 60]),
    arranged=st.sampled_from(["grid", "grid with gaps", "anyhow"]),
    most_cells=st.sampled_from([polygons_module.MOST_CELLS, -1_000_000]),
    plain=st.booleans(),
)
def test_a_tile_gets_all_polygons_that_share_a_point_with_it_and_no_other(
    seed: int, size: int, arranged: str, most_cells: int, plain: bool
) -> None:
    random = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid([0, 10, 20, 30], [0, 10, 20]), -1).reshape(-1, 2)
    if arranged == "anyhow":
        corners = corners + random.integers(-8, 8, corners.shape)
    elif arranged == "grid with gaps":
        corners = corners[random.random(len(corners)) < 0.6]
    sides = random.integers(1, 25, len(corners)).tolist() if arranged == "anyhow" else [10] * len(corners)
    tiles = [
        Tile(f"t{n}", 32633, (x, y, x + side, y + side), side, side)
        for n, ((x, y), side) in enumerate(zip(corners.tolist(), sides, strict=True))
    ]
    low = random.integers(-20, 50, (200, 1, 2))  # whole numbers: many lie on the edges of tiles
    shapes = shapely.convex_hull(shapely.multipoints(low + random.integers(0, size + 1, (200, 5, 2))))
    shapes = shapes[shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON]
    place = np.arange(len(shapes))
    if plain:
        rows, given = single_rings(pa.array(shapely.to_wkb(shapes)))
        np.testing.assert_array_equal(rows, place)
    else:
        shapes[0] = None
        given = Geometries(shapes)
    columns = {"order": place, "id": np.ones(len(shapes), np.int16), "name": place.astype(str).astype(object)}

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons_module, "MOST_CELLS", most_cells)
        touched = np.zeros(len(shapes), np.bool_)
        for zone in zones_of(tiles, Path(folder)):
            touched = zone.add(given, repaired=np.zeros(len(shapes), np.bool_), **columns)
            zone.close()
        found = [polygons_of_tile(Path(folder), tile) for tile in tiles]

    expected = [shapely.intersects(shapely.box(*tile.bounds), shapes) for tile in tiles]
    np.testing.assert_array_equal(touched, np.any([touched & False, *expected], axis=0))
    for one, among in zip(found, expected, strict=True):
        assert one is not None
        assert [int(name) for name in one.names.to_pylist()] == np.flatnonzero(among).tolist()


def test_bounds_far_from_all_boxes_do_not_come_near() -> None:
    boxes = np.array([[0, 0, 10, 10], [990, 990, 1000, 1000]], float)
    bounds = np.array([[500, 500, 501, 501], [-9, -9, -8, -8], [2000, 5, 2001, 6], [5, 980, 6, 981]], float)

    assert not Surroundings(boxes).meet(bounds).any()


@pytest.mark.parametrize(
    ("source", "target", "low", "high"),
    [
        (3035, 32633, (4.4e6, 2.6e6), (4.5e6, 2.7e6)),
        (4326, 32633, (13, 46), (14, 47)),
        (3794, 32633, (4.4e5, 5e4), (5e5, 1.5e5)),
        (2154, 32631, (6e5, 6.6e6), (9e5, 6.9e6)),
        (3857, 32633, (1.4e6, 5.8e6), (1.5e6, 5.9e6)),
        (3035, 4326, (4.4e6, 2.6e6), (4.5e6, 2.7e6)),
        (2263, 32618, (9.2e5, 1.3e5), (1.02e6, 2.3e5)),  # US feet
        (4326, 32633, (3, 36), (23, 56)),  # 400 cells
        (3035, 32633, (4.4e6, 2.6e6), (4.4e6, 2.7e6)),  # a line
    ],
)
def test_many_points_come_where_proj_brings_them(
    source: int, target: int, low: tuple[float, float], high: tuple[float, float]
) -> None:
    points = np.random.default_rng(0).uniform(low, high, (400_000, 2))

    moved = transform_between(CRS.from_epsg(source), CRS.from_epsg(target))(points)

    exact = projected(source, target, points)
    assert np.abs(moved - exact).max() < (1e-10 if target == 4326 else 1e-5)
    assert not np.array_equal(moved, exact)  # or nothing was tested


def projected(source: int, target: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack(Transformer.from_crs(source, target, always_xy=True).transform(*points.T))


def test_cells_with_few_points_or_none_in_between_do_not_matter() -> None:
    random = np.random.default_rng(0)
    places = np.array([[4.4e6, 2.6e6], [4.4e6, 2.75e6], [4.65e6, 2.6e6]])  # an L, with much nothing within
    points = places[random.integers(0, 3, 300_000)] + random.uniform(0, [[8e4, 3e4]], (300_000, 2))
    points = np.append(points, [[4.65e6, 2.78e6]], axis=0)

    moved = transform_between(CRS.from_epsg(3035), CRS.from_epsg(32633))(points)

    exact = projected(3035, 32633, points)
    assert np.abs(moved - exact).max() < 1e-5
    assert not np.array_equal(moved, exact)


def test_points_at_the_edges_of_cells_stay_where_they_are() -> None:
    points = np.random.default_rng(0).uniform((-1.5, 46), (1.5, 49), (300_000, 2))
    points[:4] = [[-1.5, 46], [1.5, 49], [-1.5, 49], [1.5, 46]]
    edges = np.array([-0.5, 0.5])
    points[4:10, 0] = np.concatenate([edges, np.nextafter(edges, -2), np.nextafter(edges, 2)])
    points[10:16, 1] = np.concatenate([edges, np.nextafter(edges, -2), np.nextafter(edges, 2)]) + 47.5
    points[16] = [-1e-17, 47.5]

    moved = transform_between(CRS.from_epsg(4326), CRS.from_epsg(32630))(points)

    exact = projected(4326, 32630, points)
    assert np.abs(moved - exact).max() < 1e-5
    assert not np.array_equal(moved, exact)


@pytest.mark.parametrize(
    ("source", "target", "low"),
    [(5514, 32633, (-626247, -1117592)), (27700, 32630, (3e5, 2e5)), (31370, 32631, (1.2e5, 1.2e5))],
)
def test_where_proj_chooses_among_operations_that_differ_points_are_its_own(
    source: int, target: int, low: tuple[float, float]
) -> None:
    points = np.random.default_rng(0).uniform(low, np.add(low, 1e5), (100_000, 2))

    moved = transform_between(CRS.from_epsg(source), CRS.from_epsg(target))(points)

    np.testing.assert_array_equal(moved, projected(source, target, points))


def test_few_points_and_those_that_the_projection_cannot_hold_are_projs_own() -> None:
    exact = Transformer.from_crs(4326, 32633, always_xy=True)
    convert = transform_between(CRS.from_epsg(4326), CRS.from_epsg(32633))
    few = np.random.default_rng(0).uniform((13, 46), (14, 47), (900, 2))
    nowhere = np.append(
        np.random.default_rng(0).uniform((104.9, -0.1), (105.1, 0.1), (99_999, 2)), [[np.nan, 0]], axis=0
    )

    for points in (few, nowhere, nowhere[:-1], np.empty((0, 2))):
        np.testing.assert_array_equal(convert(points), np.column_stack(exact.transform(*points.T)))


def test_where_a_transformation_has_a_kink_points_are_projs_own() -> None:
    across = CRS.from_proj4("+proj=igh +lon_0=0 +ellps=WGS84")  # interrupted at 40 degrees west
    at_the_kink = np.random.default_rng(0).uniform((-40.05, 20), (-39.95, 20.1), (1000, 2))
    elsewhere = np.random.default_rng(0).uniform((-38.9, 20), (-38.1, 20.1), (100_000, 2))
    exact = Transformer.from_crs(4326, across, always_xy=True)

    moved = transform_between(CRS.from_epsg(4326), across)(np.concatenate([at_the_kink, elsewhere]))

    np.testing.assert_array_equal(moved[:1000], np.column_stack(exact.transform(*at_the_kink.T)))
    expected = np.column_stack(exact.transform(*elsewhere.T))
    assert 0 < np.abs(moved[1000:] - expected).max() < 1e-5
