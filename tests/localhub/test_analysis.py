from itertools import pairwise

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from localhub.analysis import buffered, within_bounds
from localhub.payload import Bounds
from tasks.grid import Tile

TILES = [Tile(f"t{i}", 32633, (500000.0 + 100 * i, 5000000.0, 500100.0 + 100 * i, 5000100.0), 10, 5) for i in range(4)]
UTM = {"crs": "http://www.opengis.net/def/crs/EPSG/0/32633"}


def test_a_buffer_adds_pixels_on_both_sides_and_moves_the_origin_out() -> None:
    tile = buffered(TILES[0], 2, 3)
    assert tile.bounds == (499980.0, 4999940.0, 500120.0, 5000160.0)
    assert (tile.width, tile.height, tile.resolution) == (14, 11, TILES[0].resolution)


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ((500150, 5000050, 500250, 5000060), ["t1", "t2"]),
        ((500250, 5000060, 500150, 5000050), ["t1", "t2"]),
        ((500100, 5000000, 500200, 5000100), ["t1"]),  # touches its neighbours along an edge
        ((0, 0, 1, 1), []),
    ],
)
def test_the_area_selects_tiles_whose_interior_it_meets(bbox: tuple[float, ...], expected: list[str]) -> None:
    bounds = Bounds.model_validate({"bbox": bbox, "properties": UTM})
    assert [tile.name for tile in within_bounds(TILES, bounds)] == expected


def test_the_area_may_be_in_another_crs() -> None:
    bounds = Bounds.model_validate({"bbox": (15.0026, 45.1532, 15.0030, 45.1536)})  # about x 500205-500236
    assert [tile.name for tile in within_bounds(TILES, bounds)] == ["t2"]


def test_without_an_area_all_tiles_are_selected() -> None:
    assert within_bounds(TILES, Bounds()) == TILES


def test_the_outline_of_a_feature_counts_not_its_bounding_box() -> None:
    triangle = shapely.Polygon([(500000, 5000000), (500100, 5000000), (500000, 5000100)])
    tile = Tile("t", 32633, triangle.bounds, 10, 10, shapely.to_wkb(triangle))
    corners = {"lower left": (500010, 5000010, 500020, 5000020), "upper right": (500080, 5000080, 500090, 5000090)}
    found = {
        name: within_bounds([tile], Bounds.model_validate({"bbox": corner, "properties": UTM}))
        for name, corner in corners.items()
    }
    assert found == {"lower left": [tile], "upper right": []}


def test_an_area_as_large_as_the_world_selects_tiles_of_any_crs() -> None:
    tiles = [
        *TILES,
        Tile("laea", 3035, (4_600_000.0, 2_500_000.0, 4_601_000.0, 2_501_000.0), 10, 10),
        Tile("pole", 3413, (-1000.0, -1000.0, 1000.0, 1000.0), 10, 10),
        Tile("fiji", 32701, (150_000.0, 8_100_000.0, 151_000.0, 8_101_000.0), 10, 10),
    ]
    world = Bounds.model_validate({"bbox": (-180, -90, 180, 90)})
    assert within_bounds(tiles, world) == tiles
    northern = Bounds.model_validate({"bbox": (-180, 0, 180, 90)})
    assert within_bounds(tiles, northern) == tiles[:-1]


@pytest.mark.parametrize("west", [179.5, -180.5])
def test_an_area_over_the_antimeridian_selects_tiles_of_both_sides(west: float) -> None:
    tiles = [Tile(f"t{lon}", 4326, (lon, -17.0, lon + 1.0, -16.0), 10, 10) for lon in (178.0, 179.0, -180.0, -179.0)]
    bounds = Bounds.model_validate({"bbox": (west, -16.6, west + 1, -16.4)})
    assert [tile.name for tile in within_bounds(tiles, bounds)] == ["t179.0", "t-180.0"]


def test_the_selection_equals_one_by_projected_points() -> None:
    """Against a brute force: a tile is selected when one of its many points lies in the area, seen from there."""
    edges = np.arange(300_000.0, 700_001.0, 20_000.0)
    tiles = [
        Tile(f"{x:.0f}_{y:.0f}", 32633, (x, y, x1, y + 20_000), 10, 10)
        for x, x1 in pairwise(edges)
        for y in np.arange(4_900_000.0, 5_300_000.0, 20_000.0)
    ]
    area = shapely.Polygon([(13.1, 44.9), (16.4, 45.3), (15.2, 47.1)])
    bounds = Bounds.model_validate({"geometry": area.__geo_interface__})
    steps = (np.arange(50) + 0.5) * 400
    x, y = (axis.ravel() for axis in np.meshgrid(steps, steps))
    lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    expected = [
        tile.name
        for tile in tiles
        if shapely.contains_xy(area, *lonlat.transform(tile.bounds[0] + x, tile.bounds[1] + y)).any()
    ]
    found = [tile.name for tile in within_bounds(tiles, bounds)]
    assert set(expected) <= set(found)
    assert len(found) - len(expected) <= 6, "tiles that the area meets between the points"
    assert 40 < len(found) < len(tiles)
