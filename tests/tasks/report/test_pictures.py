from datetime import date, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
from eolearn.core import EOPatch, FeatureType
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray
from sentinelhub import CRS, BBox
from shapely import box

from tasks.classes import LAND_COVER_CLASSES, LandCoverClass
from tasks.grid import Tile, tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.report import quicklook, status_map
from tasks.report.pictures import DPI, OTHER_CLASS_COLOUR, STATE_STYLES, _moment

AREA = box(14.45, 46.0, 14.65, 46.12)
TILES = tiles_of_grid(AREA, 4326, 1, 20)
TITLE = "Ljubljana · 2019-01-01 to 2019-12-31"


def opened(png: bytes) -> NDArray[np.float64]:
    """Pixels (row, column, RGB), 0 to 1."""
    return np.asarray(imread(BytesIO(png)))[..., :3]


def share(pixels: NDArray[np.float64], colour: str) -> float:
    return float((np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.01).mean())


# ---- status map ----


def test_each_state_on_the_map_has_its_colour_and_no_other_state_has() -> None:
    states = (TileState.FAILED, TileState.CONVERTED, TileState.LABELLED)
    records = [TileRecord(tile, states[index % 3]) for index, tile in enumerate(TILES)]
    pixels = opened(status_map(records, AREA, TITLE))
    shown = {state for state, style in STATE_STYLES.items() if share(pixels, style.colour) > 0.02}
    assert shown == set(states)


def test_tiles_in_an_equal_state_cover_an_equal_area() -> None:
    records = [TileRecord(tile, TileState.PENDING if tile.name < "33TVM" else TileState.LABELLED) for tile in TILES]
    pixels = opened(status_map(records, None, TITLE))
    pending, labelled = (share(pixels, STATE_STYLES[state].colour) for state in (TileState.PENDING, TileState.LABELLED))
    assert pending == pytest.approx(labelled, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_map_of_few_tiles_has_a_readable_size(count: int) -> None:
    pixels = opened(status_map([TileRecord(tile, TileState.PENDING) for tile in TILES[:count]], AREA, TITLE))
    assert all(3 * DPI < side < 11 * DPI for side in pixels.shape[:2])


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (35, 30)])
def test_a_map_of_many_tiles_has_a_readable_size(shape: tuple[int, int]) -> None:
    places = [(x * 10_000, y * 10_000) for x in range(shape[0]) for y in range(shape[1])]
    tiles = [Tile(f"t{x}_{y}", 32633, (x, y, x + 10_000, y + 10_000), 1000, 1000) for x, y in places]
    pixels = opened(status_map([TileRecord(tile, TileState.LABELLED) for tile in tiles], None, TITLE))
    assert all(1.2 * DPI < side < 11 * DPI for side in pixels.shape[:2])
    assert share(pixels, STATE_STYLES[TileState.LABELLED].colour) > 0.005


def test_tiles_of_two_zones_are_drawn_on_one_map() -> None:
    tiles = tiles_of_grid(box(12.2, 46.0, 12.7, 46.2), 4326, 1, 20)
    records = [TileRecord(t, TileState.LABELLED if t.epsg == 32632 else TileState.CONVERTED) for t in tiles]
    pixels = opened(status_map(records, None, TITLE))
    assert share(pixels, STATE_STYLES[TileState.LABELLED].colour) > 0.05
    assert share(pixels, STATE_STYLES[TileState.CONVERTED].colour) > 0.05


def test_tiles_on_both_sides_of_the_antimeridian_are_drawn_side_by_side() -> None:
    tiles = tiles_of_grid(box(179.9, -17, 181.5, -16.9), 4326, 1, 20)
    assert {tile.epsg for tile in tiles} == {32701, 32760}
    pixels = opened(status_map([TileRecord(tile, TileState.LABELLED) for tile in tiles], None, TITLE))
    assert share(pixels, STATE_STYLES[TileState.LABELLED].colour) > 0.1


def test_a_map_without_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        status_map([], AREA, TITLE)


# ---- quick-look ----


