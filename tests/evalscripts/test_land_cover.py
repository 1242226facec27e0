import importlib.resources
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localhub.engine import Dataset, Evalscript, EvalscriptError, Output
from localhub.engine.loop import may_reuse_samples
from tasks.evalscript import CONSTANT, render
from tests.localhub.engine.engine_runs import END, dataset, run, scenes_on

TEMPLATE = importlib.resources.files("evalscripts").joinpath("land_cover.js").read_text(encoding="utf-8")
DEFAULTS: dict[str, Any] = json.JSONDecoder().raw_decode(TEMPLATE.partition(CONSTANT)[2])[0]
VALID_SCL = (1, 2, 4, 5, 6, 11)
NO_DATA = 65535


def script(**parameters: Any) -> str:
    return render(TEMPLATE, DEFAULTS | parameters)


def simple_script(**parameters: Any) -> str:
    """One output date every 10 days in January (days 0, 10, 20, 30), B04 and B08 only."""
    january = {"start": "2019-01-01", "end": "2019-01-31", "stepDays": 10}
    return script(**january | {"bands": ["B04"], "indices": {"NDVI": ["B08", "B04"]}} | parameters)


def series(
    days: Sequence[float], b04: Sequence[int], valid: Sequence[bool] | None = None, **more: Any
) -> dict[str, Any]:
    """Outputs of one pixel as lists; B08 is three times B04."""
    valid = [True] * len(days) if valid is None else valid
    red = np.array(b04, "uint16").reshape(-1, 1, 1)
    bands = {"B04": red, "B08": red * 3, "dataMask": np.ones_like(red, "uint8")}
    clouds = np.where(valid, 0, 1).astype("uint8").reshape(-1, 1, 1)
    result = run(simple_script(**more), bands | {"CLM": clouds}, scenes_on(*days))
    return {name: array[:, 0, 0].tolist() for name, array in result.values.items()}


# -- an independent computation ----------------------------------------------------------------------------------------


def interpolated(day_of: NDArray[Any], values: NDArray[Any], valid: NDArray[Any], dates: NDArray[Any]) -> NDArray[Any]:
    """Series of one pixel on dates by numpy.interp, which holds the end values; NaN without any valid sample."""
    if not valid.any():
        return np.full(len(dates), np.nan)
    order = np.argsort(day_of[valid])
    return np.interp(dates, day_of[valid][order], values[valid][order])


def expected_quality(day_of: NDArray[Any], valid: NDArray[Any], dates: NDArray[Any]) -> NDArray[Any]:
    if not valid.any():
        return np.zeros(len(dates))
    kept = day_of[valid]
    return np.where((dates >= kept.min()) & (dates <= kept.max()), 1, 2)


def assert_rounded(stored: NDArray[Any], exact: NDArray[Any], no_data: int) -> None:
    """Stored numbers are the exact ones to the nearest integer; where there is none, they are the no-data value."""
    missing = np.isnan(exact)
    np.testing.assert_array_equal(stored[missing], no_data)
    assert (np.abs(stored[~missing] - exact[~missing]) <= 0.5 + 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    share_valid=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    order=st.sampled_from(["newest first", "oldest first", "any"]),
    step=st.sampled_from([1, 5, 10, 15, 40, 400]),
    cloud_mask=st.sampled_from(["s2cloudless", "scl"]),
)
def test_series_equal_an_independent_interpolation(
    seed: int, count: int, share_valid: float, order: str, step: int, cloud_mask: str
) -> None:
    random = np.random.default_rng(seed)
    days = np.sort(random.choice(np.arange(-20, 390), count, replace=False))
    days = {"newest first": days[::-1], "oldest first": days, "any": random.permutation(days)}[order]
    shape = (count, 3, 11)
    bands = {name: random.integers(0, 12_000, shape).astype("uint16") for name in DEFAULTS["bands"]}
    for array in bands.values():
        array[random.random(shape) < 0.05] = 0
    bands["dataMask"] = (random.random(shape) < 0.9).astype("uint8")
    clear = random.random(shape) < share_valid
    if cloud_mask == "scl":
        bad = [value for value in range(12) if value not in VALID_SCL]
        bands["SCL"] = np.where(clear, random.choice(VALID_SCL, shape), random.choice(bad, shape)).astype("uint8")
    else:
        bands["CLM"] = np.where(clear, 0, random.choice([1, 255], shape)).astype("uint8")
    valid = clear & (bands["dataMask"] == 1)

    result = run(script(cloudMask=cloud_mask, stepDays=step), bands, scenes_on(*days.tolist()))

    dates = np.arange(0, 365, step)
    assert result.wrong_lengths == {}
    assert len(result.user_data["timestamps"]) == len(dates)
    assert result.user_data["acquisitions"] == [f"{date(2019, 1, 1) + timedelta(days=int(day))}" for day in days]
    for row, column in np.ndindex(shape[1:]):
        pixel_valid = valid[:, row, column]
        exact = {
            name: interpolated(days, array[:, row, column].astype(float), pixel_valid, dates)
            for name, array in bands.items()
        }
        for name in DEFAULTS["bands"]:
            assert_rounded(result.values[name][:, row, column], exact[name], 0)
        for name, (a, b) in DEFAULTS["indices"].items():
            with np.errstate(invalid="ignore"):
                index = 10_000 * ((exact[a] - exact[b]) / (exact[a] + exact[b]) + 1)
            assert_rounded(result.values[name][:, row, column], index, NO_DATA)
        quality = result.values["QUALITY"][:, row, column]
        np.testing.assert_array_equal(quality, expected_quality(days, pixel_valid, dates))
        assert result.values["VALID_COUNT"][0, row, column] == pixel_valid.sum()


