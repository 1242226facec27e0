"""The scene archive: STAC items, each with one single-band file an asset, and the search over them.

Items follow STAC 1.0.0 (Item specification): GeoJSON features with ``collection``, ``properties.datetime`` and
``assets`` keyed by band name, or as Earth Search and the Copernicus Data Space key those of Sentinel-2. Relative hrefs
start at the item's own folder. They lie in a folder or in a bucket.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shapely.affinity import translate
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from localhub.archiveroot import BucketFolder, Root, RootError, root_of
from localhub.errors import StoreError
from localhub.objectstore import Access
from localhub.sentinel2 import added_dn, by_band

DATA_MASK = "dataMask"
"""The band that every scene has: as an asset, or derived from a file's nodata value and extent."""

_NO_BAND = ("thumbnail", "overview", "visual", "metadata")
"""Roles of assets that are no bands (STAC, best practices on asset roles), unless they have the role `data` too."""

ORDERS = ("mostRecent", "leastRecent", "leastCC")
"""The mosaicking orders of the service."""


class ArchiveError(ValueError):
    """The archive cannot be used as it is, or does not hold what was asked of it."""


class UnknownCollection(ArchiveError):
    """The archive has no scene of the collection."""


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
    access: Access | None = None
    """How to read the assets; None: files, or addresses that need no key."""
    added_dn: Mapping[str, int] = field(default_factory=dict, hash=False)
    """What the files of optical bands add to 10000 times the reflectance, where they do; see `sentinel2.added_dn`."""

    @property
    def data_path(self) -> str:
        """Where the product lies, as scripts and catalogue see it."""
        return f"localhub://{self.collection}/{self.id}"


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """Which archive to read, and what of it to offer."""

    place: Path | BucketFolder
    withheld: frozenset[str] = frozenset()
    """Bands that count as absent."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The scenes found below a folder, or below a prefix of a bucket."""

    place: Path | BucketFolder
    scenes: tuple[Scene, ...]

    @classmethod
    def open(cls, place: Path | BucketFolder, withheld: AbstractSet[str] = frozenset()) -> "Archive":
        """Read every STAC item below `place`; the bands in `withheld` count as absent.

        Raises:
            ArchiveError: the folder or bucket cannot be read or holds no item, or an item is broken; the message
                names its file.
        """
        try:
            scenes = tuple(_read_items(root_of(place), withheld))
        except (RootError, StoreError) as error:
            raise ArchiveError(str(error)) from error
        if not scenes:
            raise ArchiveError(f"The archive {place} holds no STAC item (*.json with type Feature).")
        _refuse_duplicates(scenes)
        return cls(place, scenes)

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
            footprint: longitude and latitude; a scene that only touches it counts. It may reach beyond ±180.
            max_cloud_cover: percent, included.
            order: `mostRecent` (newest first), `leastRecent`, or `leastCC` (least cloud first, then newest).

        Raises:
            UnknownCollection: the collection is unknown.
            ArchiveError: the order is unknown, or a time has no time zone.
        """
        _check_search(start, end, order)
        places = _turned(footprint)
        found = [
            scene
            for scene in self._of(collection)
            if start <= scene.datetime <= end
            and scene.cloud_cover <= max_cloud_cover
            and any(scene.footprint.intersects(place) for place in places)
        ]
        return _ordered(found, order)

    def _of(self, collection: str) -> list[Scene]:
        scenes = [scene for scene in self.scenes if scene.collection == collection]
        if not scenes:
            held = ", ".join(sorted(self.collections))
            raise UnknownCollection(
                f"Collection {collection!r} is not in the archive {self.place}. Choose one of: {held}."
            )
        return scenes


def _turned(footprint: BaseGeometry) -> list[BaseGeometry]:
    """Return `footprint`, and by a whole turn to either side where it leaves the longitudes that items have."""
    west, _, east, _ = footprint.bounds
    turns = [0.0] + [360.0] * (west < -180) + [-360.0] * (east > 180)
    return [translate(footprint, xoff=turn) for turn in turns]


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


def _read_items(root: Root, withheld: AbstractSet[str]) -> Iterator[Scene]:
    for name, content in root.documents():
        document = _parsed(name, content)
        if _is_item(name, document):
            yield _read_item(name, document, root, withheld)


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _broken(name, f"it is not readable JSON ({error})") from error


def _is_item(name: str, document: Any) -> bool:
    kind: Any = document.get("type") if isinstance(document, dict) else None
    if kind not in {"Feature", "Catalog", "Collection"}:
        raise _broken(name, f"its type is {kind!r}, where a STAC item has 'Feature'")
    return bool(kind == "Feature")


def _read_item(name: str, item: Mapping[str, Any], root: Root, withheld: AbstractSet[str]) -> Scene:
    properties = _member(name, item, "properties", dict)
    collection = _member(name, item, "collection", str)
    assets = by_band(collection, _rasters(name, _member(name, item, "assets", dict)))
    return Scene(
        id=_member(name, item, "id", str),
        collection=collection,
        datetime=_sensing_time(name, properties),
        cloud_cover=_cloud_cover(name, properties),
        footprint=_footprint(name, item),
        assets=_asset_files(name, assets, root, withheld),
        properties=properties,
        access=root.access,
        added_dn=_added_dn(collection, properties, assets),
    )


def _member(name: str, holder: Mapping[str, Any], member: str, kind: type) -> Any:
    value = holder.get(member)
    if not isinstance(value, kind) or not value:
        raise _broken(name, f"{member!r} is {value!r}, where a non-empty {kind.__name__} is due")
    return value


def _sensing_time(name: str, properties: Mapping[str, Any]) -> datetime:
    text = _member(name, properties, "datetime", str)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise _broken(name, f"its datetime {text!r} is not an RFC 3339 time") from error
    if time.tzinfo is None:
        raise _broken(name, f"its datetime {text!r} has no time zone")
    return time.astimezone(UTC)


def _cloud_cover(name: str, properties: Mapping[str, Any]) -> float:
    value = properties.get("eo:cloud_cover", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _broken(name, f"its eo:cloud_cover is {value!r}, where a percentage from 0 to 100 is due")
    return float(value)


def _footprint(name: str, item: Mapping[str, Any]) -> BaseGeometry:
    geometry = _member(name, item, "geometry", dict)
    try:
        footprint = shape(geometry)
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise _broken(name, f"its geometry is not GeoJSON ({error})") from error
    if footprint.is_empty or not footprint.is_valid or not math.isfinite(footprint.area):
        raise _broken(name, "its geometry is empty or crosses itself")
    return footprint


def _rasters(name: str, assets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the assets that may be bands: catalogues have pictures and documents beside them, copies often not."""
    found = {band: asset for band, asset in assets.items() if _may_be_a_band(asset)}
    if not found:
        raise _broken(name, "none of its assets is a band")
    return found


def _may_be_a_band(asset: Any) -> bool:
    roles = asset.get("roles") if isinstance(asset, dict) else None
    return not isinstance(roles, list) or "data" in roles or not any(role in _NO_BAND for role in roles)


def _asset_files(name: str, assets: Mapping[str, Any], root: Root, withheld: AbstractSet[str]) -> dict[str, str]:
    return {band: _asset_file(name, band, asset, root) for band, asset in assets.items() if band not in withheld}


def _asset_file(name: str, band: str, asset: Any, root: Root) -> str:
    href = asset.get("href") if isinstance(asset, dict) else None
    if not isinstance(href, str) or not href:
        raise _broken(name, f"its asset {band!r} has no href")
    try:
        return root.file(name, href)
    except RootError as error:
        raise _broken(name, f"its asset {band!r} {error}") from error


def _added_dn(collection: str, properties: Mapping[str, Any], assets: Mapping[str, Any]) -> dict[str, int]:
    added = {band: added_dn(collection, band, properties, asset) for band, asset in assets.items()}
    return {band: dn for band, dn in added.items() if dn}


def _broken(name: str, reason: str) -> ArchiveError:
    return ArchiveError(f"STAC item {name} cannot be used: {reason}.")
