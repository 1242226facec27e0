"""Prices by the published rules, and the samples that an estimate rests on."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localhub import pricing
from tasks.evalscript import Imagery, Script, load_script
from tasks.grid import Tile
from tasks.pricing import (
    Range,
    counted_samples,
    late_samples,
    priced_bands,
    process_price,
    process_price_pu,
    request_price,
    tile_price,
    tile_price_pu,
    usual_samples,
)
from tests.tasks.test_plan import MONTH, tiles

ONE = 1000 * 1000 / 512 / 512 / 3
"""Price of three bands of one sample of a tile of 1000 x 1000 pixels, PU."""
DROPS = "function preProcessScenes(collections) { return collections; }"


def prices(samples: list[Range], script: Script) -> list[Range]:
    return [tile_price(tile, one, script) for tile, one in zip(tiles(len(samples)), samples, strict=True)]


@pytest.mark.parametrize(
    ("pixels", "bands", "acquisitions", "float_output", "expected"),
    [
        (1000 * 1000, 8, 60, False, 203.45),
        (1000 * 1000, 8, 60, True, 406.90),
        (1000 * 1000, 3, 1, False, 1.2716),
        (99 * 99, 1, 1, False, 0.01246),
        (100 * 100, 3, 1, False, 10_000 / 512 / 512 / 3),
        (10 * 10, 3, 1, False, 0.01),
    ],
)
def test_a_tiles_price_follows_the_formula(
    pixels: int, bands: int, acquisitions: float, float_output: bool, expected: float
) -> None:
    assert tile_price_pu(pixels, bands, acquisitions, float_output=float_output) == pytest.approx(expected, rel=1e-3)


def test_a_request_of_the_process_api_costs_three_times_a_tiles_price_and_a_little_at_least() -> None:
    assert process_price_pu(512 * 512, 3, 1, float_output=False) == 1
    batch = tile_price_pu(1000 * 1000, 8, 60, float_output=True)
    assert process_price_pu(1000 * 1000, 8, 60, float_output=True) == pytest.approx(3 * batch)
    assert process_price_pu(10 * 10, 1, 1, float_output=False) == 0.005
    assert process_price_pu(512 * 512, 3, 0, float_output=False) == 1  # made of no scene, and paid


@pytest.mark.parametrize(
    ("input_bands", "count"), [(["B02", "B03", "dataMask"], 2), (["dataMask"], 1), (["B02", "B02"], 1)]
)
def test_data_mask_is_free_unless_it_is_all(input_bands: list[str], count: int) -> None:
    assert priced_bands(input_bands) == count


@given(
    pixels=st.integers(1, 3500**2),
    bands=st.lists(st.sampled_from(["B02", "B03", "CLM", "dataMask"]), min_size=1, unique=True),
    samples=st.integers(1, 200),
    floats=st.booleans(),
)
def test_prices_are_those_that_localhub_charges(pixels: int, bands: list[str], samples: int, floats: bool) -> None:
    tile = Tile("t", 32633, (0, 0, 10, 10), pixels, 1)
    arguments = (pixels, priced_bands(bands), samples)
    reads = [pricing.Read(bands, samples)]
    charged = pricing.feature_cost(tile, reads, float_output=floats)
    assert tile_price_pu(*arguments, float_output=floats) == pytest.approx(charged)
    charged = pricing.process_cost(tile, reads, float_output=floats)
    assert process_price_pu(*arguments, float_output=floats) == pytest.approx(charged)


def counting_script(folder: Path, mosaicking: str = "ORBIT", sample_type: str = "UINT16", more: str = "") -> Script:
    path = folder / "script.js"
    path.write_text(
        "//VERSION=3\nfunction evaluatePixel() { return [1]; }\n"
        f"function setup() {{ return {{input: ['B02', 'B03', 'B04', 'dataMask'], mosaicking: '{mosaicking}', "
        f"output: {{bands: 1, sampleType: '{sample_type}'}}}}; }}\n{more}\n"
    )
    return load_script(Imagery(evalscript=str(path)), MONTH.start, MONTH.end, 15)


@pytest.mark.parametrize(("sample_type", "factor"), [("UINT16", 1), ("FLOAT32", 2)])
def test_counted_samples_are_priced_tile_by_tile_and_none_is_free(
    tmp_path: Path, sample_type: str, factor: int
) -> None:
    script = counting_script(tmp_path, sample_type=sample_type)
    found = prices(counted_samples(np.array([0, 60, 100, 30]), script, kept=0.5), script)  # it leaves nothing out
    assert [one.likely for one in found] == pytest.approx([factor * count * ONE for count in (0, 60, 100, 30)])
    assert all(one.certain for one in found)
    assert request_price(found).likely == pytest.approx(factor * 190 * ONE)


def test_a_request_costs_a_minimum_but_without_tiles_nothing(tmp_path: Path) -> None:
    script = counting_script(tmp_path)
    few = prices(counted_samples(np.array([0, 1, 2, 3]), script), script)
    assert request_price(few) == Range(100, 100, 100)
    assert request_price([]) == Range(0, 0, 0)


def test_a_script_that_may_leave_out_scenes_has_a_price_from_one_sample_to_all(tmp_path: Path) -> None:
    script = counting_script(tmp_path, more=DROPS)
    found = request_price(prices(counted_samples(np.array([0, 60, 100, 1] + [10] * 100), script, kept=0.5), script))
    assert list(found) == pytest.approx([103 * ONE, (30 + 50 + 1 + 500) * ONE, 1161 * ONE])


def test_the_same_tile_costs_three_times_as_much_by_the_process_api_and_nothing_where_there_is_no_scene(
    tmp_path: Path,
) -> None:
    script = counting_script(tmp_path)
    (tile,) = tiles(1)
    assert list(process_price(tile, Range(0, 7, 9), script)) == pytest.approx([0, 3 * 7 * ONE, 3 * 9 * ONE])


def test_without_the_catalog_the_usual_times_between_acquisitions_give_three_prices(tmp_path: Path) -> None:
    assert usual_samples(300, counting_script(tmp_path)) == Range(60, 75, 120)
    assert usual_samples(1, counting_script(tmp_path)) == Range(1, 1, 1)
    assert usual_samples(300, counting_script(tmp_path, more=DROPS)) == Range(1, 75, 120)
    assert usual_samples(300, counting_script(tmp_path, "SIMPLE")) == Range(1, 1, 1)


@given(
    counts=st.lists(st.integers(0, 150), min_size=1, max_size=5),
    days=st.integers(1, 366),
    late_days=st.integers(0, 3),
    mosaicking=st.sampled_from(["SIMPLE", "ORBIT", "TILE"]),
)
def test_what_may_still_arrive_is_at_least_what_two_orbits_bring_and_nothing_when_all_is_there(
    counts: list[int], days: int, late_days: int, mosaicking: str
) -> None:
    late = late_samples(np.array(counts), mosaicking, days, min(late_days, days))
    if mosaicking == "SIMPLE":
        assert ((np.array(counts) + late) <= np.maximum(1, counts)).all()
        return
    assert (late >= math.ceil(min(late_days, days) / 2.5)).all()
    assert late_days > 0 or not late.any()


def test_a_tile_that_was_seen_often_may_be_seen_as_often_again() -> None:
    assert late_samples(np.array([27, 0]), "ORBIT", 30, 3).tolist() == [3, 2]  # 1 a day; two orbits
