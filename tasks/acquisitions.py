"""What was acquired, as the Catalog API tells it, and how many samples of it a script gets on a tile.

Asking is apart from counting: one search gives a table, and all tiles are counted on it.

Rules: Sentinel Hub, "Catalog API" (search, paging, filter, fields) and "Processing Units" (data samples).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from sentinelhub import CRS, Geometry, SentinelHubCatalog
from shapely import MultiPolygon, Polygon
from shapely.affinity import translate
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from tasks.errors import ServiceError
from tasks.grid import Tile, lonlat_shape
from tasks.service import PATIENCE_SECONDS, call, patiently

PAGE_ITEMS = 100
"""Items of a page, the most that the service gives."""
MAX_VERTICES = 1_000
"""An area of more points is not sent as it is; the service publishes no limit, and a body has one."""

_FIELDS = {
    "include": ["id", "geometry", "properties.datetime", "properties.eo:cloud_cover"],
    "exclude": ["type", "bbox", "links", "assets"],
}
_WORLD = shapely.box(-180, -90, 180, 90)


@dataclass(frozen=True, slots=True, eq=False)
class Acquisitions:
    """Scenes of one collection: a row a scene, in the order of the Catalog.

    Attributes:
        ids: names of the products.
        times: of sensing, UTC, shape (scenes,), datetime64.
        cloud_covers: percent, shape (scenes,), float64; NaN where the Catalog does not tell.
        footprints: what has data, longitude and latitude, shape (scenes,), valid geometries within ±180 degrees.
    """

    ids: tuple[str, ...]
    times: NDArray[np.datetime64]
    cloud_covers: NDArray[np.float64]
    footprints: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_items(cls, items: Iterable[dict[str, Any]]) -> "Acquisitions":
        """Read STAC items; one that comes twice counts once: pages shift when a scene arrives meanwhile.

        Raises:
            ServiceError: an item lacks its time or footprint.
        """
        rows = {row[0]: row for row in map(_row, items)}.values()
        footprints = np.array([row[3] for row in rows], dtype=object)
        return cls(
            ids=tuple(row[0] for row in rows),
            times=np.array([row[1] for row in rows], dtype="datetime64[us]"),
            cloud_covers=np.array([row[2] for row in rows], dtype=np.float64),
            footprints=np.where(shapely.is_valid(footprints), footprints, shapely.make_valid(footprints)),
        )


def search_area(tiles: Sequence[Tile]) -> Polygon | MultiPolygon:
    """Where to search so that no scene of a tile is missed: longitude and latitude, within ±180 degrees.

    The tiles' common outline; the convex hull of each connected part where that has more than MAX_VERTICES points;
    their bounding box where these still have. Each holds the one before: what is found too much meets no tile.
    """
    outline: Any = shapely.union_all(shapely.intersection(_on_the_map(tiles)[0], _WORLD))
    hulls: Any = shapely.union_all(shapely.convex_hull(shapely.get_parts(outline)))
    fitting = (area for area in (outline, hulls) if shapely.get_num_coordinates(area) <= MAX_VERTICES)
    return next(fitting, hulls.envelope)  # type: ignore[no-any-return]


def find_acquisitions(
    catalog: SentinelHubCatalog,
    collection: str,
    days: tuple[date, date],
    area: Polygon | MultiPolygon,
    *,
    max_cloud_coverage: float = 100.0,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Acquisitions:
    """Ask the Catalog for all scenes, page by page. On the service a page costs about 0.01 PU.

    Args:
        catalog: of `connect_catalog`.
        collection: a name such as ``sentinel-2-l1c``.
        days: first and last, both included to their last second, UTC: what a request of these days gets.
        area: polygons in longitude and latitude, see :func:`search_area`.
        max_cloud_coverage: percent, included.
        patience_seconds: how long to go on asking for a page that does not come (429, 5xx, no answer).

    Raises:
        InvalidInput: the service refuses the search.
        Unavailable: no answer in that time.
        ServiceError: an answer that cannot be understood.
    """
    found = catalog.search(
        collection,
        time=days,
        geometry=Geometry(area, CRS.WGS84),
        filter=None if max_cloud_coverage >= 100 else f"eo:cloud_cover <= {max_cloud_coverage:g}",
        fields=_FIELDS,
        limit=PAGE_ITEMS,
    )
    items = iter(lambda: patiently(lambda: call(next, found, None), patience_seconds), None)
    return Acquisitions.of_items(items)


def samples_of(tiles: Sequence[Tile], acquisitions: Acquisitions, mosaicking: str) -> NDArray[np.int64]:
    """Count the samples that a script gets on each tile, shape (tiles,); 0 where there is no scene.

    A scene counts when its footprint meets the tile's outline, if only in a point. With TILE each scene is a sample,
    with ORBIT each day (UTC), with SIMPLE all of them together. The script's ``preProcessScenes`` may drop some, which
    then cost nothing: the count is the most that it gets.
    """
    met, scenes = _meetings(tiles, acquisitions)
    of_scene = {
        "TILE": np.arange(len(acquisitions)),
        "ORBIT": acquisitions.times.astype("datetime64[D]").astype(np.int64),
        "SIMPLE": np.zeros(len(acquisitions), np.int64),
    }[mosaicking]
    samples = np.unique(np.stack([met, of_scene[scenes]]), axis=1)
    return np.bincount(samples[0], minlength=len(tiles))


def scenes_of(tiles: Sequence[Tile], acquisitions: Acquisitions) -> int:
    """Count the scenes that meet any of the tiles."""
    _, scenes = _meetings(tiles, acquisitions)
    return len(np.unique(scenes))


def _meetings(tiles: Sequence[Tile], acquisitions: Acquisitions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which tile meets which scene, numbers of both, shape (meetings,); a pair may come twice."""
    shapes, owners = _on_the_map(tiles)
    placed, scenes = shapely.STRtree(acquisitions.footprints).query(shapes, predicate="intersects")
    return owners[placed], scenes


def _on_the_map(tiles: Sequence[Tile]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Outlines of the tiles in longitude and latitude, and each one's tile.

    One across the antimeridian comes once more, a whole turn further, to meet footprints on both sides of it.
    """
    outlines = [(lonlat_shape(tile), number) for number, tile in enumerate(tiles)]
    turned = [(turn, number) for outline, number in outlines for turn in _turns(outline)]
    return np.array([turn for turn, _ in turned], dtype=object), np.array([number for _, number in turned], np.int64)


def _turns(outline: BaseGeometry) -> list[BaseGeometry]:
    west, _, east, _ = outline.bounds
    turns = [0.0] + [360.0] * (west < -180) + [-360.0] * (east > 180)
    return [translate(outline, xoff=turn) for turn in turns]


def _row(item: dict[str, Any]) -> tuple[str, datetime, float, BaseGeometry]:
    """Id, time (UTC, without a zone, as numpy wants it), cloud cover and footprint."""
    try:
        properties = item["properties"]
        sensed = datetime.fromisoformat(properties["datetime"]).astimezone(UTC).replace(tzinfo=None)
        cloud_cover = properties.get("eo:cloud_cover")
        footprint = shape({name: item["geometry"][name] for name in ("type", "coordinates")})
        return str(item["id"]), sensed, float("nan") if cloud_cover is None else float(cloud_cover), footprint
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
        raise ServiceError(
            f"The Catalog gave an item that cannot be understood: {error!r}. It starts {str(item)[:80]}."
        ) from error
