"""A small window of made-up acquisitions: every kind of pixel that a script may meet, in plausible numbers.

Ground, water, clouds, snow, pixels without data, an acquisition that sees half of the window, and a day with two
acquisitions. Ranges of the bands: research note evalscript-v3, section 6. Nothing here is a measurement.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray

from localhub.engine import SceneInfo
from localhub.sample.spectra import BANDS, CLOUD, SPECTRA

SIZE: Final = 24
"""Rows and columns."""
_PATCH: Final = 4
"""Rows and columns of pixels of one kind."""
_SNOW: Final = (9000, 9100, 9000, 8900, 8700, 8500, 8300, 8100, 7900, 7000, 30, 900, 700)
_GROUND: Final = np.array([*SPECTRA.values(), _SNOW])
_CLOUDY_SHARES: Final = (0.0, 0.3, 0.0, 1.0, 0.1)
"""Of the window, one acquisition after the other and over again."""
_FOOTPRINT: Final = shapely.box(14.0, 46.0, 14.01, 46.01)
_SNOWY: Final = len(SPECTRA)
_WATERY: Final = [number for number, name in enumerate(SPECTRA) if name in {"river", "lake"}]
_GREEN: Final = np.flatnonzero(_GROUND[:, BANDS.index("B08")] > 2 * _GROUND[:, BANDS.index("B04")])


@dataclass(frozen=True, slots=True)
class Window:
    """Acquisitions of one place.

    Attributes:
        scenes: newest first.
        kind: of each pixel's ground, a row of the spectra; (rows, columns).
        cloudy: (scenes, rows, columns).
        seen: where an acquisition has data; (scenes, rows, columns).
        grain: brightness relative to the spectrum; (scenes, rows, columns).
    """

    scenes: tuple[SceneInfo, ...]
    kind: NDArray[np.intp]
    cloudy: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    grain: NDArray[np.float64]


def made_window(days: Sequence[date]) -> Window:
    """Make up an acquisition on each of `days`, and a second one on the last; the same ones for the same days."""
    moments = sorted((datetime.combine(day, time(10), UTC) for day in days), reverse=True)
    moments.insert(0, moments[0] + timedelta(minutes=3))
    shape = (len(moments), SIZE, SIZE)
    rng = np.random.default_rng(20190101)
    patches = rng.permutation(np.arange((SIZE // _PATCH) ** 2) % len(_GROUND)).reshape(SIZE // _PATCH, -1)
    shares = np.resize(_CLOUDY_SHARES, len(moments))
    cloudy = rng.random(shape) < shares[:, np.newaxis, np.newaxis]
    seen = np.ones(shape, bool)
    seen[1::4, :, SIZE // 2 :] = False
    seen[:, 0, 0] = False
    scenes = tuple(
        SceneInfo(moment, 100 * float(cloudy[number].mean()), f"s3://made-up/tiles/33/T/VM/{number}", _FOOTPRINT)
        for number, moment in enumerate(moments)
    )
    kind = patches.repeat(_PATCH, axis=0).repeat(_PATCH, axis=1)
    return Window(scenes, kind, cloudy, seen, rng.normal(1, 0.02, shape))


def samples_of(window: Window, members: Sequence[Sequence[int]], bands: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return (samples, rows, columns) of each band as stored (DN); a sample's first scene with data counts.

    A band that Sentinel-2 does not have, as a collection of somebody's own may, holds reflectance times 10,000.
    """
    chosen = np.full((len(members), SIZE, SIZE), -1)
    for sample, group in enumerate(members):
        for scene in reversed(group):
            chosen[sample, window.seen[scene]] = scene
    return {band: _values(window, band, chosen) for band in bands}


def _values(window: Window, band: str, scene: NDArray[np.intp]) -> NDArray[Any]:
    """Return a band, from where each pixel's scene is known: its number, or -1 for none."""
    rows, columns = np.indices(scene.shape[1:])
    cloudy = window.cloudy[scene, rows, columns]
    kind = np.broadcast_to(window.kind, scene.shape)
    if band in _MADE:
        values = _MADE[band](kind, cloudy)
    else:
        number = BANDS.index(band) if band in BANDS else 0
        spectrum = np.where(cloudy, CLOUD[number], _GROUND[kind, number])
        values = np.rint(spectrum * window.grain[scene, rows, columns]).astype(np.uint16)
    values[scene < 0] = 0
    return values


_Made = Callable[[NDArray[np.intp], NDArray[np.bool_]], NDArray[Any]]


def _classes(kind: NDArray[np.intp], cloudy: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scene classification: vegetation 4, bare 5, water 6, cloud of high probability 9, snow 11."""
    ground = np.full(len(_GROUND), 5)
    ground[_GREEN], ground[_WATERY], ground[_SNOWY] = 4, 6, 11
    return np.where(cloudy, 9, ground[kind]).astype(np.uint8)


def _either(if_cloudy: float, else_: float, dtype: str = "uint8") -> _Made:
    return lambda _, cloudy: np.where(cloudy, if_cloudy, else_).astype(dtype)


_MADE: Final[Mapping[str, _Made]] = {
    "dataMask": _either(1, 1),
    "SCL": _classes,
    "CLM": _either(1, 0),
    "CLP": _either(230, 12),
    "CLD": _either(95, 3),
    "SNW": lambda kind, _: np.where(kind == _SNOWY, 90, 0).astype(np.uint8),
    "AOT": _either(250, 110, "uint16"),
    "sunAzimuthAngles": _either(158.5, 158.4, "float32"),
    "sunZenithAngles": _either(41.25, 41.5, "float32"),
    "viewAzimuthMean": _either(201.5, 201.75, "float32"),
    "viewZenithMean": _either(5.5, 5.25, "float32"),
}
"""Bands that are no reflectances."""
