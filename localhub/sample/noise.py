"""Random fields: fractal noise with a power-law spectrum, periodic at its edges, and enlarging by whole factors."""

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
    frequency = np.hypot(np.fft.fftfreq(size)[:, None] / stretch, np.fft.rfftfreq(size)[None, :] * stretch)
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * frequency ** (-exponent / 2), s=(size, size))
    normal: Raster = ((field - field.mean()) / field.std()).astype(np.float32)
    return normal


def enlarge(field: Raster, factor: int) -> Raster:
    """Bilinear interpolation onto `factor` times as many rows and columns that cover the same extent."""
    return _enlarge_rows(_enlarge_rows(field, factor).T, factor).T


def _enlarge_rows(field: Raster, factor: int) -> Raster:
    centres = np.clip((np.arange(field.shape[0] * factor) + 0.5) / factor - 0.5, 0, field.shape[0] - 1)
    lower = np.minimum(centres.astype(np.intp), field.shape[0] - 2)
    share = (centres - lower).astype(np.float32)[:, None]
    result: Raster = field[lower] * (1 - share) + field[lower + 1] * share
    return result
