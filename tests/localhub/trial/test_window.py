"""The made-up window has every kind of pixel that a script may meet, in the ranges of the bands."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localhub.engine.bands import SENTINEL_2_BANDS
from localhub.trial.window import SIZE, made_window, samples_of

DAYS = [date(2026, 1, 1) + timedelta(days=20 * number) for number in range(10)]
RANGES = {
    "SCL": (0, 11),
    "CLM": (0, 1),
    "CLP": (0, 255),
    "CLD": (0, 100),
    "SNW": (0, 100),
    "AOT": (0, 600),
    "dataMask": (0, 1),
    "sunAzimuthAngles": (0, 200),
    "sunZenithAngles": (0, 80),
    "viewAzimuthMean": (0, 300),
    "viewZenithMean": (0, 12),
}


@pytest.fixture(scope="module")
def bands() -> dict[str, NDArray[Any]]:
    window = made_window(DAYS)
    return samples_of(window, [(number,) for number in range(len(window.scenes))], SENTINEL_2_BANDS)


@pytest.mark.parametrize("band", sorted(SENTINEL_2_BANDS))
def test_every_band_is_in_its_range(bands: dict[str, NDArray[Any]], band: str) -> None:
    low, high = RANGES.get(band, (0, 11000))
    assert bands[band].shape == (11, SIZE, SIZE)
    assert low <= bands[band].min() <= bands[band].max() <= high


def test_there_are_all_kinds_of_ground_and_weather(bands: dict[str, NDArray[Any]]) -> None:
    assert set(np.unique(bands["SCL"])) == {0, 4, 5, 6, 9, 11}
    cloudy = (bands["CLM"] == 1).mean(axis=(1, 2))
    assert cloudy.min() == 0
    assert cloudy.max() > 0.9
    np.testing.assert_array_equal(bands["SCL"] == 9, bands["CLM"] == 1)


def test_no_data_is_0_in_every_band_and_some_acquisitions_see_half(bands: dict[str, NDArray[Any]]) -> None:
    nothing = bands["dataMask"] == 0
    assert all((values[nothing] == 0).all() for values in bands.values())
    assert nothing[:, 0, 0].all()
    assert {round(float(share), 1) for share in nothing.mean(axis=(1, 2))} == {0.0, 0.5}


def test_scenes_come_newest_first_and_the_last_day_has_two() -> None:
    scenes = made_window(DAYS).scenes
    times = [scene.datetime for scene in scenes]
    assert times == sorted(times, reverse=True)
    assert [moment.date() for moment in times] == [DAYS[-1], *reversed(DAYS)]
    assert {0 <= scene.cloud_cover <= 100 for scene in scenes} == {True}


def test_a_sample_takes_each_pixel_of_its_first_scene_with_data() -> None:
    window = made_window(DAYS)
    both, first, second = (samples_of(window, [group], ["B04"])["B04"][0] for group in ((1, 0), (1,), (0,)))
    expected = np.where(window.seen[1], first, second)
    np.testing.assert_array_equal(both, expected)
    assert (window.seen[1] != window.seen[0]).any()


def test_the_same_days_give_the_same_window() -> None:
    one, other = (samples_of(made_window(DAYS), [(0,)], ["B08"])["B08"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
