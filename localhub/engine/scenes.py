"""Scenes as scripts see them: which scenes make one sample, and the objects that describe them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class SceneInfo:
    """What an evalscript may know of a scene."""

    datetime: datetime
    """Sensing time, aware, UTC."""
    cloud_cover: float
    """Percent, 0..100."""
    path: str
    """Where the product lies; becomes ``dataPath``."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One collection of a request, and the scenes found in it."""

    scenes: Sequence[SceneInfo]
    """In mosaicking order."""
    time_from: datetime
    """Start of the request's time range, aware."""
    time_to: datetime
    """Its end."""
    collection: str = "sentinel-2-l1c"
    """Its type, which decides on the bands' units."""
    id: str | None = None
    """As the request names it for data fusion."""


def group_scenes(scenes: Sequence[SceneInfo], mosaicking: str) -> tuple[tuple[int, ...], ...]:
    """Indices of the scenes that mosaic into each sample, in the given order of preference.

    TILE: one sample a scene. ORBIT: one a UTC day ("orbit" means day). SIMPLE: one in all, even of no scene.
    """
    if mosaicking == "SIMPLE":
        return (tuple(range(len(scenes))),)
    if mosaicking == "TILE":
        return tuple((index,) for index in range(len(scenes)))
    days: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        days.setdefault(_day(scene), []).append(index)
    return tuple(tuple(members) for members in days.values())


def describe_samples(
    scenes: Sequence[SceneInfo], groups: Sequence[Sequence[int]], mosaicking: str
) -> list[dict[str, Any]]:
    """JSON for each sample of ORBIT and TILE, as in the service's ``scenes.orbits`` and ``scenes.tiles``."""
    if mosaicking == "TILE":
        return [_tile(scenes[index], position) for position, (index,) in enumerate(groups)]
    return [_orbit([scenes[index] for index in group], position) for position, group in enumerate(groups)]


def _tile(scene: SceneInfo, position: int) -> dict[str, Any]:
    return {
        "date": f"{scene.datetime.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "shId": zlib.crc32(scene.path.encode()),  # any number that stays the same for the scene
        "cloudCoverage": scene.cloud_cover,
        "__idx": position,
        "dataPath": scene.path,
    }


def _orbit(scenes: Sequence[SceneInfo], position: int) -> dict[str, Any]:
    day = _day(scenes[0])
    tiles = [_tile(scene, index) for index, scene in enumerate(scenes)]
    return {"tiles": tiles, "dateTo": f"{day}T23:59:59Z", "__idx": position, "dateFrom": f"{day}T00:00:00Z"}


def _day(scene: SceneInfo) -> str:
    return scene.datetime.astimezone(UTC).date().isoformat()
