"""What a request costs, in processing units (PU).

Rule: the published formula as noted in the research note batch-v2, section 5 (the service's page "Processing Unit
definition"): area, input bands, output format, data samples, and for batch a discount; collections other than
Sentinel-2 are not offered, so the fusion factor is 1.
"""

from collections.abc import Collection

from tasks.grid import Tile

REQUEST_MINIMUM_PU = 100.0
PROCESS_MINIMUM_PU = 0.005
_UNIT_PIXELS = 512 * 512
_AREA_MINIMUM = 0.01
_UNIT_BANDS = 3
_DISCOUNT_PIXELS = 10_000


def feature_cost(tile: Tile, bands: Collection[str], *, float_output: bool, samples: int) -> float:
    """Return the PU of one processed feature.

    `bands` are the evalscript's inputs, `float_output` says whether any raster is FLOAT32, `samples` is the number of
    samples that evaluatePixel gets (1 for SIMPLE mosaicking).
    """
    discount = 1 / 3 if tile.width * tile.height >= _DISCOUNT_PIXELS else 1.0
    return discount * _full_cost(tile, bands, float_output=float_output, samples=samples)


def process_cost(tile: Tile, bands: Collection[str], *, float_output: bool, samples: int) -> float:
    """Return the PU of one request of the Process API; arguments as for `feature_cost`."""
    return max(PROCESS_MINIMUM_PU, _full_cost(tile, bands, float_output=float_output, samples=samples))


def _full_cost(tile: Tile, bands: Collection[str], *, float_output: bool, samples: int) -> float:
    area = max(tile.width * tile.height / _UNIT_PIXELS, _AREA_MINIMUM)
    counted = len(set(bands) - {"dataMask"}) or 1
    return area * counted / _UNIT_BANDS * (2 if float_output else 1) * max(1, samples)


def request_cost(features_pu: float) -> float:
    """Return the PU billed for a request whose processed features cost `features_pu` together."""
    return max(REQUEST_MINIMUM_PU, features_pu)
