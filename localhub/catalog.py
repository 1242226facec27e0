"""Searching the archive as the Catalog API does: what a search may ask for, and items as the service shows them.

Sources: the service's OpenAPI description (CatalogItemSearch schemas and examples) and its page "Catalog API" (paging,
and the extensions Filter, Fields and Distinct). Where they are silent, see ASSUMPTIONS.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import shapely
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from shapely.geometry import box, mapping
from shapely.geometry.base import BaseGeometry

from localhub.archive import Archive, Scene
from localhub.cql2 import QUERYABLES, Condition, FilterError, condition_of, parse_text
from localhub.errors import ApiError

LIMIT, MOST = 10, 100
"""Items of a page: by default, and at most; a search for more gets that many."""

_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_WORLD = box(-180, -90, 180, 90)
_DEFAULT_FIELDS = ("id", "type", "geometry", "bbox", "links", "assets", "properties.datetime")
_STAC_EXTENSIONS = (
    "https://stac-extensions.github.io/eo/v1.0.0/schema.json",
    "https://stac-extensions.github.io/projection/v1.0.0/schema.json",
)
_CRS84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC::CRS84"}}
_TITLES = {"sentinel-2-l1c": "Sentinel 2 L1C", "sentinel-2-l2a": "Sentinel 2 L2A"}

Link = Mapping[str, Any]


class CatalogError(ApiError):
    """An answer other than success, in the shape of the Catalog API's error body (CatalogException)."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(status, description, str(status))

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"code": self.code, "description": self.message}


# ---- what a search may ask for ----


def _interval(value: Any) -> tuple[datetime, datetime]:
    """Return both ends of a date-time, or of an interval with `..` or nothing for an open end (RFC 3339)."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 (pydantic's rule for what is not valid)
    first, slash, last = value.partition("/")
    start = _time(first, _ALWAYS[0] if slash else None)
    end = _time(last, _ALWAYS[1]) if slash else start
    if start > end:
        raise ValueError(f"'{value}' ends before it starts")
    return start, end


def _time(text: str, when_open: datetime | None) -> datetime:
    if when_open is not None and text in {"", ".."}:
        return when_open
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a date-time such as 2019-12-10T00:00:00Z") from error
    if time.tzinfo is None or "T" not in text.upper():
        raise ValueError(f"'{text}' is not a date-time with a zone such as 2019-12-10T00:00:00Z")
    return time


def _box(value: Any) -> BaseGeometry:
    """Return the area of four or six numbers; one whose west is east of its east crosses the antimeridian."""
    if not isinstance(value, list) or len(value) not in {4, 6} or not all(_is_number(number) for number in value):
        raise ValueError(f"{str(value)[:80]} is not four or six numbers")
    west, south, east, north = (value[k] for k in ((0, 1, 2, 3) if len(value) == 4 else (0, 1, 3, 4)))
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise ValueError(f"{value} is not west, south, east, north in degrees")
    if west <= east:
        return box(west, south, east, north)
    return shapely.MultiPolygon([box(west, south, 180, north), box(-180, south, east, north)])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _geometry(value: Any) -> BaseGeometry:
    try:
        geometry = shapely.from_geojson(json.dumps(value))
    except shapely.errors.GEOSException as error:
        raise ValueError(f"it is not a GeoJSON geometry ({error})") from error
    if not isinstance(value, dict) or geometry.is_empty or not geometry.is_valid:
        raise ValueError(f"it is not a valid GeoJSON geometry ({shapely.is_valid_reason(geometry)})")
    return geometry


class Fields(BaseModel):
    """Which members an item of the answer has; names are paths such as `properties.eo:cloud_cover`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members that are asked for: the default ones and the included ones, less the excluded ones."""
        chosen: dict[str, Any] = {}
        for path in (*_DEFAULT_FIELDS, *(self.include or ())):
            _copy(item, chosen, path.split("."))
        for path in self.exclude or ():
            _drop(chosen, path.split("."))
        return chosen


def _copy(source: Mapping[str, Any], target: dict[str, Any], path: Sequence[str]) -> None:
    name, *rest = path
    if name not in source:
        return
    if not rest:
        target[name] = dict(source[name]) if isinstance(source[name], dict) else source[name]
    elif isinstance(source[name], dict):
        _copy(source[name], target.setdefault(name, {}), rest)


def _drop(target: dict[str, Any], path: Sequence[str]) -> None:
    name, *rest = path
    if not rest:
        target.pop(name, None)
    elif isinstance(target.get(name), dict):
        _drop(target[name], rest)


class Search(BaseModel):
    """A search, in the members of a POST request's body."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    collections: tuple[str, ...] = Field(min_length=1, max_length=1)
    period: Annotated[tuple[datetime, datetime] | None, PlainValidator(_interval)] = Field(
        default=None, alias="datetime"
    )
    """First and last sensing time, both included."""
    bbox: Annotated[BaseGeometry | None, PlainValidator(_box)] = None
    intersects: Annotated[BaseGeometry | None, PlainValidator(_geometry)] = None
    ids: tuple[str, ...] | None = None
    limit: int = Field(default=LIMIT, ge=1)
    first: int | None = Field(default=None, alias="next", ge=1)
    """Items to pass over: the `next` of the page before."""
    members: Fields | None = Field(default=None, alias="fields")
    filter: str | dict[str, Any] | None = None
    filter_lang: Literal["cql2-text", "cql2-json"] | None = Field(default=None, alias="filter-lang")
    filter_crs: str | None = Field(default=None, alias="filter-crs")
    distinct: Literal["date"] | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.period is None and self.ids is None:
            raise ValueError("datetime is missing; give a date-time or an interval, which may be ../..")
        if self.bbox is not None and self.intersects is not None:
            raise ValueError("bbox and intersects exclude each other; give one of them")
        _ = self.condition
        return self

    @property
    def condition(self) -> Condition:
        """The filter."""
        if self.filter is None:
            return lambda _: True
        kind = "cql2-text" if isinstance(self.filter, str) else "cql2-json"
        if self.filter_lang not in {None, kind}:
            raise FilterError(f"the filter is {kind}, and filter-lang says {self.filter_lang}")
        return condition_of(parse_text(self.filter) if isinstance(self.filter, str) else self.filter)

    @property
    def page_size(self) -> int:
        """Items of a page."""
        return min(self.limit, MOST)


