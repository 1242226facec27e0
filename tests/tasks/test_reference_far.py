"""Polygons that are large, or lie where a CRS ends, against the place of each pixel's centre in their own CRS."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from tasks.grid import Tile
from tasks.reference import Reference, burn, prepare_reference
from tasks.reference.antimeridian import turn_of
from tasks.reference.polygons import polygons_of_tile
from tasks.reference.shapes import Geometries, single_rings
from tasks.storage import Storage
from tests.tasks.test_shapes import wkb

WEB_TURN_M = 2 * np.pi * 6_378_137
WORLD = shapely.box(-180, -60, 180, 80)


def tile_at(longitude: float, latitude: float, epsg: int, side_px: int = 300, name: str = "t") -> Tile:
    """A tile of pixels of 10 m around a place."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude, latitude)
    x, y, half = round(x, -1), round(y, -1), side_px * 5
    return Tile(name, epsg, (x - half, y - half, x + half, y + half), side_px, side_px)


def labels(path: Path, shapes: list[Any], crs: int | CRS, tiles: list[Tile]) -> list[NDArray[np.uint8]]:
    """Labels of tiles by polygons of the classes 1, 2 and so on."""
    frame = gpd.GeoDataFrame({"LULC_ID": np.arange(1, len(shapes) + 1)}, geometry=shapes, crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyogrio.write_dataframe(frame, path)
    prepare_reference(Reference(file=str(path)), Storage(), tiles, path.parent / "work")
    found = [polygons_of_tile(path.parent / "work", tile) for tile in tiles]
    return [
        burn(one.wkb, one.ids, tile).classes if one else np.empty(0, np.uint8)
        for one, tile in zip(found, tiles, strict=True)
    ]


def expected(shapes: list[Any], crs: int | CRS, tile: Tile, shifts: tuple[float, ...] = (0.0,)) -> NDArray[np.uint8]:
    """What lies at the centre of each pixel; there, and so far from there."""
    columns, rows = np.meshgrid(np.arange(tile.width) + 0.5, np.arange(tile.height) + 0.5)
    x, y = Transformer.from_crs(tile.epsg, crs, always_xy=True).transform(*(tile.transform * (columns, rows)))
    classes = np.zeros(x.shape, np.uint8)
    for number, shape in enumerate(shapes, start=1):
        classes[np.any([shapely.contains_xy(shape, x + shift, y) for shift in shifts], axis=0)] = number
    return classes


# ---- long edges ----


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("degrees", "latitude"), [(0.25, 60), (1, 46), (5, 60), (20, 75), (60, -30)])
def test_a_long_edge_along_a_parallel_is_as_bent_as_the_parallel(
    tmp_path: Path, degrees: float, latitude: float, plain: bool
) -> None:
    tile = tile_at(15, latitude, 32633 if latitude > 0 else 32733)
    edge = shapely.box(15 - degrees / 2, latitude - 1, 15 + degrees / 2, latitude)
    south = edge if plain else edge.difference(shapely.box(15, latitude - 0.9, 15.01, latitude - 0.8))

    (found,) = labels(tmp_path / "r.gpkg", [south], 4326, [tile])

    wanted = expected([south], 4326, tile)
    assert {0, 1} == set(np.unique(wanted))
    assert np.count_nonzero(found != wanted) <= tile.width // 10  # a tenth of a pixel


@pytest.mark.parametrize("source", [3035, 3857, 32631, 4087])
@pytest.mark.parametrize("target", [32633, 4326])
@pytest.mark.parametrize("side_m", [10_000, 100_000, 700_000])
def test_a_large_square_of_any_projection_has_the_edges_that_it_has_there(
    tmp_path: Path, source: int, target: int, side_m: float
) -> None:
    x, y = Transformer.from_crs(4326, source, always_xy=True).transform(14.3, 47.2)
    square = shapely.affinity.rotate(shapely.box(x - side_m / 2, y - side_m, x + side_m / 2, y), 20, (x, y))
    degrees = Tile("t", 4326, (14.28, 47.18, 14.32, 47.22), 400, 400)
    tile = degrees if target == 4326 else tile_at(14.3, 47.2, target)

    (found,) = labels(tmp_path / "r.parquet", [square], source, [tile])

    wanted = expected([square], source, tile)
    assert {0, 1} == set(np.unique(wanted))
    assert np.count_nonzero(found != wanted) <= tile.width // 10