# -- cases by hand -----------------------------------------------------------------------------------------------------


def test_without_a_valid_sample_quality_is_0_bands_are_0_and_indices_no_data() -> None:
    for pixel in (series([], []), series([3, 12], [100, 200], valid=[False, False])):
        assert pixel == {
            "B04": [0] * 4, "NDVI": [NO_DATA] * 4, "QUALITY": [0] * 4, "VALID_COUNT": [0],
        }  # fmt: skip


def test_one_valid_sample_is_held_everywhere_and_exact_on_its_day() -> None:
    pixel = series([25, 10, 2], [900, 500, 700], valid=[False, True, False])
    assert pixel["B04"] == [500] * 4
    assert pixel["QUALITY"] == [2, 1, 2, 2]
    assert pixel["NDVI"] == [15_000] * 4
    assert pixel["VALID_COUNT"] == [1]


def test_between_two_valid_samples_values_change_linearly() -> None:
    pixel = series([25, 5], [400, 200])
    assert pixel["B04"] == [200, 250, 350, 400]
    assert pixel["QUALITY"] == [2, 1, 1, 2]


def test_dates_on_the_first_and_last_valid_sample_count_as_interpolated() -> None:
    pixel = series([30, 0], [400, 100])
    assert pixel["B04"] == [100, 200, 300, 400]
    assert pixel["QUALITY"] == [1, 1, 1, 1]


def test_time_of_day_does_not_matter() -> None:
    assert series([30.4, 0.1], [400, 100]) == series([30, 0], [400, 100])


def test_a_pixel_after_one_without_data_is_not_affected_by_it() -> None:
    red = np.array([[[100, 100, 100]], [[300, 300, 300]]], "uint16")
    clouds = np.array([[[0, 1, 0]], [[0, 1, 0]]], "uint8")
    bands = {"B04": red, "B08": red, "CLM": clouds, "dataMask": np.ones_like(clouds)}
    values = run(simple_script(), bands, scenes_on(20, 0)).values
    assert values["B04"][:, 0].T.tolist() == [[300, 200, 100, 100], [0] * 4, [300, 200, 100, 100]]
    assert values["QUALITY"][:, 0].T.tolist() == [[1, 1, 1, 2], [0] * 4, [1, 1, 1, 2]]


def test_two_scenes_on_one_day_are_one_sample() -> None:
    with Evalscript(simple_script()) as evalscript:
        plan = evalscript.prepare([dataset(scenes_on(10, 10.01, 3))])
    assert plan.samples == (((0, 1), (2,)),)


@pytest.mark.parametrize(("valid", "expected"), [([1, 1], 500), ([0, 1], 700), ([1, 0], 500)])
def test_of_two_samples_on_one_day_the_first_valid_one_counts(valid: list[int], expected: int) -> None:
    twice = "\nfunction preProcessScenes(c) { c.scenes.orbits.push(c.scenes.orbits[0]); return c; }"
    red = np.array([500, 700], "uint16")
    bands = {"B04": red, "B08": red, "CLM": 1 - np.array(valid, "uint8"), "dataMask": np.ones(2, "uint8")}
    values = run(simple_script() + twice, bands, scenes_on(10)).values
    assert values["B04"].ravel().tolist() == [expected] * 4
    assert values["VALID_COUNT"].item() == 1