def parse_search(body: Mapping[str, Any]) -> Search:
    """Return the search of a body; raise CatalogError with what is wrong with it."""
    try:
        given = {name: value for name, value in body.items() if value is not None}
        return Search.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        notes = [
            f"{'.'.join(str(part) for part in detail['loc']) or 'search'}: "
            f"{detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise CatalogError(400, f"The search is not valid. {'; '.join(notes)}.") from error


def body_of_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of the POST request that asks for the same as a GET request's query."""
    return {name: _of_query(name, text) for name, text in query.items()}


def _of_query(name: str, text: str) -> Any:
    match name:
        case "collections" | "ids":
            return text.split(",")
        case "fields":
            names = [part.strip() for part in text.split(",")]
            return {
                "include": [part for part in names if not part.startswith("-")],
                "exclude": [part[1:] for part in names if part.startswith("-")],
            }
        case "bbox":
            return _json(f"[{text}]")
        case "limit" | "next" | "intersects":
            return _json(text)
    return text


def _json(text: str) -> Any:
    """Return a JSON value; a text that is none is left for the validation to refuse."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---- the answer ----


@dataclass(frozen=True, slots=True)
class Page:
    """A page of what a search has found."""

    features: list[Any]
    """Items, or dates where distinct ones were asked for."""
    next: int | None
    """What the next page asks for, None when there is none."""


def find(archive: Archive, search: Search, base_url: str) -> Page:
    """Return the page that a search asks for, newest first; links start with `base_url`.

    Raises:
        CatalogError: the collection is unknown.
    """
    scenes = _scenes(archive, search)
    start = search.first or 0
    stop = start + search.page_size
    if search.distinct:
        found: list[Any] = sorted({scene.datetime.date().isoformat() for scene in scenes})
        features = found[start:stop]
    else:
        found = scenes
        fields = search.members
        items = [item_of(scene, base_url) for scene in scenes[start:stop]]
        features = [fields.of(item) for item in items] if fields is not None else items
    return Page(features, stop if stop < len(found) else None)


def _scenes(archive: Archive, search: Search) -> list[Scene]:
    collection = known(archive, search.collections[0], 400)
    area = next((area for area in (search.bbox, search.intersects) if area is not None), _WORLD)
    found = archive.search(collection, *(search.period or _ALWAYS), area)
    return [
        scene
        for scene in found
        if (search.ids is None or scene.id in search.ids) and search.condition({"eo:cloud_cover": scene.cloud_cover})
    ]


def known(archive: Archive, collection: str, status: int) -> str:
    """Return the collection when the archive has it; raise a CatalogError with `status` when not."""
    if collection not in archive.collections:
        held = ", ".join(sorted(archive.collections))
        raise CatalogError(status, f"Illegal collection: {collection}. This archive has: {held}.")
    return collection


def item_of(scene: Scene, base_url: str) -> dict[str, Any]:
    """Return a scene as the service shows it. Its files are no assets: the service's are not for clients either."""
    collection_url = f"{base_url}/collections/{scene.collection}"
    footprint = scene.footprint
    multi = shapely.MultiPolygon([footprint]) if isinstance(footprint, shapely.Polygon) else footprint
    return {
        "stac_version": "1.0.0",
        "stac_extensions": list(_STAC_EXTENSIONS),
        "id": scene.id,
        "type": "Feature",
        "geometry": mapping(multi) | {"crs": _CRS84},
        "bbox": list(footprint.bounds),
        "properties": dict(scene.properties)
        | {"datetime": _stamp(scene.datetime), "eo:cloud_cover": scene.cloud_cover},
        "assets": {"data": {"href": scene.data_path, "title": "localhub", "type": "inode/directory"}},
        "collection": scene.collection,
        "links": [
            link("root", f"{base_url}/"),
            link("self", f"{collection_url}/items/{scene.id}", "application/geo+json"),
            link("parent", collection_url),
            link("collection", collection_url),
        ],
    }


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="auto").replace("+00:00", "Z")