def test_points_are_added_to_rings_as_geos_adds_them() -> None:
    random = np.random.default_rng(0)
    triangles = shapely.polygons(random.uniform(0, 10, (50, 3, 2)))
    triangles[7] = shapely.Polygon([(0, 0), (0, 0), (9, 0), (9, 9), (0, 0)])  # an edge of no length
    _, rings = single_rings(wkb(*shapely.to_wkb(triangles)))
    places = np.arange(0, 50, 7)

    found = rings.segmentized(places, 1.3)

    geos = shapely.from_wkb(Geometries(triangles).segmentized(places, 1.3).wkb().to_pylist())
    ours = shapely.remove_repeated_points(shapely.from_wkb(found.wkb().to_pylist()))  # as GEOS does by the way
    np.testing.assert_array_equal(shapely.get_num_coordinates(ours), shapely.get_num_coordinates(geos))
    np.testing.assert_allclose(shapely.get_coordinates(ours), shapely.get_coordinates(geos), atol=1e-12)
    assert len(found.points) > len(rings.points)
    assert rings.segmentized(places[:0], 1.3) is rings


# ---- more than a projection can hold ----


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
@pytest.mark.parametrize(
    "shape",
    [
        WORLD,
        shapely.segmentize(WORLD, 1),
        shapely.box(-170, -60, 175, 80),
        shapely.box(-60, -10, 100, 80),
        shapely.box(-180, -90, 180, 90),
        WORLD.difference(shapely.box(15, 46, 16, 47)),
        shapely.segmentize(WORLD.difference(shapely.box(15, 46, 16, 47)), 1),
        shapely.MultiPolygon([shapely.box(-180, -60, 15, 46), shapely.box(15.01, 46, 180, 80)]),
    ],
    ids=["world", "with points", "nearly", "half", "pole to pole", "ocean", "ocean with points", "two"],
)
def test_what_reaches_around_the_earth_is_neither_lost_nor_inside_out(tmp_path: Path, shape: Any, suffix: str) -> None:
    tiles = [tile_at(15, 46, 32633, name="a"), tile_at(-70, -30, 32719, name="b"), tile_at(15.5, 46.5, 32633, name="c")]

    found = labels(tmp_path / f"r.{suffix}", [shape], 4326, tiles)

    for got, tile in zip(found, tiles, strict=True):
        assert np.count_nonzero(got != expected([shape], 4326, tile)) <= 2 * tile.width // 10


def test_the_world_on_a_web_map_is_everywhere(tmp_path: Path) -> None:
    world = shapely.box(-WEB_TURN_M / 2, -2e7, WEB_TURN_M / 2, 2e7)
    tiles = [tile_at(15, 46, 32633, name="a"), tile_at(-179.99, -17, 32701, name="b")]

    assert [one.min() for one in labels(tmp_path / "r.gpkg", [world], 3857, tiles)] == [1, 1]


@pytest.mark.parametrize("crs", ["EPSG:8857", "ESRI:54009", "ESRI:54030", "EPSG:6933", "EPSG:4087", "EPSG:3395"])
@pytest.mark.parametrize("hole", [0, 700])
def test_the_world_of_any_projection_is_everywhere_but_in_its_hole(tmp_path: Path, crs: str, hole: float) -> None:
    project = Transformer.from_crs(4326, crs, always_xy=True).transform
    world = shapely.transform(
        shapely.segmentize(shapely.box(-179.9, -60, 179.9, 80), 1), lambda points: np.column_stack(project(*points.T))
    )
    world = world.difference(shapely.Point(project(15, 46)).buffer(hole)) if hole else world
    tiles = [tile_at(15, 46, 32633, name="a"), tile_at(-70, -30, 32719, name="b")]

    found = labels(tmp_path / "r.parquet", [world], CRS(crs), tiles)

    assert [one.any() for one in found] == [True, True]
    for got, tile in zip(found, tiles, strict=True):
        assert np.count_nonzero(got != expected([world], CRS(crs), tile)) <= tile.width // 10


