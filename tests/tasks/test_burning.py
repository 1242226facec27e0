"""Rasterising against GDAL's own, and against a brute-force point-in-polygon."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from tasks.grid import Tile
from tasks.reference import burn
from tasks.reference.polygons import polygonal

TILE = Tile("33TVM_4_5", 32633, (440_000.0, 5_040_000.0, 440_640.0, 5_040_480.0), width=32, height=24)
STEPS_M = {"any": None, "a quarter pixel": 5.0, "half a pixel": 10.0, "a pixel": 20.0}
"""What coordinates are multiples of: the closer to centres of pixels, the more ties there are."""


def as_wkb(polygons: Sequence[Any]) -> pa.Array:
    return pa.array(shapely.to_wkb(np.array(polygons, object)), pa.binary())


def random_polygons(random: np.random.Generator, step_m: float | None) -> list[Any]:
    """Polygons with holes and multipolygons, valid, that cover each other and reach beyond the tile."""
    polygons: list[Any] = []
    for _ in range(random.integers(1, 8)):
        corners = random.uniform((439_900, 5_039_900), (440_740, 5_040_580), (random.integers(3, 9), 2))
        if step_m:
            corners = np.round(corners / step_m) * step_m
        shape = shapely.make_valid(shapely.Polygon(corners))
        hole = shapely.box(*corners[0], *(corners[0] + (step_m or 17.3) * 5))
        for one in (shape, shape.difference(hole)):
            polygons += [part for part in [one] if part.geom_type in {"Polygon", "MultiPolygon"} and part.area]
    return polygons


@pytest.mark.parametrize("all_touched", [False, True])
@pytest.mark.parametrize("step", STEPS_M)
def test_pixels_are_those_that_gdal_burns(step: str, all_touched: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(250):
        polygons = random_polygons(random, STEPS_M[step])
        classes = random.integers(1, 256, len(polygons))
        expected = np.zeros((TILE.height, TILE.width), np.uint8)
        shapes = list(zip(polygons, classes.tolist(), strict=True))
        if shapes:
            rasterize(shapes, out=expected, transform=TILE.transform, all_touched=all_touched)

        burned = burn(as_wkb(polygons), classes, TILE, all_touched=all_touched)

        np.testing.assert_array_equal(burned.classes, expected)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_polygons_that_cross_themselves_or_each_other_are_repaired_to_what_gdal_burns_of_them(
    seed: int, collected: bool
) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform((439_900, 5_039_900), (440_740, 5_040_580), (random.integers(1, 6), 2, 7, 2))
    parts = [
        shapely.Polygon(shell[: random.integers(3, 8)], [hole[:3]] if random.random() < 0.3 else [])
        for shell, hole in corners
    ]
    shape: Any = shapely.MultiPolygon(parts)
    expected = rasterize([(shape, 1)], (TILE.height, TILE.width), transform=TILE.transform)
    if collected:
        line = shapely.LineString(corners[0, 0])
        shape = shapely.GeometryCollection([line, shapely.GeometryCollection([shapely.MultiPolygon(parts[1:]), line])])
        shape = shapely.GeometryCollection([shape, parts[0]])

    polygons, _ = polygonal(np.array([None, shape], object))

    assert shapely.is_valid(polygons[1])
    np.testing.assert_array_equal(burn(as_wkb(polygons[1:]), np.array([1]), TILE).classes, expected)


@pytest.mark.parametrize(("inner", "pixels"), [((15, 8, 24, 18), 9 * 10), ((2, 2, 8, 8), 0)])
def test_what_lies_in_two_parts_of_a_multipolygon_is_no_hole(inner: Sequence[float], pixels: int) -> None:
    outer = shapely.box(440_000, 5_040_000, 440_400, 5_040_200)  # 20 x 10 pixels
    inner_box = shapely.box(*(np.array([440_000, 5_040_000] * 2) + np.array(inner) * 20))

    polygons, repaired = polygonal(np.array([shapely.MultiPolygon([outer, inner_box])], object))

    classes = burn(as_wkb(polygons), np.array([1]), TILE).classes
    assert repaired.all()
    assert np.count_nonzero(classes) == 200 + pixels - 5 * 2 * (pixels > 0)


def test_a_hundred_thousand_parts_of_which_few_overlap_are_united_within_seconds() -> None:
    corners = np.random.default_rng(0).uniform(0, 1e6, (100_000, 2))
    boxes = shapely.box(*np.hstack([corners, corners + 300]).T)
    start = time.process_time()

    polygons, _ = polygonal(np.array([shapely.multipolygons(boxes)], object))

    assert time.process_time() - start < 20
    assert shapely.is_valid(polygons[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_pixels_overlaps_and_who_overlaps_are_what_a_loop_over_all_centres_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    polygons = random_polygons(random, None)
    classes = random.integers(1, 256, len(polygons))
    columns, rows = np.meshgrid(np.arange(TILE.width) + 0.5, np.arange(TILE.height) + 0.5)
    x, y = TILE.transform * (columns, rows)
    inside = np.array([shapely.contains_xy(polygon, x, y) for polygon in polygons]).reshape(-1, *x.shape)
    expected = np.zeros(x.shape, np.uint8)
    for pixels, number in zip(inside, classes, strict=True):
        expected[pixels] = number
    shared = inside.sum(axis=0) > 1

    burned = burn(as_wkb(polygons), classes, TILE)

    np.testing.assert_array_equal(burned.classes, expected)
    assert burned.overlap_pixels == shared.sum()
    assert burned.overlapping.tolist() == np.flatnonzero((inside & shared).any(axis=(1, 2))).tolist()


def test_many_polygons_over_each_other_are_painted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.reference.burning.PIXELS_AT_ONCE", 1000)
    whole = shapely.box(*TILE.bounds)
    polygons = np.array([whole] * 40 + [shapely.box(440_000, 5_040_000, 440_320, 5_040_480)])

    burned = burn(as_wkb(polygons), np.arange(1, 42), TILE)

    assert (burned.classes[:, :16] == 41).all()
    assert (burned.classes[:, 16:] == 40).all()
    assert (burned.overlap_pixels, len(burned.overlapping)) == (TILE.width * TILE.height, 41)


def test_no_polygons_are_a_tile_of_zeros() -> None:
    burned = burn(as_wkb([]), np.empty(0, np.int16), TILE, all_touched=True)

    assert burned.classes.shape == (TILE.height, TILE.width)
    assert not burned.classes.any()
