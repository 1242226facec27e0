"""From the landscape to what a satellite would deliver on one day: bands, cloud masks, scene classification."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import geometry_mask, rasterize

from localhub.sample.acquisitions import ORBITS, Acquisition
from localhub.sample.landscape import COARSE_M, FINE_M, Landscape
from localhub.sample.noise import Raster, enlarge, fractal
from localhub.sample.spectra import BANDS, CLOUD, COVER_NAMES, COVERS, HAZE, Polygons, Reflectance, reflectance

_RATIO = COARSE_M // FINE_M
COARSE_BANDS = frozenset({"B01", "B05", "B06", "B07", "B8A", "B09", "B10"})
"""Bands with pixels of 60 m, those of the red edge only to save time and space; all else has pixels of 20 m."""
_VISIBLE_BANDS = frozenset({"B01", "B02", "B03", "B04"})
_SKY_PIXELS = 512
"""Side of the sky in pixels of 60 m; more than the extent, since shadows fall from outside."""
_CLOUD_HEIGHT_M = 1500.0
_PROBABILITY_BLOCK = 8
"""Cloud probabilities are made at 160 m, as the service's s2cloudless bands are."""
_SENSOR_NOISE = 4.0
"""Deviation in units of reflectance times 10000."""


_Part = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Stage:
    """The landscape as rasters, the same for every day; 20 m pixels unless said otherwise."""

    polygons: Polygons
    """The first belongs to pixels outside every polygon."""
    labels: NDArray[np.intp]
    """Index into `polygons`."""
    grain: Raster
    """Brightness of the pixel relative to its polygon's, around 1."""
    patches: Raster
    """What is added to the share of vegetation."""
    slope_east: Raster
    """Rise of the relief to the east, arbitrary units."""
    slope_north: Raster
    sensor: Raster
    """A store of noise, larger than the extent."""
    swaths: Mapping[int, NDArray[np.bool_]]
    """What each relative orbit sees."""


@dataclass(frozen=True, slots=True)
class _Sky:
    """What is between the ground and the satellite, 20 m pixels."""

    cloud: Raster
    """Share of the light from the ground that a cloud replaces."""
    cirrus: Raster
    """The same for thin high cloud."""
    shadow: Raster
    """Share of the sunlight that a cloud takes."""
    haze: float
    """Factor of `HAZE`."""

    @property
    def through(self) -> Raster:
        """Share of the light from the ground that arrives."""
        return (1 - self.cloud) * (1 - self.cirrus)

    @property
    def glow(self) -> Raster:
        """Light from the clouds, times their spectrum; thin ones are darker."""
        return (1 - self.through) * (0.62 + 0.5 * self.cloud)


@dataclass(frozen=True, slots=True)
class _Light:
    """How the brightness of the ground becomes that of the picture, the same for every band of a day, 20 m pixels."""

    visible: Raster
    """Factor on the ground's reflectance; in shadows the sky still lights the ground."""
    infrared: Raster
    """The same for bands beyond the visible, to which the sky gives less light."""
    haze: Raster
    """Factor of `HAZE`."""
    cloud: Raster
    """Factor of `CLOUD`."""

    def thinned(self, part: _Part) -> "_Light":
        """That of some of the pixels."""
        fields = (self.visible, self.infrared, self.haze, self.cloud)
        return _Light(*(np.ascontiguousarray(field[part]) for field in fields))


def set_stage(landscape: Landscape, seed: int) -> Stage:
    """Rasterise the landscape and draw its textures."""
    rng = np.random.default_rng([seed, 2])
    extent = landscape.extent
    size, transform = extent.pixels(FINE_M), extent.transform(FINE_M)
    labels = rasterize(
        zip(landscape.polygons, range(1, len(landscape.polygons) + 1), strict=True),
        (size, size),
        transform=transform,
        dtype="int32",
    ).astype(np.intp)
    cover = np.concatenate([[COVER_NAMES.index("pasture")], landscape.cover])
    grain, patchiness = (
        np.array([getattr(COVERS[name], of) for name in COVER_NAMES], np.float32)[cover][labels]
        for of in ("grain", "patchiness")
    )
    southward, eastward = (np.gradient(landscape.relief, axis=axis) for axis in (0, 1))
    return Stage(
        Polygons.draw(rng, cover),
        labels,
        1 + grain * fractal(rng, size, 1.2),
        patchiness * fractal(rng, size, 1.8),
        _over_extent(eastward, size),
        _over_extent(-southward, size),
        _SENSOR_NOISE * rng.standard_normal((size + 256, size + 256), dtype=np.float32),
        {
            orbit.relative_orbit: ~geometry_mask([orbit.swath(extent)], (size, size), transform)
            for orbit in ORBITS
            if shapely.area(orbit.swath(extent))
        },
    )