@pytest.mark.parametrize("place", [(15, 70), (-150, 80)])
def test_a_square_around_the_pole_that_is_wider_than_a_quarter_turn_is_not_lost(
    tmp_path: Path, place: tuple[float, float]
) -> None:
    tile = tile_at(*place, 32633 if place[0] > 0 else 32606)

    (found,) = labels(tmp_path / "r.parquet", [shapely.box(-5.2e6, -5.2e6, 5.2e6, 5.2e6)], 3413, [tile])

    assert found.min() == 1


# ---- at the antimeridian ----


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet"])
@pytest.mark.parametrize(
    ("source", "turn"), [(4326, 360.0), (3857, WEB_TURN_M), (3395, WEB_TURN_M), (4087, WEB_TURN_M)]
)
@pytest.mark.parametrize("turned", [0, -1, 1])
def test_polygons_across_the_antimeridian_label_both_sides_wherever_their_longitudes_begin(
    tmp_path: Path, source: int, turn: float, turned: int, suffix: str
) -> None:
    tiles = [
        tile_at(longitude, -17, epsg, 100, f"{epsg}_{longitude}")
        for longitude in (179.97, 180.0, -179.97, -179.0)
        for epsg in (32760, 32701)
    ]
    unit = turn / 360
    south, middle, north = Transformer.from_crs(4326, source, always_xy=True).transform([0] * 3, [-19, -17, -15])[1]
    shapes = [
        shapely.box(177 * unit, south, 180.972 * unit, middle),
        shapely.box(179.969 * unit, middle, 179.999 * unit, north),
        shapely.box(180.031 * unit, middle, 183 * unit, north),
    ]
    if turned == 0:
        west, east = shapely.box(0, south, turn / 2, north), shapely.box(turn / 2, south, turn, north)
        shapes = [
            shapely.union_all([shape.intersection(west), shapely.affinity.translate(shape.intersection(east), -turn)])
            for shape in shapes
        ]
    else:
        shapes = [shapely.affinity.translate(shape, 0 if turned > 0 else -turn) for shape in shapes]

    found = labels(tmp_path / f"r.{suffix}", shapes, source, tiles)

    for got, tile in zip(found, tiles, strict=True):
        wanted = expected(shapes, source, tile, (0.0, turn, -turn))
        assert np.count_nonzero(got != wanted) <= 2 * tile.width // 10
    assert {0, 1, 2, 3} == set(np.unique(found))


def test_tiles_across_the_antimeridian_are_labelled_by_the_world(tmp_path: Path) -> None:
    tiles = [tile_at(longitude, -17, 32760, 100, str(longitude)) for longitude in (178.0, 180.0)]
    land = shapely.box(179.999, -18, 180, -16)

    found = labels(tmp_path / "r.gpkg", [WORLD.difference(land)], 4326, tiles)

    for got, tile in zip(found, tiles, strict=True):
        assert np.count_nonzero(got != expected([WORLD.difference(land)], 4326, tile)) <= tile.width // 10
    assert found[1].min() == 0


def tile_in(epsg: int, longitude: float, latitude: float, size_deg: float = 0.03) -> Tile:
    """A tile of 100 pixels a side around a place, in a CRS that goes around the Earth."""
    project = Transformer.from_crs(4326, epsg, always_xy=True).transform
    x, y = project(longitude, latitude)
    half = (project(10 + size_deg, 0)[0] - project(10, 0)[0]) / 2
    return Tile(f"{longitude}_{latitude}", epsg, (x - half, y - half, x + half, y + half), 100, 100)


