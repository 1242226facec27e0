"""The scene archive: a folder of STAC items, each with one single-band file an asset, and the search over them.

Items follow STAC 1.0.0 (Item specification): GeoJSON features with ``collection``, ``properties.datetime`` and
``assets`` keyed by band name. Relative hrefs start at the item's own folder.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

DATA_MASK = "dataMask"
"""The band that every scene has: as an asset, or derived from a file's nodata value and extent."""

ORDERS = ("mostRecent", "leastRecent", "leastCC")
"""The mosaicking orders of the service."""

_REMOTE_SCHEMES = frozenset({"https", "s3"})


class ArchiveError(ValueError):
    """The archive cannot be used as it is, or does not hold what was asked of it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition of one collection."""

    id: str
    collection: str
    """For example ``sentinel-2-l1c`` or ``sentinel-2-l2a``."""
    datetime: datetime
    """Time of sensing, aware, UTC."""
    cloud_cover: float
    """Percent, 0 to 100; 0 where the item does not say."""
    footprint: BaseGeometry
    """Outline of the data, longitude and latitude (EPSG:4326)."""
    assets: Mapping[str, str]
    """Absolute path, or https or s3 URL, of each band's file."""
    properties: Mapping[str, Any] = field(hash=False)
    """The item's properties as they stand."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The scenes found below a folder."""

    folder: Path
    scenes: tuple[Scene, ...]

    @classmethod
    def open(cls, folder: Path) -> "Archive":
        """Read every STAC item below `folder`.

        Raises:
            ArchiveError: the folder is missing or holds no item, or an item is broken; the message names its file.
        """
        root = Path(os.path.realpath(folder))
        if not root.is_dir():
            raise ArchiveError(f"The archive {folder} is not a folder. Give the folder that holds the STAC items.")
        documents = ((path, _read_json(path)) for path in sorted(root.rglob("*.json")))
        scenes = tuple(_read_item(path, item, root) for path, item in documents if _is_item(path, item))
        if not scenes:
            raise ArchiveError(f"The archive {folder} holds no STAC item (*.json with type Feature).")
        _refuse_duplicates(scenes)
        return cls(root, scenes)

    @property
    def collections(self) -> frozenset[str]:
        """Names of the collections that have at least one scene."""
        return frozenset(scene.collection for scene in self.scenes)

    def bands(self, collection: str) -> frozenset[str]:
        """Bands that every scene of `collection` has, `dataMask` always among them."""
        return frozenset[str].intersection(*(frozenset(s.assets) for s in self._of(collection))) | {DATA_MASK}

    def search(
        self,
        collection: str,
        start: datetime,
        end: datetime,
        footprint: BaseGeometry,
        max_cloud_cover: float = 100.0,
        order: str = "mostRecent",
    ) -> list[Scene]:
        """Scenes of `collection` sensed from `start` to `end`, both included, that meet `footprint`.

        Args:
            collection: a name in `collections`.
            start: aware datetime, included.
            end: aware datetime, included.
            footprint: longitude and latitude; a scene that only touches it counts.
            max_cloud_cover: percent, included.
            order: `mostRecent` (newest first), `leastRecent`, or `leastCC` (least cloud first, then newest).

        Raises:
            ArchiveError: the collection or the order is unknown, or a time has no time zone.
        """
        _check_search(start, end, order)
        found = [
            scene
            for scene in self._of(collection)
            if start <= scene.datetime <= end
            and scene.cloud_cover <= max_cloud_cover
            and scene.footprint.intersects(footprint)
        ]
        return _ordered(found, order)

    def _of(self, collection: str) -> list[Scene]:
        scenes = [scene for scene in self.scenes if scene.collection == collection]
        if not scenes:
            held = ", ".join(sorted(self.collections))
            raise ArchiveError(f"Collection {collection!r} is not in the archive {self.folder}. Choose one of: {held}.")
        return scenes


def _check_search(start: datetime, end: datetime, order: str) -> None:
    if order not in ORDERS:
        raise ArchiveError(f"Mosaicking order {order!r} is not known. Choose one of: {', '.join(ORDERS)}.")
    if start.tzinfo is None or end.tzinfo is None:
        raise ArchiveError(f"The search from {start} to {end} has no time zone. Give aware datetimes.")