def render(stage: Stage, acquisition: Acquisition, seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every band of one acquisition by name: the Sentinel-2 bands, then `CLP`, `CLM`, `SCL` and `dataMask`.

    Bands are reflectance times 10000 (uint16) and 0 outside the swath; pixels of 20 m, those of `COARSE_BANDS` 60 m.
    """
    rng = np.random.default_rng([seed, 3, acquisition.index])
    seen = stage.swaths[acquisition.orbit.relative_orbit]
    ground = reflectance(stage.polygons, acquisition.day)
    share = np.clip(ground.share[stage.labels] + stage.patches * (ground.share > 0.02)[stage.labels], 0, 1)
    sky = _sky(rng, acquisition, len(seen))
    light = _light(stage, acquisition, sky)
    middle = (slice(_RATIO // 2, None, _RATIO),) * 2
    fine = (stage.labels, share, light, seen)
    coarse = (stage.labels[middle].copy(), share[middle].copy(), light.thinned(middle), seen[middle])
    surface: dict[str, Raster] = {}
    for index, band in enumerate(BANDS):
        labels, shares, lit, inside = coarse if band in COARSE_BANDS else fine
        mixed = _mixed(ground, index, labels, shares)
        if band in {"B04", "B08"}:
            surface[band] = mixed
        noise = _crop(rng, stage.sensor, len(mixed))
        yield band, _observed(_blurred(mixed), index, lit, noise) * inside
    probability = _cloud_probability(rng, sky)
    yield "CLP", np.rint(255 * _spread(probability, len(seen))).astype(np.uint8) * seen
    yield "CLM", _spread(_grown(probability > 0.4), len(seen)).astype(np.uint8) * seen
    yield "SCL", _classification(stage, surface, sky) * seen
    yield "dataMask", seen.astype(np.uint8)


def cloud_share(stage: Stage, acquisition: Acquisition, classes: NDArray[np.uint8]) -> float:
    """Percent of the seen pixels that `classes` (SCL) calls cloud or cirrus."""
    seen = stage.swaths[acquisition.orbit.relative_orbit]
    return round(float(100 * (classes[seen] >= 8).mean()), 2)


def _sunlight(stage: Stage, acquisition: Acquisition) -> Raster:
    """Brightness by the slope of the ground, stronger when the sun is low."""
    azimuth, elevation = np.radians(acquisition.sun)
    towards_sun = -(np.float32(np.sin(azimuth)) * stage.slope_east + np.float32(np.cos(azimuth)) * stage.slope_north)
    sunlight: Raster = (1 + np.float32(3.2 / np.tan(elevation)) * towards_sun).clip(0.45, 1.5)
    return sunlight


def _sky(rng: np.random.Generator, acquisition: Acquisition, size: int) -> _Sky:
    billows = fractal(rng, _SKY_PIXELS, 2.6)
    cover = acquisition.cloudiness
    optical_depth = np.maximum(billows - np.quantile(billows, 1 - cover), 0) * 3.5 if cover else np.zeros_like(billows)
    if cover > 0.85:
        optical_depth += 1.5 * (cover - 0.85) / 0.15
    thick = 1 - np.exp(-optical_depth)
    thin = np.zeros_like(thick)
    if cover and rng.random() < 0.35:
        thin = 0.35 * np.clip((fractal(rng, _SKY_PIXELS, 3.0, stretch=1.8) - 1.0) / 1.5, 0, 1)
    azimuth, elevation = np.radians(acquisition.sun)
    reach = _CLOUD_HEIGHT_M / np.tan(elevation) / COARSE_M
    fallen = np.roll(thick, (round(reach * np.cos(azimuth)), -round(reach * np.sin(azimuth))), (0, 1))
    cloud, cirrus, shadow = (_over_extent(field, size) for field in (thick, thin, fallen))
    return _Sky(cloud, cirrus, shadow, haze=float(rng.uniform(0.2, 1.0)))


def _over_extent(field: NDArray[Any], size: int) -> Raster:
    part = field[: size // _RATIO, : size // _RATIO].astype(np.float32)
    return enlarge(part, _RATIO)


def _mixed(ground: Reflectance, band: int, labels: NDArray[np.intp], share: Raster) -> Raster:
    mixed: Raster = ground.gain[band].take(labels)
    mixed *= share
    mixed += ground.background[band].take(labels)
    return mixed


def _blurred(field: Raster) -> Raster:
    """A pixel takes a little from its neighbours, as a sensor's does."""
    edged = np.pad(field, 1, mode="edge")
    blurred = edged[:-2, 1:-1] + edged[2:, 1:-1]
    blurred += edged[1:-1, :-2]
    blurred += edged[1:-1, 2:]
    blurred *= 0.12
    blurred += 0.52 * field
    return blurred


def _crop(rng: np.random.Generator, store: Raster, size: int) -> Raster:
    row, column = rng.integers(0, len(store) - size, 2)
    return store[row : row + size, column : column + size]


def _light(stage: Stage, acquisition: Acquisition, sky: _Sky) -> _Light:
    through = sky.through
    sunny = stage.grain * _sunlight(stage, acquisition) * through
    return _Light(
        visible=sunny * (1 - 0.58 * sky.shadow),
        infrared=sunny * (1 - 0.7 * sky.shadow),
        haze=sky.haze * through,
        cloud=sky.glow,
    )


def _observed(ground: Raster, band: int, light: _Light, noise: Raster) -> NDArray[np.uint16]:
    """Through haze and clouds, in the unit of the file; at least 1, since 0 means no data."""
    seen = ground * (light.visible if BANDS[band] in _VISIBLE_BANDS else light.infrared)
    seen += HAZE[band] * light.haze
    seen += CLOUD[band] * light.cloud
    seen += noise if BANDS[band] != "B10" else 0.2 * noise
    return seen.round(out=seen).clip(1, 20000, out=seen).astype(np.uint16)


def _cloud_probability(rng: np.random.Generator, sky: _Sky) -> Raster:
    """What a detector like s2cloudless would say, a value a block of 160 m."""
    veil = sky.cloud + 0.6 * sky.cirrus
    blocks = -(-len(veil) // _PROBABILITY_BLOCK)
    filled = np.pad(veil, (0, blocks * _PROBABILITY_BLOCK - len(veil)), mode="edge")
    means = filled.reshape(blocks, _PROBABILITY_BLOCK, blocks, _PROBABILITY_BLOCK).mean((1, 3))
    doubt = 0.35 * np.abs(fractal(rng, blocks, 1.0))
    probability: Raster = 1 / (1 + np.exp(3.6 - 16 * means - doubt))
    return probability


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the blocks next to it."""
    padded = np.pad(mask, 1)
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    grown: NDArray[np.bool_] = wide[:-2] | wide[1:-1] | wide[2:]
    return grown


def _spread(blocks: NDArray[Any], size: int) -> NDArray[Any]:
    return blocks.repeat(_PROBABILITY_BLOCK, 0).repeat(_PROBABILITY_BLOCK, 1)[:size, :size]


def _classification(stage: Stage, surface: Mapping[str, Raster], sky: _Sky) -> NDArray[np.uint8]:
    """Sen2Cor's classes: 3 shadow, 4 vegetation, 5 bare, 6 water, 7 unclassified, 8 and 9 cloud, 10 cirrus."""
    red, infrared = surface["B04"], surface["B08"]
    classes = np.where(infrared - red > 0.4 * (infrared + red), np.uint8(4), np.uint8(5))
    water = np.array([COVERS[name].lulc_id == 5 for name in COVER_NAMES])[stage.polygons.cover]
    classes[water[stage.labels]] = 6
    classes[sky.shadow > 0.3] = 3
    classes[sky.cirrus > 0.08] = 10
    classes[sky.cloud > 0.12] = 7
    classes[sky.cloud > 0.25] = 8
    classes[sky.cloud > 0.6] = 9
    return classes
