import pytest

from localhub.pricing import feature_cost, request_cost
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
    cost = feature_cost(tile(pixels, pixels), bands, float_output=float_output, samples=samples)
    assert cost == pytest.approx(expected, rel=1e-3)


def test_a_request_is_billed_at_least_100_units() -> None:
    assert request_cost(25.4) == 100
    assert request_cost(20_345.0) == 20_345.0
