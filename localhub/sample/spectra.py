"""What covers the ground, and how it reflects: a spectrum and a calendar for every cover.

A cover's pixel is a mixture of green vegetation and background; the background is a mixture of bare and dry matter.
The shares follow calendars. Numbers are round values of the order that spectral libraries give, chosen to tell the
covers apart as Sentinel-2 does; nothing here is a measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The Sentinel-2 bands, in the order of every spectrum here."""

SPECTRA: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "crop": (350, 380, 650, 400, 1050, 3000, 3900, 4200, 4350, 4300, 12, 2000, 1000),
        "maize": (330, 350, 600, 340, 930, 3100, 4100, 4400, 4500, 4400, 12, 1850, 820),
        "rapeseed flower": (420, 470, 1350, 1200, 1750, 3200, 3800, 4100, 4200, 4150, 12, 2100, 1050),
        "broadleaf": (300, 310, 520, 300, 850, 2600, 3350, 3550, 3700, 3650, 12, 1600, 700),
        "needleleaf": (280, 260, 390, 250, 580, 1500, 1850, 2000, 2100, 2050, 12, 950, 420),
        "grass": (380, 420, 760, 480, 1150, 2700, 3300, 3500, 3650, 3600, 12, 2150, 1120),
        "reed": (370, 390, 600, 440, 930, 1950, 2450, 2650, 2800, 2750, 12, 1450, 720),
        "soil": (880, 960, 1200, 1480, 1750, 1900, 2020, 2150, 2300, 2350, 14, 2900, 2450),
        "dry": (760, 900, 1270, 1680, 2020, 2270, 2450, 2700, 2900, 2950, 14, 3650, 2750),
        "dry grass": (560, 640, 950, 1050, 1450, 1850, 2050, 2250, 2400, 2400, 13, 2700, 1800),
        "leafless": (430, 460, 580, 680, 900, 1150, 1300, 1480, 1620, 1620, 12, 1900, 1250),
        "dry reed": (560, 640, 830, 960, 1200, 1400, 1550, 1700, 1850, 1850, 12, 1750, 1100),
        "roof": (980, 1080, 1230, 1420, 1570, 1690, 1790, 1880, 1980, 1980, 15, 2250, 2000),
        "metal roof": (1850, 2050, 2220, 2350, 2450, 2520, 2600, 2700, 2750, 2700, 18, 2850, 2650),
        "asphalt": (880, 940, 1030, 1130, 1230, 1290, 1340, 1400, 1450, 1450, 14, 1700, 1600),
        "gravel": (1750, 1950, 2350, 2650, 2800, 2900, 3000, 3100, 3150, 3100, 18, 3450, 3250),
        "river": (500, 540, 610, 410, 370, 250, 240, 200, 180, 150, 8, 90, 60),
        "lake": (440, 430, 420, 270, 240, 170, 160, 130, 120, 100, 8, 60, 40),
    }
)
"""Reflectance times 10000 in the order of `BANDS`."""

CLOUD = (6300, 6200, 6100, 6150, 6200, 6250, 6300, 6350, 6350, 4200, 550, 4300, 3300)
"""A thick cloud, in the same order and unit."""

HAZE = (330, 240, 140, 80, 65, 50, 40, 30, 28, 10, 2, 8, 5)
"""What a hazy day adds."""

Calendar = tuple[tuple[float, float], ...]
"""(day of the year, share 0..1), read linearly between and from December on to January."""


@dataclass(frozen=True, slots=True)
class Cover:
    """One kind of ground."""

    lulc_id: int
    """Id in the class table of the reference."""
    green: str
    """Spectrum of its vegetation."""
    bare: str
    """Spectrum of its background."""
    greenness: Calendar
    """Share of green vegetation."""
    dry: str = "dry"
    """Spectrum of dead matter in the background."""
    dryness: Calendar = ((1, 0.0),)
    """Share of dead matter in the background."""
    flower: str = ""
    """Spectrum of its flowers, if they show."""
    flowering: Calendar = ((1, 0.0),)
    """Share of the vegetation that flowers hide."""
    mowing: tuple[float, ...] = field(default=())
    """Days of the year around which it is cut."""
    grain: float = 0.012
    """Deviation of the brightness from pixel to pixel, relative."""
    patchiness: float = 0.05
    """Deviation of the share of vegetation inside a polygon."""
    variety: float = 0.08
    """Deviation of brightness and vigour from polygon to polygon, relative."""
    lateness: float = 5.0
    """Deviation of the calendar from polygon to polygon, days."""


