"""Catalog API 1.0.0: the archive's scenes as a STAC API.

Paths, statuses and bodies: the service's OpenAPI description, tags catalog_core to catalog_item_search.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from localhub.api.common import Payload, Served, within_rate
from localhub.archive import Archive, ArchiveError
from localhub.catalog import (
    CatalogError,
    Page,
    Search,
    body_of_query,
    collection_of,
    find,
    item_of,
    known,
    link,
    parse_search,
    queryables,
)
from localhub.providers import archive_source
from localhub.render import open_archive, reading_now

PREFIXES = ("/api/v1/catalog/1.0.0", "/catalog/v1")
"""Where clients look for the API: the first is that of `sentinelhub`, the second that of the newer documentation."""

_GEO_JSON = "application/geo+json"
_QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"
_CONFORMANCE = (
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#fields",
    "https://api.stacspec.org/v1.0.0/item-search#context",
    "https://api.stacspec.org/v1.0.0/item-search#filter",
    "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/filter",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-text",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
)


def router() -> APIRouter:
    """Return the routes, below the API's prefix. Landing page and conformance need no token, as on the service."""
    routes = APIRouter()
    for path in ("", "/"):
        routes.add_api_route(path, _landing_page, methods=["GET"])
    routes.add_api_route("/conformance", _conformance, methods=["GET"])
    with_token = [Depends(within_rate)]
    for path in ("/collections", "/collections/"):
        routes.add_api_route(path, _collections, methods=["GET"], dependencies=with_token)
    for path in ("/collections/{collection}", "/collections/{collection}/"):
        routes.add_api_route(path, _collection, methods=["GET"], dependencies=with_token)
    for path in ("/queryables", "/collections/{collection}/queryables"):
        routes.add_api_route(path, _queryables, methods=["GET"], dependencies=with_token)
    routes.add_api_route("/collections/{collection}/items", _items, methods=["GET"], dependencies=with_token)
    routes.add_api_route("/collections/{collection}/items/{item}", _item, methods=["GET"], dependencies=with_token)
    routes.add_api_route("/search", _search_by_query, methods=["GET"], dependencies=with_token)
    routes.add_api_route("/search", _search, methods=["POST"], dependencies=with_token)
    return routes


def _archive(service: Served) -> Archive:
    try:
        return open_archive(archive_source(service.settings), reading_now())
    except ArchiveError as error:
        raise CatalogError(500, str(error)) from error


Held = Annotated[Archive, Depends(_archive)]


def _base_url(request: Request) -> str:
    prefix = next(prefix for prefix in PREFIXES if request.url.path.startswith(prefix))
    return str(request.base_url).rstrip("/") + prefix


def _landing_page(request: Request, archive: Held) -> dict[str, Any]:
    base_url = _base_url(request)
    children = [
        link("child", f"{base_url}/collections/{collection}", title=collection)
        for collection in sorted(archive.collections)
    ]
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "sentinel-hub",
        "title": "localhub's STAC catalog",
        "description": "STAC v1.0.0 implementation by localhub, a stand-in for Sentinel Hub",
        "conformsTo": list(_CONFORMANCE),
        "links": [
            link("root", f"{base_url}/"),
            link("self", f"{base_url}/"),
            link("data", f"{base_url}/collections"),
            link("conformance", f"{base_url}/conformance"),
            link("search", f"{base_url}/search", _GEO_JSON, method="GET"),
            link("search", f"{base_url}/search", _GEO_JSON, method="POST"),
            link(_QUERYABLES, f"{base_url}/queryables", "application/schema+json"),
            *children,
        ],
    }


def _conformance() -> dict[str, Any]:
    return {"conformsTo": list(_CONFORMANCE)}


def _collections(request: Request, archive: Held) -> dict[str, Any]:
    base_url = _base_url(request)
    return {
        "links": [
            link("root", f"{base_url}/"),
            link("self", f"{base_url}/collections"),
            link("parent", f"{base_url}/"),
        ],
        "collections": [collection_of(archive, collection, base_url) for collection in sorted(archive.collections)],
    }


def _collection(collection: str, request: Request, archive: Held) -> dict[str, Any]:
    return collection_of(archive, known(archive, collection, 404), _base_url(request))


def _queryables(request: Request, archive: Held, collection: str | None = None) -> Response:
    if collection is not None:
        known(archive, collection, 404)
    return JSONResponse(queryables(str(request.url)), media_type="application/schema+json")


def _item(collection: str, item: str, request: Request, archive: Held) -> Response:
    known(archive, collection, 404)
    for scene in archive.scenes:
        if (scene.collection, scene.id) == (collection, item):
            return JSONResponse(item_of(scene, _base_url(request)), media_type=_GEO_JSON)
    raise CatalogError(404, f"Collection {collection} has no item {item}.")


def _items(collection: str, request: Request, archive: Held) -> Response:
    """Answer with the items of a collection; the query has `bbox`, `datetime`, `limit` and `next` only."""
    known(archive, collection, 404)
    query = dict(request.query_params)
    search = parse_search({"datetime": "../..", **body_of_query(query), "collections": [collection]})
    page = find(archive, search, _base_url(request))
    url = f"{_base_url(request)}/collections/{collection}"
    answer = {
        "type": "FeatureCollection",
        "features": page.features,
        "links": [link("parent", url), *_query_links(request, page)],
        "timeStamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "numberReturned": len(page.features),
    }
    return JSONResponse(answer, media_type=_GEO_JSON)


def _search_by_query(request: Request, archive: Held) -> Response:
    search = parse_search(body_of_query(request.query_params))
    page = find(archive, search, _base_url(request))
    return _found(search, page, _query_links(request, page))


def _query_links(request: Request, page: Page) -> list[Mapping[str, Any]]:
    links = [link("self", str(request.url), _GEO_JSON)]
    if page.next is not None:
        url = str(request.url.include_query_params(next=page.next))
        links.append(link("next", url, _GEO_JSON, title="Next set of results"))
    return links


def _search(payload: Payload, request: Request, archive: Held) -> Response:
    search = parse_search(payload)
    page = find(archive, search, _base_url(request))
    url = f"{_base_url(request)}/search"
    links = [link("self", url, _GEO_JSON)]
    if page.next is not None:
        merge = {"method": "POST", "body": {"next": page.next}, "merge": True}
        links.append(link("next", url, _GEO_JSON, title="Next set of results", **merge))
    return _found(search, page, links)


def _found(search: Search, page: Page, links: list[Mapping[str, Any]]) -> Response:
    context = {"limit": search.page_size, "returned": len(page.features)}
    if page.next is not None:
        context["next"] = page.next
    answer = {"type": "FeatureCollection", "features": page.features, "links": links, "context": context}
    return JSONResponse(answer, media_type=_GEO_JSON)