def test_an_index_of_0_over_0_is_no_data_where_quality_is_not_0() -> None:
    pixel = series([30, 0], [0, 300])
    assert pixel["B04"] == [300, 200, 100, 0]
    assert pixel["NDVI"] == [15_000, 15_000, 15_000, NO_DATA]
    assert pixel["QUALITY"] == [1, 1, 1, 1]


@pytest.mark.parametrize("value", range(12))
def test_scl_decides_by_class(value: int) -> None:
    bands = {"B04": [500], "B08": [500], "SCL": [value], "dataMask": [1]}
    quality = run(simple_script(cloudMask="scl"), bands, scenes_on(10)).values["QUALITY"]
    assert quality.any() == (value in VALID_SCL)


def test_a_pixel_outside_of_the_image_is_not_valid_though_its_mask_says_clear() -> None:
    bands = {"B04": [0], "B08": [0], "CLM": [0], "dataMask": [0]}
    assert run(simple_script(), bands, scenes_on(10)).values["VALID_COUNT"].item() == 0


# -- declarations ------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_those_that_conversion_expects() -> None:
    with Evalscript(TEMPLATE) as evalscript:
        setup = evalscript.setup
    uint16 = [Output(name, 25, "UINT16", None) for name in (*DEFAULTS["bands"], "NDVI", "NDWI", "NDBI")]
    assert setup.mosaicking == "ORBIT"
    assert setup.outputs == (*uint16, Output("QUALITY", 25, "UINT8", None), Output("VALID_COUNT", 1, "UINT16", None))
    (source,) = setup.sources([None])
    assert source.factors("sentinel-2-l1c") == dict.fromkeys([*DEFAULTS["bands"], "CLM", "dataMask"], 1.0)


def test_bands_that_only_an_index_needs_are_read_but_not_delivered() -> None:
    parameters = {"bands": ["B8A"], "indices": {"NBR": ["B08", "B12"]}, "cloudMask": "scl"}
    source = simple_script(**parameters)
    with Evalscript(source) as evalscript:
        assert list(evalscript.setup.inputs[0].bands) == ["B8A", "B08", "B12", "SCL", "dataMask"]
    bands = {"B8A": [7], "B08": [300], "B12": [100], "SCL": [4], "dataMask": [1]}
    values = run(source, bands, scenes_on(10)).values
    assert list(values) == ["B8A", "NBR", "QUALITY", "VALID_COUNT"]
    assert values["B8A"].ravel().tolist() == [7] * 4
    assert values["NBR"].ravel().tolist() == [15_000] * 4


def test_a_script_without_indices_or_without_bands_works() -> None:
    bands = {"B04": [300], "B08": [100], "CLM": [0], "dataMask": [1]}
    assert list(run(simple_script(indices={}), bands, scenes_on(1)).values) == ["B04", "QUALITY", "VALID_COUNT"]
    assert list(run(simple_script(bands=[]), bands, scenes_on(1)).values) == ["NDVI", "QUALITY", "VALID_COUNT"]


@given(start=st.dates(date(2016, 1, 1), date(2024, 12, 31)), length=st.integers(0, 800), step=st.integers(1, 900))
@settings(deadline=None, max_examples=15)
def test_timestamps_are_every_step_from_the_start_to_the_end(start: date, length: int, step: int) -> None:
    end = start + timedelta(days=length)
    dates = [start + timedelta(days=days) for days in range(0, length + 1, step)]
    source = script(start=start.isoformat(), end=end.isoformat(), stepDays=step)
    with Evalscript(source) as evalscript:
        evalscript.prepare([Dataset([], datetime.combine(start, datetime.min.time(), UTC), END)])
        data = evalscript.user_data()
        assert evalscript.setup.outputs[0].bands == len(dates)
    assert data["timestamps"] == [f"{day.isoformat()}T00:00:00Z" for day in dates]
    assert data["acquisitions"] == []
    assert data["parameters"]["stepDays"] == step


def test_a_step_of_0_days_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(EvalscriptError, match=r"PARAMETERS\.stepDays is 0"):
        Evalscript(script(stepDays=0), timeout_seconds=5)


def test_the_script_lets_the_engine_reuse_its_samples() -> None:
    assert may_reuse_samples(TEMPLATE, [*DEFAULTS["bands"], "CLM", "dataMask"])