@pytest.mark.parametrize("target", [4326, 3857, 3395])
@pytest.mark.parametrize("source", [32760, 3460, 3832])
@pytest.mark.parametrize(
    "holes",
    [
        [],
        [(-3700, -700, -2300, 700), (-700, -700, 700, 700), (2300, 300, 3700, 1700)],
        [(-2000, -5000, -1000, 5000), (1000, -5000, 1500, 5000), (-500, 100, 300, 700)],
    ],
    ids=["whole", "holes", "parts"],
)
def test_polygons_across_the_edge_of_the_tiles_crs_label_both_sides(
    tmp_path: Path, source: int, target: int, holes: list[tuple[float, ...]]
) -> None:
    x, y = Transformer.from_crs(4326, source, always_xy=True).transform(180.0, -17.0)
    land = shapely.Point(x, y).buffer(5000)
    for hole in holes:
        land = land.difference(shapely.affinity.translate(shapely.box(*hole), x, y))
    tiles = [tile_in(target, longitude, -17) for longitude in (179.96, 179.985, -179.985, -179.96, 179.9, 0)]

    found = labels(tmp_path / "r.gpkg", [land], source, tiles)

    for got, tile in zip(found, tiles, strict=True):
        assert np.count_nonzero(got != expected([land], source, tile)) <= tile.width // 10
    assert [set(np.unique(one)) for one in found[-2:]] == [{0}, {0}]


@pytest.mark.parametrize("target", [4326, 4087])
@pytest.mark.parametrize(("source", "pole"), [(3413, 1), (3031, -1)])
@pytest.mark.parametrize("hole", [0, 200_000])
def test_polygons_around_a_pole_reach_up_to_it(
    tmp_path: Path, source: int, pole: int, target: int, hole: float
) -> None:
    land = shapely.Point(50_000, 20_000).buffer(600_000).difference(shapely.Point(30_000, 0).buffer(hole))
    places = [(longitude, 87 * pole) for longitude in (0, 44.9, 179.9, -179.9)]
    edges = [(longitude, latitude * pole) for longitude in (-135, 100) for latitude in (84.65, 88.2, 89.9)]
    tiles = [tile_in(target, *place, 0.2) for place in (*places, *edges)]

    found = labels(tmp_path / "r.gpkg", [land], source, tiles)

    for got, tile in zip(found, tiles, strict=True):
        assert np.count_nonzero(got != expected([land], source, tile)) <= tile.width // 10
    assert [one.min() for one in found[:4]] == [1] * 4


@pytest.mark.parametrize(("crs", "turn"), [(4326, 360.0), (3857, WEB_TURN_M), (3395, WEB_TURN_M), (4087, WEB_TURN_M)])
@pytest.mark.parametrize("turned", [0, -1])
def test_polygons_in_the_tiles_own_crs_go_on_beyond_its_edge(
    tmp_path: Path, crs: int, turn: float, turned: int
) -> None:
    tiles = [tile_in(crs, longitude, -17) for longitude in (179.97, -179.97, 179.9, -179.9)]
    middle = (turned + 0.5) * turn
    y = tiles[0].bounds[1]
    land = shapely.box(middle - turn / 7000, y, middle + turn / 7000, y + turn / 20_000)

    found = labels(tmp_path / "r.gpkg", [land], crs, tiles)

    for got, tile in zip(found, tiles, strict=True):
        wanted = expected([land], crs, tile, (0.0, turn, -turn))
        np.testing.assert_array_equal(got, wanted)
    assert [one.any() for one in found] == [True, True, False, False]


@pytest.mark.parametrize("crs", [4326, 3857, 3395, 3994, "ESRI:54034", "+proj=cea +lon_0=150 +units=us-ft +type=crs"])
def test_a_turn_later_proj_is_at_the_same_place(crs: Any) -> None:
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(15, 46)
    project = Transformer.from_crs(crs, 32633, always_xy=True).transform

    np.testing.assert_allclose(project(x + turn_of(CRS(crs)), y), project(x, y), atol=1e-4)


@pytest.mark.parametrize("crs", [32633, 3035, 3413, 8857, "ESRI:54008", "ESRI:54030", 2056, 4978])
def test_x_of_most_projections_does_not_go_around(crs: Any) -> None:
    assert turn_of(CRS(crs)) == np.inf
