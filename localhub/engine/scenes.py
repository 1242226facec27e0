"""Scenes as scripts see them: which scenes make one sample, and the objects that describe them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shapely.geometry import box, mapping
from shapely.geometry.base import BaseGeometry

_LONGITUDE_LATITUDE: Final = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}


@dataclass(frozen=True, slots=True)
class SceneInfo:
    """What an evalscript may know of a scene."""

    datetime: datetime
    """Sensing time, aware, UTC."""
    cloud_cover: float
    """Percent, 0..100."""
    path: str
    """Where the product lies; becomes ``dataPath``."""
    footprint: BaseGeometry | None = None
    """Outline of the data, longitude and latitude; becomes ``dataGeometry`` where a script asks for it."""


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
    scenes: Sequence[SceneInfo], groups: Sequence[Sequence[int]], mosaicking: str, *, bounds: bool = False
) -> list[dict[str, Any]]:
    """JSON for each sample, as in the service's ``scenes.orbits`` for ORBIT and ``scenes.tiles`` for TILE.

    SIMPLE has tiles too, one a scene, although its only sample is a mosaic of them: updateOutputMetadata gets them (the
    documentation's example "True color and metadata" of Sentinel-3 OLCI).

    Args:
        scenes: in mosaicking order.
        groups: indices of the scenes of each sample.
        mosaicking: SIMPLE, ORBIT or TILE.
        bounds: whether the script asks for ``metadata: ["bounds"]``.
    """
    tiles = [_tile(scene, bounds=bounds) for scene in scenes]
    if mosaicking == "ORBIT":
        return [_orbit([(scenes[i], tiles[i]) for i in group], position) for position, group in enumerate(groups)]
    return [{**tile, "__idx": position} for position, tile in enumerate(tiles)]


def _tile(scene: SceneInfo, *, bounds: bool) -> dict[str, Any]:
    tile = {
        "date": f"{scene.datetime.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "shId": zlib.crc32(scene.path.encode()),  # any number that stays the same for the scene
        "cloudCoverage": scene.cloud_cover,
        "dataPath": scene.path,
    }
    if bounds and scene.footprint is not None:
        tile["dataGeometry"] = _geometry(scene.footprint)
        tile["dataEnvelope"] = _geometry(box(*scene.footprint.bounds))
    return tile


def _geometry(shape: BaseGeometry) -> dict[str, Any]:
    """GeoJSON with a member ``crs``, as the service has it wherever geometries are not in a CRS that all agree on."""
    return {**mapping(shape), "crs": _LONGITUDE_LATITUDE}


def _orbit(members: Sequence[tuple[SceneInfo, dict[str, Any]]], position: int) -> dict[str, Any]:
    day = _day(members[0][0])
    tiles = [tile for _, tile in members]
    return {"tiles": tiles, "dateTo": f"{day}T23:59:59Z", "__idx": position, "dateFrom": f"{day}T00:00:00Z"}


def _day(scene: SceneInfo) -> str:
    return scene.datetime.astimezone(UTC).date().isoformat()
