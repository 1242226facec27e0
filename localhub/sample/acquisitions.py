"""When the satellites pass in the sample's year, what they cover and how cloudy it is."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import shapely
from shapely import Polygon

from localhub.sample.landscape import Extent

_REPEAT_DAYS = 15
"""Every third pass of the five-day cycle of two satellites is kept."""
_SLANT = 0.23
"""Eastward step of the ground track for each step north (descending orbits at this latitude)."""


@dataclass(frozen=True, slots=True)
class Orbit:
    """One of the two relative orbits that see the extent."""

    relative_orbit: int
    first: datetime
    """First pass of the year that is kept."""
    covers: tuple[float, float]
    """From and to which share of the extent's width the swath reaches, half-way up."""

    def swath(self, extent: Extent) -> Polygon:
        """The part of the extent that the orbit sees, in the extent's CRS."""
        height = extent.size_m
        lean = _SLANT * height / 2
        low, high = extent.north - height, extent.north
        left, right = (extent.west + share * height for share in self.covers)
        strip = Polygon([(left - lean, low), (right - lean, low), (right + lean, high), (left + lean, high)])
        return Polygon(shapely.get_coordinates(shapely.intersection(strip, extent.box)))


ORBITS = (
    Orbit(79, datetime(2019, 1, 3, 10, 0, 31, tzinfo=UTC), (-1.0, 0.63)),
    Orbit(122, datetime(2019, 1, 10, 9, 50, 31, tzinfo=UTC), (0.37, 2.0)),
)
"""The western and the eastern one. The second passes two days after the first (modulo the cycle of five)."""

_OVERCAST_SHARES = ((0.28, 0.0, 0.0), (0.24, 0.02, 0.15), (0.28, 0.15, 0.7), (0.2, 0.9, 1.0))
"""Probability, least and largest cloud cover of a clear, a fair, a broken and an overcast day."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One pass over the extent."""

    index: int
    orbit: Orbit
    time: datetime
    cloudiness: float
    """Share of the sky that is covered, 0 to 1."""

    @property
    def platform(self) -> str:
        """The satellites take turns."""
        return "S2A" if (self.time.date() - date(2019, 1, 1)).days // 5 % 2 else "S2B"

    @property
    def name(self) -> str:
        """Ends the item's id."""
        return f"{self.platform}_{self.time:%Y%m%dT%H%M%S}_R{self.orbit.relative_orbit:03d}"

    @property
    def day(self) -> int:
        """Day of the year."""
        return self.time.timetuple().tm_yday

    @property
    def sun(self) -> tuple[float, float]:
        """Azimuth and elevation in degrees, near enough for mid-morning at 46.4 degrees north."""
        season = np.cos(2 * np.pi * (self.day - 172) / 365)
        return float(158 - 10 * season), float(40.5 + 21.5 * season)


def acquisitions(seed: int, count: int | None = None) -> list[Acquisition]:
    """The year's passes in order of time (the first `count`), their cloudiness drawn from `seed`."""
    passes = sorted(
        (
            (orbit.first + timedelta(days=days), orbit)
            for orbit in ORBITS
            for days in range(0, 365, _REPEAT_DAYS)
            if (orbit.first + timedelta(days=days)).year == orbit.first.year
        ),
        key=lambda entry: entry[0],
    )
    rng = np.random.default_rng([seed, 1])
    covers = _cloudiness(rng, len(passes))
    drawn = [
        Acquisition(index, orbit, time, cover)
        for index, ((time, orbit), cover) in enumerate(zip(passes, covers, strict=True))
    ]
    return drawn[:count]


def _cloudiness(rng: np.random.Generator, count: int) -> list[float]:
    """Kinds of weather in their proportions, shuffled."""
    probabilities, least, largest = np.array(_OVERCAST_SHARES).T
    kinds = np.searchsorted(probabilities.cumsum() - 1e-9, (np.arange(count) + 0.5) / count)
    rng.shuffle(kinds)
    return [float(cover) for cover in rng.uniform(least[kinds], largest[kinds])]
