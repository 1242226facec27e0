"""Random fields: fractal noise with a power-law spectrum, periodic at its edges, and enlarging by whole factors."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Raster = NDArray[np.float32]


def fractal(rng: np.random.Generator, size: int, exponent: float, *, stretch: float = 1.0) -> Raster:
    """Noise of mean 0 and deviation 1 whose power falls with frequency to the -`exponent`.

    Args:
        rng: source of the randomness.
        size: rows and columns; opposite edges fit together.
        exponent: 0 is white noise, 2 is cloudy, above 3 is gently rolling.
        stretch: how much longer the structures are along rows than across.

    Returns:
        (size, size), float32.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    field = np.fft.irfft2(spectrum * _amplitudes(size, exponent, stretch), s=(size, size)).astype(
        np.float32, copy=False
    )
    field -= field.mean()
    field /= field.std()
    return field


@cache
def _amplitudes(size: int, exponent: float, stretch: float) -> Raster:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None] / stretch, np.fft.rfftfreq(size)[None, :] * stretch)
    frequency[0, 0] = np.inf  # a mean of 0
    amplitudes: Raster = (frequency ** (-exponent / 2)).astype(np.float32)
    return amplitudes


def enlarge(field: Raster, factor: int) -> Raster:
    """Bilinear interpolation onto `factor` times as many rows and columns that cover the same extent."""
    return _enlarged(_enlarged(field, factor, axis=0), factor, axis=1)


def _enlarged(field: Raster, factor: int, axis: int) -> Raster:
    count = field.shape[axis]
    edged = np.moveaxis(np.pad(field, [(int(axis == each),) * 2 for each in (0, 1)], mode="edge"), axis, 0)
    result = np.empty([size * factor if axis == each else size for each, size in enumerate(field.shape)], np.float32)
    lines = np.moveaxis(result, axis, 0)
    for phase in range(factor):
        before, share = divmod((phase + 0.5) / factor + 0.5, 1)
        start = int(before)
        lines[phase::factor] = edged[start : start + count] * (1 - share)
        lines[phase::factor] += edged[start + 1 : start + 1 + count] * share
    return result