COVERS: Mapping[str, Cover] = MappingProxyType(
    {
        "winter wheat": Cover(
            1,
            "crop",
            "soil",
            (
                (1, 0.25),
                (60, 0.32),
                (90, 0.62),
                (118, 0.92),
                (150, 0.93),
                (165, 0.7),
                (180, 0.2),
                (192, 0.05),
                (215, 0.08),
                (250, 0.3),
                (285, 0.08),
                (305, 0.05),
                (335, 0.2),
            ),
            dryness=((1, 0.0), (155, 0.0), (180, 0.95), (198, 1.0), (240, 0.6), (270, 0.1)),
        ),
        "rapeseed": Cover(
            1,
            "crop",
            "soil",
            (
                (1, 0.42),
                (60, 0.45),
                (85, 0.75),
                (105, 0.92),
                (150, 0.9),
                (170, 0.6),
                (184, 0.15),
                (235, 0.05),
                (262, 0.25),
                (320, 0.42),
            ),
            dryness=((1, 0.0), (160, 0.0), (186, 0.9), (230, 0.5), (250, 0.0)),
            flower="rapeseed flower",
            flowering=((1, 0.0), (100, 0.0), (110, 0.9), (124, 0.9), (134, 0.0)),
        ),
        "maize": Cover(
            1,
            "maize",
            "soil",
            (
                (1, 0.07),
                (100, 0.05),
                (127, 0.05),
                (150, 0.25),
                (170, 0.65),
                (190, 0.94),
                (228, 0.93),
                (246, 0.75),
                (262, 0.4),
                (273, 0.08),
                (300, 0.05),
            ),
            dryness=((1, 0.5), (95, 0.3), (115, 0.0), (235, 0.0), (262, 0.7), (280, 0.9), (330, 0.6)),
            lateness=7,
        ),
        "oil pumpkin": Cover(
            1,
            "crop",
            "soil",
            (
                (1, 0.15),
                (108, 0.1),
                (130, 0.05),
                (155, 0.3),
                (180, 0.85),
                (215, 0.8),
                (240, 0.45),
                (258, 0.12),
                (275, 0.2),
                (310, 0.35),
            ),
            dryness=((1, 0.0), (230, 0.0), (255, 0.5), (275, 0.1), (300, 0.0)),
            lateness=7,
        ),
        "broadleaved forest": Cover(
            2,
            "broadleaf",
            "leafless",
            (
                (1, 0.12),
                (98, 0.15),
                (118, 0.6),
                (135, 0.95),
                (200, 1.0),
                (265, 0.93),
                (290, 0.62),
                (308, 0.24),
                (322, 0.12),
            ),
            grain=0.045,
            patchiness=0.03,
            variety=0.05,
            lateness=3,
        ),
        "coniferous forest": Cover(
            2,
            "needleleaf",
            "leafless",
            ((1, 0.9), (150, 0.97), (250, 0.96)),
            grain=0.055,
            patchiness=0.02,
            variety=0.05,
        ),
        "meadow": Cover(
            3,
            "grass",
            "dry grass",
            ((1, 0.42), (70, 0.48), (100, 0.78), (125, 0.95), (250, 0.88), (300, 0.72), (345, 0.48)),
            mowing=(146, 197, 251),
        ),
        "pasture": Cover(
            3,
            "grass",
            "dry grass",
            ((1, 0.38), (70, 0.42), (105, 0.7), (135, 0.82), (215, 0.68), (260, 0.74), (300, 0.62), (345, 0.42)),
            patchiness=0.09,
        ),
        "shrubs": Cover(
            4,
            "broadleaf",
            "dry grass",
            ((1, 0.3), (98, 0.35), (130, 0.8), (200, 0.86), (265, 0.78), (300, 0.45), (322, 0.3)),
            grain=0.045,
            patchiness=0.1,
        ),
        "river": Cover(5, "grass", "river", ((1, 0.0),), grain=0.03, patchiness=0, variety=0.02),
        "lake": Cover(5, "grass", "lake", ((1, 0.0),), grain=0.02, patchiness=0, variety=0.1),
        "reeds": Cover(
            6,
            "reed",
            "dry reed",
            ((1, 0.1), (110, 0.18), (152, 0.8), (235, 0.86), (285, 0.4), (320, 0.1)),
            grain=0.07,
            patchiness=0.08,
        ),
        "houses and gardens": Cover(
            8,
            "grass",
            "roof",
            ((1, 0.15), (105, 0.22), (130, 0.36), (260, 0.33), (310, 0.17)),
            grain=0.17,
            patchiness=0.1,
            variety=0.12,
        ),
        "industry": Cover(8, "grass", "metal roof", ((1, 0.03), (130, 0.06), (310, 0.03)), grain=0.2, variety=0.25),
        "road": Cover(8, "grass", "asphalt", ((1, 0.06), (130, 0.1), (310, 0.06)), grain=0.05),
        "gravel": Cover(9, "grass", "gravel", ((1, 0.02), (130, 0.05), (310, 0.02)), grain=0.07),
    }
)
"""Every cover by its name; the first is index 0, and so on."""

