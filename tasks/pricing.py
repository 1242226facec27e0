"""What work costs, in processing units (PU): the published rules, and the samples that an estimate rests on.

Rules: Sentinel Hub documentation, "Processing Units" and "Batch Processing API". A range is from the least to the most
that is to be expected, and what is likely in between.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evalscript import Script
from tasks.grid import Tile

AREA_PIXELS = 512 * 512
"""Pixels of a processing unit (Sentinel Hub documentation, "Processing Units")."""
UNIT_BANDS = 3
"""Input bands of a processing unit (same source)."""
MIN_AREA_FACTOR = 0.01
BATCH_FACTOR, BATCH_MIN_PIXELS = 1 / 3, 10_000
"""Batch costs a third, for tiles of at least so many pixels (same source)."""
MIN_REQUEST_PU = 100.0
"""The least that a batch request costs (same source)."""
MIN_PROCESS_PU = 0.005
"""The least that a request of the Process API costs (same source)."""
REVISIT_DAYS = (5.0, 4.0, 2.5)
"""Days between acquisitions of a place: two satellites on one orbit; a mean; two overlapping orbits."""
ARRIVAL_DAYS = 3
"""So many days after its sensing a scene may still arrive: most come within one."""


@dataclass(frozen=True, slots=True)
class Range:
    """What is to be expected: the least, the likely, the most; the unit stands in the name of what holds it."""

    low: float
    likely: float
    high: float

    def __iter__(self) -> Iterator[float]:
        """Give the three."""
        return iter((self.low, self.likely, self.high))

    @property
    def certain(self) -> bool:
        """Whether the three are one."""
        return self.low == self.high


NOTHING = Range(0.0, 0.0, 0.0)


# ---- rules ----


def tile_price_pu(pixels: int, bands: int, samples: float, *, float_output: bool) -> float:
    """Price of one tile of a batch request; 0 without a sample, because "No data" is free.

    Args:
        pixels: width times height.
        bands: input bands, see :func:`priced_bands`.
        samples: of each pixel: acquisitions that the script gets, see :func:`tasks.acquisitions.samples_of`.
        float_output: whether an output is FLOAT32, which doubles the price.
    """
    batch = BATCH_FACTOR if pixels >= BATCH_MIN_PIXELS else 1.0
    return _full_price_pu(pixels, bands, samples, float_output=float_output) * batch


def process_price_pu(pixels: int, bands: int, samples: float, *, float_output: bool) -> float:
    """Price of one request of the Process API; arguments as for :func:`tile_price_pu`.

    An image without a scene is made and costs as one sample.
    """
    return max(MIN_PROCESS_PU, _full_price_pu(pixels, bands, max(1.0, samples), float_output=float_output))


def request_price_pu(tile_prices_pu: Iterable[float]) -> float:
    """Price of a batch request from its tiles' prices: at least the service's minimum, 0 without tiles."""
    prices = list(tile_prices_pu)
    return max(MIN_REQUEST_PU, math.fsum(prices)) if prices else 0.0


def priced_bands(input_bands: Iterable[str]) -> int:
    """Count the input bands that cost: dataMask is free, unless a script reads nothing else."""
    return len(set(input_bands) - {"dataMask"}) or 1


def has_floats(script: Script) -> bool:
    """Whether an output is FLOAT32, which doubles the price."""
    return any(sample_type == "FLOAT32" for _, _, sample_type in script.outputs)


def _full_price_pu(pixels: int, bands: int, samples: float, *, float_output: bool) -> float:
    area = max(pixels / AREA_PIXELS, MIN_AREA_FACTOR)
    return area * bands / UNIT_BANDS * (2 if float_output else 1) * samples


def batch_price_pu(tile: Tile, samples: float, script: Script) -> float:
    """Price of a tile in a batch request, by what the script reads and makes; see :func:`tile_price_pu`."""
    return tile_price_pu(
        tile.width * tile.height, priced_bands(script.input_bands), samples, float_output=has_floats(script)
    )


# ---- samples to be expected ----


def counted_samples(
    counts: NDArray[Any], script: Script, *, kept: float = 1.0, late: NDArray[Any] | int = 0
) -> list[Range]:
    """Give the samples of each tile that the Catalog lets expect.

    What ``preProcessScenes`` leaves out costs nothing, and is not known before: all but one sample of a tile, at most.
    Without that function, and with nothing that may still arrive, the three figures are one.

    Args:
        counts: samples by the Catalog, shape (tiles,), see :func:`tasks.acquisitions.samples_of`.
        script: decides whether scenes may be left out.
        kept: share of the samples that it is likely to keep, if it may leave out any.
        late: samples that may still arrive, shape (tiles,), see :func:`late_samples`.
    """
    least = np.minimum(counts, 1) if script.drops_scenes else counts
    likely = np.maximum(least, kept * counts) if script.drops_scenes else counts
    figures = np.stack([least, likely, counts + late]).astype(float)
    return [Range(*column) for column in figures.T.tolist()]


def late_samples(counts: NDArray[np.int64], mosaicking: str, days: int, late_days: int) -> NDArray[np.int64]:
    """Samples that may still arrive for the last days of a period, shape (tiles,).

    As many as fit the pace of the days before, or two overlapping orbits.

    Args:
        counts: samples by the Catalog, shape (tiles,).
        mosaicking: with SIMPLE there is one sample however many scenes there are.
        days: of the period.
        late_days: of them, at the end, whose scenes may not be in the Catalog yet.
    """
    if late_days == 0:
        return np.zeros_like(counts)
    if mosaicking == "SIMPLE":
        return np.where(counts == 0, 1, 0)
    a_day = np.maximum(counts / max(1, days - late_days), 1 / REVISIT_DAYS[-1])
    late: NDArray[np.int64] = np.ceil(a_day * late_days).astype(np.int64)
    return late


def usual_samples(days: int, script: Script) -> Range:
    """Samples of a tile in so many days, where the Catalog does not tell: from the times between acquisitions."""
    if script.mosaicking == "SIMPLE":
        return Range(1.0, 1.0, 1.0)
    low, likely, high = (max(1.0, days / revisit) for revisit in REVISIT_DAYS)
    return Range(1.0 if script.drops_scenes else low, likely, high)


# ---- estimates ----


def tile_price(tile: Tile, samples: Range, script: Script) -> Range:
    """Price of a tile in a batch request, PU."""
    return Range(*(batch_price_pu(tile, count, script) for count in samples))


def process_price(tile: Tile, samples: Range, script: Script) -> Range:
    """Price of the same tile by the Process API, PU; 0 for figures without a sample: nobody need ask for it."""
    arguments = tile.width * tile.height, priced_bands(script.input_bands)
    floats = has_floats(script)
    return Range(*(process_price_pu(*arguments, count, float_output=floats) if count else 0.0 for count in samples))


def request_price(prices: Sequence[Range]) -> Range:
    """Price of a batch request from those of its tiles, PU."""
    return Range(*(request_price_pu(figures) for figures in _figures(prices)))


def total(ranges: Sequence[Range]) -> Range:
    """Add figure by figure."""
    return Range(*map(math.fsum, _figures(ranges)))


def _figures(ranges: Sequence[Range]) -> Iterable[list[float]]:
    """All low, all likely, all high figures."""
    return ([one.low for one in ranges], [one.likely for one in ranges], [one.high for one in ranges])
