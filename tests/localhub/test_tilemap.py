"""The map of a job's tiles: where each one lies, what it looks like, and that it stays small with many of them."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Transformer

from localhub.api.tilemap import DETAILED_TILES, TileState, state_of, tile_map
from localhub.store import Feature
from tasks.grid import Tile


def features(columns: int, rows: int, epsg: int = 32633, size: int = 10_000, x: int = 400_000) -> list[Feature]:
    corners = [(x + size * i, 5_000_000 - size * j) for j in range(rows) for i in range(columns)]
    return [
        Feature(number, Tile(f"t{number}", epsg, (left, top - size, left + size, top), 100, 100))
        for number, (left, top) in enumerate(corners, start=1)
    ]


def points(d: str) -> NDArray[Any]:
    return np.array([[float(value) for value in pair.split(",")] for pair in re.findall(r"-?[\d.]+,-?[\d.]+", d)])


def test_tiles_lie_where_pyproj_puts_their_corners() -> None:
    shown = tile_map(features(3, 2), processing=False)
    west, south, east, north = shown.extent
    x_scale, y_scale = shown.width / (east - west), shown.height / (north - south)
    to_lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    for feature, shape in zip(features(3, 2), shown.shapes, strict=True):
        min_x, min_y, max_x, max_y = feature.tile.bounds
        corners = [to_lonlat.transform(x, y) for x, y in ((min_x, min_y), (min_x, max_y), (max_x, min_y))]
        drawn = points(shape.d)
        for lon, lat in corners:
            expected = ((lon - west) * x_scale, (north - lat) * y_scale)
            assert np.abs(drawn - expected).max(axis=1).min() < 0.2


def test_shapes_keep_the_proportions_of_the_ground() -> None:
    shape = tile_map(features(1, 1), processing=False).shapes[0]
    width, height = np.ptp(points(shape.d), axis=0)
    assert width == pytest.approx(height, rel=0.02)


def test_zones_on_both_sides_of_the_antimeridian_are_drawn_side_by_side() -> None:
    west = features(1, 1, epsg=32660, x=700_000)
    east = [replace(one, number=2) for one in features(1, 1, epsg=32601, x=300_000)]
    for both in (west + east, east + west):
        extent = tile_map(both, processing=False).extent
        assert extent[2] - extent[0] < 8


@pytest.mark.parametrize(
    ("changes", "processing", "state"),
    [
        ({}, True, TileState.PENDING),
        ({"begun": True}, True, TileState.RUNNING),
        ({"begun": True}, False, TileState.PENDING),
        ({"begun": True, "tries": 1}, True, TileState.TO_RETRY),
        ({"status": "DONE", "delivered": True}, True, TileState.DONE),
        ({"status": "DONE"}, True, TileState.UNDELIVERED),
        ({"status": "DONE", "error": "No data"}, True, TileState.NO_DATA),
        ({"status": "DONE", "error": "No data", "delivered": True}, False, TileState.NO_DATA),
        ({"status": "FATAL", "error": "it broke", "tries": 3}, True, TileState.FATAL),
    ],
)
def test_a_tile_has_one_state(changes: dict[str, Any], processing: bool, state: TileState):
    assert state_of(replace(features(1, 1)[0], **changes), processing=processing) is state


def test_ten_thousand_tiles_are_a_few_shapes_and_failed_ones_still_tell_their_names() -> None:
    many = features(100, 100)
    many[4711] = replace(many[4711], status="FATAL", error="it broke", tries=3)
    shown = tile_map(many, processing=True)
    assert not shown.detailed
    assert [shape.title for shape in shown.shapes] == ["9,999 tiles pending", "t4712 fatal, 3 failed tries: it broke"]
    assert shown.shapes[0].d.count("M") == 9_999
    assert len(shown.shapes[0].d) < 500_000


def test_up_to_a_thousand_tiles_each_is_a_shape_with_its_name() -> None:
    shown = tile_map(features(40, 25), processing=False)
    assert len(shown.shapes) == DETAILED_TILES == 1000
    assert {shape.title for shape in shown.shapes} == {f"t{number} pending" for number in range(1, 1001)}
