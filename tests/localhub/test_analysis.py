import pytest

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
