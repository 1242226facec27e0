from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localhub.pricing import Read, feature_cost, process_cost, request_cost
from tasks.grid import Tile

LAND_COVER = ["B02", "B03", "B04", "B08", "B11", "B12", "CLP", "CLM", "dataMask"]


def tile(width: int, height: int) -> Tile:
    return Tile("t", 32633, (0.0, 0.0, 10.0 * width, 10.0 * height), width, height)


@pytest.mark.parametrize(
    ("pixels", "bands", "float_output", "samples", "expected"),
    [
        (1000, LAND_COVER, False, 60, 203.45),
        (1000, LAND_COVER, True, 60, 406.90),
        (1000, ["B02", "B03", "B04"], False, 1, 1.2716),
        (99, ["B02"], False, 1, 0.01246),
        (500, ["dataMask"], False, 1, 500 * 500 / 512**2 / 3 / 3),
    ],
)
def test_a_feature_costs_what_the_published_examples_say(
    pixels: int, bands: list[str], float_output: bool, samples: int, expected: float
) -> None:
    cost = feature_cost(tile(pixels, pixels), [Read(bands, samples)], float_output=float_output)
    assert cost == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("pixels", "bands", "float_output", "samples", "expected"),
    [
        (1024, ["VV", "VH", "HH", "HV"], True, 2, "21.333"),  # Sentinel-1 change detection, before orthorectification
        (20, ["B04", "B08"], False, 1, "0.0067"),  # NDVI of a parcel
    ],
)
def test_a_process_request_costs_what_the_published_tables_print(
    pixels: int, bands: list[str], float_output: bool, samples: int, expected: str
) -> None:
    cost = process_cost(tile(pixels, pixels), [Read(bands, samples)], float_output=float_output)
    assert f"{cost:.{len(expected.partition('.')[2])}f}" == expected


RGB, CLASSES = Read(["B04", "B03", "B02"], 1), Read(["SCL"], 1)


@pytest.mark.parametrize(
    ("reads", "factor"),
    [
        ([RGB], 1.0),
        ([RGB, CLASSES], 4 / 3 * 2),
        ([RGB, CLASSES, Read(["VV", "dataMask"], 1)], 5 / 3 * 3),  # published for three collections, none remote: x 3
        ([Read(["B04"], 7), Read(["VV"], 2)], 2 / 3 * 2 * 7),
        ([Read(["dataMask"], 1), Read(["VV"], 1)], 1 / 3 * 2),
        ([Read(["dataMask"], 1), Read(["dataMask"], 0)], 1 / 3 * 2),
        ([Read(["B04"], 1), Read([], 1)], 1 / 3 * 2),
        ([Read(["B04"], 0), Read(["VV"], 0)], 2 / 3 * 2),
    ],
)
def test_data_fusion_multiplies_the_price_by_the_number_of_collections(reads: list[Read], factor: float) -> None:
    assert process_cost(tile(512, 512), reads, float_output=False) == pytest.approx(factor)
    assert process_cost(tile(512, 512), reads, float_output=True) == pytest.approx(2 * factor)
    assert feature_cost(tile(512, 512), reads, float_output=False) == pytest.approx(factor / 3)


def test_a_request_is_billed_at_least_100_units() -> None:
    assert request_cost(25.4) == 100
    assert request_cost(20_345.0) == 20_345.0


def published_price(width: int, height: int, bands: list[str], *, float_output: bool, samples: int) -> Fraction:
    """The published rule in exact numbers, one line a sentence of it (Processing units; Batch Processing API)."""
    price = max(Fraction(width, 512) * Fraction(height, 512), Fraction(1, 100))  # one unit: 512 x 512 pixels
    price *= Fraction(1 if bands == ["dataMask"] else len([b for b in bands if b != "dataMask"]), 3)  # 3 bands
    price *= 2 if float_output else 1  # 32-bit float TIFF
    price *= samples or 1  # data samples per pixel
    return price / 3 if width * height >= 10_000 else price  # the batch discount


@given(
    width=st.integers(1, 3500),
    height=st.integers(1, 3500),
    bands=st.lists(st.sampled_from(LAND_COVER), min_size=1, unique=True),
    float_output=st.booleans(),
    samples=st.integers(0, 400),
)
@example(width=100, height=100, bands=["B02"], float_output=False, samples=1)
@example(width=9999, height=1, bands=["B02"], float_output=False, samples=1)
@example(width=51, height=51, bands=["dataMask"], float_output=True, samples=0)
def test_the_price_of_any_feature_is_the_published_one(
    width: int, height: int, bands: list[str], float_output: bool, samples: int
) -> None:
    expected = published_price(width, height, bands, float_output=float_output, samples=samples)
    cost = feature_cost(tile(width, height), [Read(bands, samples)], float_output=float_output)
    assert cost == pytest.approx(float(expected), rel=1e-12)
