"""What a request costs, in processing units (PU).

Rule: the published formula as noted in the research note batch-v2, section 5: area, input bands, output format, data
samples, batch discount; collections other than Sentinel-2 are not offered, so the fusion factor is 1.
"""

from collections.abc import Collection

from tasks.grid import Tile

REQUEST_MINIMUM_PU = 100.0
_UNIT_PIXELS = 512 * 512
_AREA_MINIMUM = 0.01
_UNIT_BANDS = 3
_DISCOUNT_PIXELS = 10_000


def feature_cost(tile: Tile, bands: Collection[str], *, float_output: bool, samples: int) -> float:
    """Return the PU of one processed feature.

    `bands` are the evalscript's inputs, `float_output` says whether any raster is FLOAT32, `samples` is the number of
    samples that evaluatePixel gets (1 for SIMPLE mosaicking).
    """
    pixels = tile.width * tile.height
    area = max(pixels / _UNIT_PIXELS, _AREA_MINIMUM)
    counted = len(set(bands) - {"dataMask"}) or 1
    discount = 1 / 3 if pixels >= _DISCOUNT_PIXELS else 1.0
    return area * counted / _UNIT_BANDS * (2 if float_output else 1) * max(1, samples) * discount


def request_cost(features_pu: float) -> float:
    """Return the PU billed for a request whose processed features cost `features_pu` together."""
    return max(REQUEST_MINIMUM_PU, features_pu)