COVER_NAMES = tuple(COVERS)
"""A polygon's cover is an index into these."""

LULC_NAMES: Mapping[int, str] = MappingProxyType(
    {
        1: "CULTIVATED_LAND",
        2: "FOREST",
        3: "GRASSLAND",
        4: "SHRUBLAND",
        5: "WATER",
        6: "WETLAND",
        8: "ARTIFICIAL_SURFACE",
        9: "BARELAND",
    }
)
"""Names of the classes that the sample has (eo-learn's SI_LULC example)."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """What tells one polygon from another of the same cover; one value a polygon."""

    cover: NDArray[np.intp]
    brightness: NDArray[np.float32]
    """Factor of the background's reflectance."""
    vigour: NDArray[np.float32]
    """Factor of the share of vegetation."""
    delay_days: NDArray[np.float32]
    """How much later than the calendar things happen."""

    @classmethod
    def draw(cls, rng: np.random.Generator, cover: NDArray[np.intp]) -> "Polygons":
        """Draw each polygon's character around that of its cover."""
        variety = np.array([COVERS[name].variety for name in COVER_NAMES])[cover]
        lateness = np.array([COVERS[name].lateness for name in COVER_NAMES])[cover]
        brightness, vigour, delay = rng.standard_normal((3, len(cover))).clip(-2.5, 2.5)
        return cls(
            cover,
            (1 + variety * brightness).astype(np.float32),
            (1 - variety * np.abs(vigour)).astype(np.float32),
            (lateness * delay).astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Reflectance:
    """The ground on one day: pixel = background + share * (green - background), a row a polygon."""

    share: NDArray[np.float32]
    """Share of green vegetation, (polygon,)."""
    background: NDArray[np.float32]
    """(band, polygon), times 10000."""
    gain: NDArray[np.float32]
    """Green less background, (band, polygon), times 10000."""


def reflectance(polygons: Polygons, day: int) -> Reflectance:
    """Reflectance of every polygon on a day of the year (1 to 365)."""
    count = len(polygons.cover)
    share = np.zeros(count, np.float32)
    background, green = np.zeros((2, len(BANDS), count), np.float32)
    for index, name in enumerate(COVER_NAMES):
        own = np.flatnonzero(polygons.cover == index)
        cover, days = COVERS[name], day - polygons.delay_days[own]
        share[own] = _read(cover.greenness, days) * _stubble(cover, days) * polygons.vigour[own]
        background[:, own] = _mixture(cover.bare, cover.dry, _read(cover.dryness, days)) * polygons.brightness[own]
        green[:, own] = _mixture(cover.green, cover.flower or cover.green, _read(cover.flowering, days))
    return Reflectance(share, background, green - background)


def _read(calendar: Calendar, days: NDArray[np.float32]) -> NDArray[np.float64]:
    at, shares = zip(*calendar, strict=True)
    values: NDArray[np.float64] = np.interp(days, at, shares, period=365)
    return values


def _stubble(cover: Cover, days: NDArray[np.float32]) -> NDArray[np.float64]:
    """What mowing leaves of the vegetation: less than half on the day, most of it back a month later."""
    left = np.ones(len(days))
    for mown in cover.mowing:
        since = days - mown
        left *= np.where(since > 0, 1 - 0.55 * np.exp(-np.maximum(since, 0) / 15), 1)
    return left


def _mixture(one: str, other: str, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(band, polygon) of two spectra, `share` of the other."""
    first, second = (np.array(SPECTRA[name], float)[:, None] for name in (one, other))
    mixture: NDArray[np.float64] = first * (1 - share) + second * share
    return mixture