def link(rel: str, href: str, media_type: str = "application/json", **more: Any) -> Link:
    """Return a STAC link."""
    return {"rel": rel, "href": href, "type": media_type, **more}


def collection_of(archive: Archive, collection: str, base_url: str) -> dict[str, Any]:
    """Return a collection with the extent that it has in this archive."""
    scenes = [scene for scene in archive.scenes if scene.collection == collection]
    bounds = shapely.total_bounds([scene.footprint for scene in scenes]).tolist()
    times = [scene.datetime for scene in scenes]
    url = f"{base_url}/collections/{collection}"
    title = _TITLES.get(collection, collection)
    return {
        "stac_version": "1.0.0",
        "stac_extensions": [_STAC_EXTENSIONS[0]],
        "type": "Collection",
        "id": collection,
        "title": title,
        "description": f"{title} of this localhub's archive",
        "license": "proprietary",
        "providers": [{"name": "localhub", "roles": ["host"]}],
        "extent": {
            "spatial": {"bbox": [bounds]},
            "temporal": {"interval": [[_stamp(min(times)), _stamp(max(times))]]},
        },
        "summaries": {
            "platform": sorted({scene.properties["platform"] for scene in scenes if "platform" in scene.properties}),
            "eo:cloud_cover": {"minimum": 0, "maximum": 100},
            "eo:bands": [{"name": band} for band in sorted(archive.bands(collection)) if band.startswith("B")],
        },
        "links": [
            link("root", f"{base_url}/"),
            link("self", url),
            link("parent", f"{base_url}/collections"),
            link("http://www.opengis.net/def/rel/ogc/1.0/queryables", f"{url}/queryables", "application/schema+json"),
            link("items", f"{url}/items", "application/geo+json"),
        ],
    }


def queryables(url: str) -> dict[str, Any]:
    """Return the schema of what a filter may name."""
    return {
        "$schema": "https://json-schema.org/draft/2019-09/schema",
        "$id": url,
        "type": "object",
        "title": "Queryables for Catalog STAC API",
        "description": "Queryable names for the Catalog STAC API Item Search filter.",
        "properties": {name: dict(schema) for name, schema in QUERYABLES.items()},
        "additionalProperties": False,
    }
