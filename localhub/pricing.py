"""What a request costs, in processing units (PU).

Rule: the published formula as noted in the research note batch-v2, section 5 (the service's page "Processing Unit
definition"): area, input bands, output format, data samples, data fusion, and for batch a discount. All collections lie
where the request is processed, so none counts twice.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tasks.grid import Tile

REQUEST_MINIMUM_PU = 100.0
PROCESS_MINIMUM_PU = 0.005
_UNIT_PIXELS = 512 * 512
_AREA_MINIMUM = 0.01
_UNIT_BANDS = 3
_DISCOUNT_PIXELS = 10_000


@dataclass(frozen=True, slots=True)
class Read:
    """What is read of one of a request's collections."""

    bands: Collection[str]
    """The evalscript's inputs."""
    samples: int
    """Data samples of a pixel that evaluatePixel gets: at most 1 for SIMPLE mosaicking."""


def feature_cost(tile: Tile, reads: Sequence[Read], *, float_output: bool) -> float:
    """Return the PU of one processed feature.

    `reads` has one entry for each of the request's collections; `float_output` says whether any raster is FLOAT32.
    """
    discount = 1 / 3 if tile.width * tile.height >= _DISCOUNT_PIXELS else 1.0
    return discount * _full_cost(tile, reads, float_output=float_output)


def process_cost(tile: Tile, reads: Sequence[Read], *, float_output: bool) -> float:
    """Return the PU of one request of the Process API; arguments as for `feature_cost`."""
    return max(PROCESS_MINIMUM_PU, _full_cost(tile, reads, float_output=float_output))


def _full_cost(tile: Tile, reads: Sequence[Read], *, float_output: bool) -> float:
    """Multiply the published factors; of several collections all bands count, and the most samples of any."""
    area = max(tile.width * tile.height / _UNIT_PIXELS, _AREA_MINIMUM)
    bands = sum(len(set(read.bands) - {"dataMask"}) for read in reads) or 1
    samples = max(1, *(read.samples for read in reads))
    return area * bands / _UNIT_BANDS * (2 if float_output else 1) * samples * len(reads)


def request_cost(features_pu: float) -> float:
    """Return the PU billed for a request whose processed features cost `features_pu` together."""
    return max(REQUEST_MINIMUM_PU, features_pu)