def _ordered(scenes: list[Scene], order: str) -> list[Scene]:
    """Sort by `order`; equal ones newest first, then by id, so that an order is one order."""
    newest_first = sorted(scenes, key=lambda scene: (-scene.datetime.timestamp(), scene.id))
    if order == "leastRecent":
        return sorted(scenes, key=lambda scene: (scene.datetime, scene.id))
    return sorted(newest_first, key=lambda scene: scene.cloud_cover) if order == "leastCC" else newest_first


def _refuse_duplicates(scenes: Iterable[Scene]) -> None:
    counts = Counter((scene.collection, scene.id) for scene in scenes)
    (collection, name), count = counts.most_common(1)[0]
    if count > 1:
        raise ArchiveError(f"Item {name!r} of {collection} stands {count} times in the archive. Give each its own id.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise _broken(path, f"it is not readable JSON ({error})") from error


def _is_item(path: Path, document: Any) -> bool:
    kind: Any = document.get("type") if isinstance(document, dict) else None
    if kind not in {"Feature", "Catalog", "Collection"}:
        raise _broken(path, f"its type is {kind!r}, where a STAC item has 'Feature'")
    return bool(kind == "Feature")


def _read_item(path: Path, item: Mapping[str, Any], root: Path) -> Scene:
    properties = _member(path, item, "properties", dict)
    return Scene(
        id=_member(path, item, "id", str),
        collection=_member(path, item, "collection", str),
        datetime=_sensing_time(path, properties),
        cloud_cover=_cloud_cover(path, properties),
        footprint=_footprint(path, item),
        assets=_asset_files(path, item, root),
        properties=properties,
    )


def _member(path: Path, holder: Mapping[str, Any], name: str, kind: type) -> Any:
    value = holder.get(name)
    if not isinstance(value, kind) or not value:
        raise _broken(path, f"{name!r} is {value!r}, where a non-empty {kind.__name__} is due")
    return value


def _sensing_time(path: Path, properties: Mapping[str, Any]) -> datetime:
    text = _member(path, properties, "datetime", str)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise _broken(path, f"its datetime {text!r} is not an RFC 3339 time") from error
    if time.tzinfo is None:
        raise _broken(path, f"its datetime {text!r} has no time zone")
    return time.astimezone(UTC)


def _cloud_cover(path: Path, properties: Mapping[str, Any]) -> float:
    value = properties.get("eo:cloud_cover", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _broken(path, f"its eo:cloud_cover is {value!r}, where a percentage from 0 to 100 is due")
    return float(value)


def _footprint(path: Path, item: Mapping[str, Any]) -> BaseGeometry:
    geometry = _member(path, item, "geometry", dict)
    try:
        footprint = shape(geometry)
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise _broken(path, f"its geometry is not GeoJSON ({error})") from error
    if footprint.is_empty or not footprint.is_valid or not math.isfinite(footprint.area):
        raise _broken(path, "its geometry is empty or crosses itself")
    return footprint


def _asset_files(path: Path, item: Mapping[str, Any], root: Path) -> dict[str, str]:
    assets = _member(path, item, "assets", dict)
    return {band: _asset_file(path, band, asset, root) for band, asset in assets.items()}


def _asset_file(path: Path, band: str, asset: Any, root: Path) -> str:
    href = asset.get("href") if isinstance(asset, dict) else None
    if not isinstance(href, str) or not href:
        raise _broken(path, f"its asset {band!r} has no href")
    if urlsplit(href).scheme in _REMOTE_SCHEMES:
        return href
    file = os.path.realpath(path.parent / href)
    if not Path(file).is_relative_to(root):
        raise _broken(path, f"its asset {band!r} ({href}) lies outside the archive's folder")
    if not os.path.isfile(file):  # noqa: PTH113 (a Path for each of thousands of assets costs more than the check)
        raise _broken(path, f"its asset {band!r} ({href}) is not there")
    return file


def _broken(path: Path, reason: str) -> ArchiveError:
    return ArchiveError(f"STAC item {path} cannot be used: {reason}.")