def synthetic_patch() -> EOPatch:
    """Three dates; the second is the clearest, together with the third, which is greener. West has no data."""
    patch = EOPatch(
        bbox=BBox((460_000, 5_090_000, 462_000, 5_092_000), CRS.UTM_33N),
        timestamps=[datetime(2019, month, 1) for month in (1, 4, 7)],  # noqa: DTZ001 - eo-learn's are naive
    )
    has_data = np.ones((3, 100, 100, 1), bool)
    has_data[:, :, :30] = False
    valid = has_data.copy()
    valid[0, :50] = False
    patch.data["BANDS"] = np.where(has_data, np.random.default_rng(1).uniform(0, 0.4, (3, 100, 100, 6)), 0)
    patch.data["NDVI"] = np.where(has_data, np.array([0.9, 0.3, 0.7]).reshape(3, 1, 1, 1), 0)
    patch.mask["IS_DATA"], patch.mask["IS_VALID"] = has_data, valid
    patch.mask_timeless["LULC"] = np.repeat(np.array([0, 2, 5, 8], "uint8"), 25)[None, :, None].repeat(100, axis=0)
    return patch


def test_a_quick_look_shows_the_colours_of_the_classes_present_only() -> None:
    pixels = opened(quicklook(synthetic_patch(), "33TVL_6_0"))
    shown = {entry.id for entry in LAND_COVER_CLASSES[1:] if share(pixels, entry.colour) > 0.01}
    assert shown == {2, 5, 8}


def test_a_quick_look_has_the_colours_of_the_classes_that_are_given() -> None:
    classes = [LandCoverClass(2, "Gozd", "#123456"), LandCoverClass(8, "Ceste", "#fedcba")]
    pixels = opened(quicklook(synthetic_patch(), "33TVL_6_0", classes=classes))
    assert all(share(pixels, entry.colour) > 0.01 for entry in classes)
    assert share(pixels, OTHER_CLASS_COLOUR) > 0.01  # class 5
    assert share(pixels, LAND_COVER_CLASSES[2].colour) < 0.001


def test_a_quick_look_without_reference_has_two_panels() -> None:
    patch = synthetic_patch()
    three = opened(quicklook(patch, "33TVL_6_0"))
    del patch[FeatureType.MASK_TIMELESS, "LULC"]
    two = opened(quicklook(patch, "33TVL_6_0"))
    assert two.shape[1] / three.shape[1] == pytest.approx(2 / 3, abs=0.05)


def test_the_clearest_date_is_drawn_and_the_greenest_among_equals() -> None:
    assert _moment(synthetic_patch(), None) == 2


def test_a_chosen_day_gives_the_date_nearest_to_it() -> None:
    assert _moment(synthetic_patch(), date(2019, 1, 20)) == 0


def test_classes_beyond_the_table_are_drawn_as_others() -> None:
    patch = synthetic_patch()
    patch.mask_timeless["LULC"][:] = 77
    assert share(opened(quicklook(patch, "x")), "#ff00ff") > 0.05


def test_an_empty_patch_is_drawn_as_no_data() -> None:
    patch = synthetic_patch()
    patch.data["BANDS"][:], patch.data["NDVI"][:] = 0, 0
    patch.mask["IS_DATA"][:], patch.mask["IS_VALID"][:] = False, False
    assert share(opened(quicklook(patch, "x")), "#bdbdbd") > 0.2


def test_a_patch_with_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EOPatch 33TVL_6_0 needs a bbox and one of DATA/BANDS"):
        quicklook(EOPatch(bbox=BBox((0, 0, 1, 1), CRS.UTM_33N)), "33TVL_6_0")


def test_a_real_reference_appears_with_its_shares(test_data: Path) -> None:
    with rasterio.open(test_data / "reference" / "slovenia-land-use-rasterised.tif") as raster:
        classes, bounds = raster.read(1), raster.bounds
    patch = EOPatch(bbox=BBox(tuple(bounds), CRS.UTM_33N))
    patch.mask_timeless["LULC"] = classes[..., None].astype("uint8")
    pixels = opened(quicklook(patch, "Slovenia"))
    forest, grassland = (share(pixels, LAND_COVER_CLASSES[index].colour) for index in (2, 3))
    assert forest / grassland == pytest.approx((classes == 2).sum() / (classes == 3).sum(), rel=0.1)
