"""The Catalog API finds what brute force over the real scenes finds, and shows it as the vendor's client expects."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from sentinelhub import CRS, BBox, DataCollection, Geometry, SentinelHubCatalog, SHConfig
from sentinelhub.api.catalog import get_available_timestamps
from sentinelhub.exceptions import DownloadFailedException
from shapely.geometry import box, shape

from localhub.archive import Archive
from localhub.catalog import CatalogError, body_of_query, parse_search
from localhub.cql2 import FilterError, condition_of, parse_text
from localhub.server import LocalHub
from tasks.grid import lonlat_outline, tiles_of_grid
from tests.localhub.batch_requests import client_of, session_of

SQUARE = BBox((14.552, 45.867, 14.563, 45.874), CRS.WGS84)
SUMMER = ("2015-07-01", "2015-09-30")
L1C = DataCollection.SENTINEL2_L1C


@pytest.fixture(scope="module")
def config(hub: LocalHub) -> SHConfig:
    return client_of(hub).config


@pytest.fixture(scope="module")
def catalog(config: SHConfig) -> SentinelHubCatalog:
    return SentinelHubCatalog(config=config)


@pytest.fixture(scope="module")
def web(hub: LocalHub) -> requests.Session:
    return session_of(hub)


@pytest.fixture(scope="module")
def items(scenes: Path) -> list[dict[str, Any]]:
    """The real STAC items, newest first."""
    found = [json.loads(path.read_text()) for path in scenes.rglob("*.json")]
    return sorted(found, key=lambda item: item["properties"]["datetime"], reverse=True)


def search_url(hub: LocalHub) -> str:
    return f"{hub.base_url}/api/v1/catalog/1.0.0/search"


def body(**changes: Any) -> dict[str, Any]:
    whole = {"collections": ["sentinel-2-l1c"], "datetime": "2015-07-01T00:00:00Z/2015-09-30T23:59:59Z", **changes}
    return {name: value for name, value in whole.items() if value is not None}


def test_a_search_finds_the_acquisitions_newest_first(catalog: SentinelHubCatalog, items: list[dict[str, Any]]) -> None:
    found = list(catalog.search(L1C, time=SUMMER, bbox=SQUARE))
    assert [item["id"] for item in found] == [item["id"] for item in items]
    for ours, theirs in zip(found, items, strict=True):
        assert ours["collection"] == "sentinel-2-l1c"
        assert ours["properties"] == theirs["properties"]
        assert ours["bbox"] == theirs["bbox"]
        assert shape(ours["geometry"]).equals(shape(theirs["geometry"]))


def test_pages_make_up_the_whole(catalog: SentinelHubCatalog, web: requests.Session, hub: LocalHub) -> None:
    whole = catalog.search(L1C, time=SUMMER, bbox=SQUARE).get_ids()
    assert catalog.search(L1C, time=SUMMER, bbox=SQUARE, limit=2).get_ids() == whole
    contexts = [
        web.post(search_url(hub), json=body(limit=2, next=start)).json()["context"] for start in (None, 2, 4, 6)
    ]
    assert [(context["returned"], context.get("next")) for context in contexts] == [
        (2, 2),
        (2, 4),
        (1, None),
        (0, None),
    ]
    assert web.post(search_url(hub), json=body()).json()["context"] == {"limit": 10, "returned": 5}
    assert web.post(search_url(hub), json=body(limit=1000)).json()["context"]["limit"] == 100


def test_next_links_lead_through_all_pages(web: requests.Session, hub: LocalHub, items: list[dict[str, Any]]) -> None:
    def pages(url: str | None) -> Iterator[str]:
        while url is not None:
            answer = web.get(url).json()
            yield from (item["id"] for item in answer["features"])
            url = next((link["href"] for link in answer["links"] if link["rel"] == "next"), None)

    expected = [item["id"] for item in items]
    query = "collections=sentinel-2-l1c&limit=2&datetime=2015-07-01T00:00:00Z/.."
    assert list(pages(f"{search_url(hub)}?{query}")) == expected
    assert list(pages(f"{hub.base_url}/catalog/v1/collections/sentinel-2-l1c/items?limit=2")) == expected


def test_both_ends_of_the_period_count_and_either_may_be_open(
    web: requests.Session, hub: LocalHub, items: list[dict[str, Any]]
) -> None:
    times = [item["properties"]["datetime"] for item in items]
    newest, second, *_ = times
    oldest = times[-1]
    for period, expected in {
        f"{oldest}/{newest}": times,
        f"{second}/..": times[:2],
        f"../{second}": times[1:],
        f"/{oldest}": [oldest],
        "../..": times,
        second: [second],
        "2015-09-09T12:00:17+02:00": [newest],
        "2015-07-11T10:00:09Z/2015-07-31T10:00:08Z": [],
    }.items():
        found = web.post(search_url(hub), json=body(datetime=period)).json()["features"]
        assert [item["properties"]["datetime"] for item in found] == expected, period


@pytest.mark.parametrize("crs", [CRS.WGS84, CRS.UTM_33N, CRS.POP_WEB])
def test_only_scenes_that_meet_the_area_are_found(catalog: SentinelHubCatalog, crs: CRS) -> None:
    inside = SQUARE.transform_bounds(crs)
    outside = BBox((15, 46, 15.1, 46.1), CRS.WGS84).transform_bounds(crs)
    assert len(list(catalog.search(L1C, time=SUMMER, bbox=inside))) == 5
    assert len(list(catalog.search(L1C, time=SUMMER, geometry=Geometry(inside.geometry, crs)))) == 5
    assert list(catalog.search(L1C, time=SUMMER, bbox=outside)) == []
    assert list(catalog.search(L1C, time=SUMMER, geometry=Geometry(outside.geometry, crs))) == []


def test_an_area_across_the_antimeridian_has_two_parts() -> None:
    area = parse_search(body(bbox=[170, -10, -170, 10])).bbox
    assert area is not None
    assert area.equals(box(170, -10, 180, 10).union(box(-180, -10, -170, 10)))
    assert parse_search(body(bbox=[1, 2, 0, 3, 4, 9])).bbox == box(1, 2, 3, 4)


def test_a_planner_counts_the_acquisitions_of_each_tile(
    catalog: SentinelHubCatalog, items: list[dict[str, Any]]
) -> None:
    area = box(14.4, 45.7, 14.7, 46.0)
    tiles = tiles_of_grid(area, 4326, 1, 10)
    counts = [
        len(list(catalog.search(L1C, time=SUMMER, geometry=Geometry(lonlat_outline(tile), CRS.WGS84))))
        for tile in tiles
    ]
    expected = [sum(shape(item["geometry"]).intersects(lonlat_outline(tile)) for item in items) for tile in tiles]
    assert counts == expected
    assert {0, 5} <= set(counts)


CLOUD_FILTERS = {
    "eo:cloud_cover < 30": lambda cover: cover < 30,
    "eo:cloud_cover>=1e2": lambda cover: cover >= 100,
    "eo:cloud_cover > -1.5 AND eo:cloud_cover <> 100": lambda cover: -1.5 < cover != 100,
    "NOT (eo:cloud_cover = 0)": lambda cover: cover != 0,
    '"eo:cloud_cover" between 60 and 100': lambda cover: 60 <= cover <= 100,
    "eo:cloud_cover NOT BETWEEN 30 AND 60 and 40 <= eo:cloud_cover": lambda cover: cover > 60,
}


@pytest.mark.parametrize("text", CLOUD_FILTERS)
def test_a_filter_leaves_what_it_says_in_both_encodings(
    catalog: SentinelHubCatalog, items: list[dict[str, Any]], text: str
) -> None:
    expected = [item["id"] for item in items if CLOUD_FILTERS[text](item["properties"]["eo:cloud_cover"])]
    assert 0 < len(expected) < len(items)
    assert catalog.search(L1C, time=SUMMER, filter=text).get_ids() == expected
    as_json = catalog.search(L1C, time=SUMMER, filter=parse_text(text), filter_lang="cql2-json")
    assert as_json.get_ids() == expected


@pytest.mark.parametrize("text", CLOUD_FILTERS)
def test_a_filter_agrees_with_python_for_every_cover(text: str) -> None:
    passes = condition_of(parse_text(text))
    for cover in range(101):
        assert passes({"eo:cloud_cover": cover}) == CLOUD_FILTERS[text](cover)


def test_available_timestamps_need_only_the_time(config: SHConfig, items: list[dict[str, Any]]) -> None:
    here = DataCollection.SENTINEL2_L1C.define_from("L1C_OF_LOCALHUB", service_url=config.sh_base_url)
    found = get_available_timestamps(SQUARE, SUMMER, here, maxcc=0.3, ignore_tz=False, config=config)
    clear = [item["properties"]["datetime"] for item in items if item["properties"]["eo:cloud_cover"] < 30]
    assert found == sorted(datetime.fromisoformat(time) for time in clear)


def test_fields_choose_what_an_item_has(web: requests.Session, hub: LocalHub) -> None:
    def shown(fields: Any) -> dict[str, Any]:
        item: dict[str, Any] = web.post(search_url(hub), json=body(limit=1, fields=fields)).json()["features"][0]
        return item

    default = {"id", "type", "geometry", "bbox", "links", "assets", "properties"}
    for nothing in ({}, {"include": None, "exclude": None}, {"include": [], "exclude": []}):
        assert shown(nothing).keys() == default
        assert shown(nothing)["properties"].keys() == {"datetime"}
    assert shown({"include": ["properties.eo:cloud_cover", "absent"]})["properties"].keys() == {
        "datetime",
        "eo:cloud_cover",
    }
    assert shown({"exclude": ["properties.datetime", "geometry", "links"]}).keys() == default - {"geometry", "links"}
    whole = shown(None)["properties"]
    assert len(whole) > 2
    both = shown({"include": ["properties", "collection"], "exclude": ["assets", "properties.platform"]})
    assert both["properties"] == {name: value for name, value in whole.items() if name != "platform"}
    assert both.keys() == (default | {"collection"}) - {"assets"}


def test_a_get_asks_for_the_same_as_a_post(web: requests.Session, hub: LocalHub) -> None:
    square = {"type": "Polygon", "coordinates": [[[14.5, 45.8], [14.6, 45.9], [14.5, 45.9], [14.5, 45.8]]]}
    asked = body(limit=3, fields={"include": ["id", "properties"], "exclude": ["geometry"]}, filter="eo:cloud_cover<30")
    for area in ({"bbox": [14, 45, 15, 46]}, {"intersects": square}):
        posted = web.post(search_url(hub), json=asked | area).json()
        texts = {
            "collections": "sentinel-2-l1c",
            "datetime": asked["datetime"],
            "limit": "3",
            "fields": "id,properties,-geometry",
            "filter": asked["filter"],
            **{name: json.dumps(value).strip("[]") for name, value in area.items()},
        }
        got = web.get(search_url(hub), params=texts)
        assert got.headers["content-type"] == "application/geo+json"
        assert got.json()["features"] == posted["features"] != []
    ids = ["S2A_33TVM_20150830T100547", "S2A_33TVM_20150711T100008"]
    query = {"collections": "sentinel-2-l1c", "ids": ",".join(ids)}
    assert [item["id"] for item in web.get(search_url(hub), params=query).json()["features"]] == ids


def test_ids_need_no_period(catalog: SentinelHubCatalog, items: list[dict[str, Any]]) -> None:
    asked = [items[3]["id"], "absent"]
    assert catalog.search(L1C, ids=asked).get_ids() == asked[:1]


def test_distinct_dates_come_as_strings_page_by_page(web: requests.Session, hub: LocalHub) -> None:
    dates = ["2015-07-11", "2015-07-31", "2015-08-20", "2015-08-30", "2015-09-09"]
    answers = [web.post(search_url(hub), json=body(distinct="date", limit=3, next=start)).json() for start in (None, 3)]
    assert [answer["features"] for answer in answers] == [dates[:3], dates[3:]]
    assert answers[0]["context"] == {"limit": 3, "returned": 3, "next": 3}


def test_the_archives_description_is_open_and_its_content_wants_a_token(
    catalog: SentinelHubCatalog, hub: LocalHub, items: list[dict[str, Any]]
) -> None:
    assert "child" in {link["rel"] for link in catalog.get_info()["links"]}
    assert "https://api.stacspec.org/v1.0.0/item-search" in catalog.get_conformance()["conformsTo"]
    (collection,) = catalog.get_collections()
    assert collection == catalog.get_collection(L1C)
    assert collection["extent"]["temporal"]["interval"] == [["2015-07-11T10:00:08Z", "2015-09-09T10:00:17Z"]]
    assert catalog.get_feature(L1C, items[0]["id"]) == next(catalog.search(L1C, time=SUMMER))
    for path in ("/collections", "/collections/sentinel-2-l1c/items", "/search", "/queryables"):
        assert requests.get(f"{hub.base_url}/api/v1/catalog/1.0.0{path}", timeout=10).status_code == 401


def test_every_link_of_the_landing_page_leads_somewhere(
    catalog: SentinelHubCatalog, web: requests.Session, hub: LocalHub
) -> None:
    links = [link for link in catalog.get_info()["links"] if link["rel"] != "search"]
    links += catalog.get_collection(L1C)["links"]
    assert len(links) > 8
    for link in links:
        assert link["href"].startswith(hub.base_url)
        assert web.get(link["href"]).status_code == 200, link


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"collections": None}, "collections: Field required"),
        ({"collections": ["sentinel-2-l1c", "sentinel-2-l2a"]}, "collections: .* at most 1 item"),
        ({"collections": ["landsat-ot-l1"]}, "Illegal collection: landsat-ot-l1. This archive has: sentinel-2-l1c"),
        ({"datetime": None}, "datetime is missing"),
        ({"datetime": "2015-07-01"}, "'2015-07-01' is not a date-time with a zone"),
        ({"datetime": "2015-07-01T00:00:00/.."}, "is not a date-time with a zone"),
        ({"datetime": "2015-08-01T00:00:00Z/2015-07-01T00:00:00Z"}, "ends before it starts"),
        ({"datetime": ".."}, "is not a date-time"),
        ({"datetime": 2015}, "2015 is not a string"),
        ({"bbox": [14, 45, 15]}, "not four or six numbers"),
        ({"bbox": [14, 46, 15, 45]}, "not west, south, east, north"),
        ({"bbox": [14, 45, 15, "46"]}, "not four or six numbers"),
        ({"bbox": [465180, 5079240, 466180, 5080250]}, "not west, south, east, north"),
        ({"bbox": [1, 2, 3, 4], "intersects": {"type": "Point", "coordinates": [1, 2]}}, "exclude each other"),
        ({"intersects": {"type": "Blob"}}, "intersects: it is not a GeoJSON geometry"),
        ({"intersects": {"type": "Polygon", "coordinates": []}}, "not a valid GeoJSON geometry"),
        ({"limit": 0}, "limit: .* greater than or equal to 1"),
        ({"limit": "10"}, "limit: .* valid integer"),
        ({"next": 0}, "next: .* greater than or equal to 1"),
        ({"distinct": "platform"}, "distinct: .* 'date'"),
        ({"query": {"eo:cloud_cover": {"lt": 10}}}, "query: Extra inputs are not permitted"),
        (
            {"filter": "platform = 'sentinel-2a'"},
            "not supported for property 'platform'; choose one of: eo:cloud_cover",
        ),
        ({"filter": "eo:cloud_cover < 10 OR eo:cloud_cover > 90"}, "OR is not supported"),
        ({"filter": {"op": "or", "args": [{}, {}]}}, "operator 'or' with 2 operands is not supported"),
        ({"filter": "eo:cloud_cover < '10'"}, "operand '10' is not a number"),
        ({"filter": "eo:cloud_cover <"}, "has 'its end' where something else is due"),
        (
            {"filter": "eo:cloud_cover < 10", "filter-lang": "cql2-json"},
            "the filter is cql2-text, and filter-lang says",
        ),
    ],
)
def test_what_cannot_be_searched_for_is_refused_with_code_and_description(
    web: requests.Session, hub: LocalHub, changes: dict[str, Any], reason: str
) -> None:
    answer = web.post(search_url(hub), json=body(**changes))
    assert answer.status_code == 400
    assert answer.json().keys() == {"code", "description"}
    assert answer.json()["code"] == "400"
    assert re.search(reason, answer.json()["description"])


def test_the_clients_error_says_what_is_wrong(catalog: SentinelHubCatalog) -> None:
    with pytest.raises(DownloadFailedException, match="Illegal collection: sentinel-2-l2a"):
        list(catalog.search(DataCollection.SENTINEL2_L2A, time=SUMMER))
    with pytest.raises(DownloadFailedException, match="has no item absent"):
        catalog.get_feature(L1C, "absent")


@pytest.mark.parametrize("text", ["", "(", "NOT", "a b", "eo:cloud_cover < 1 2", "'x", "1 NOT < 2", "(" * 99 + "1<2"])
def test_a_filter_beyond_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        parse_text(text)


def test_deep_filters_are_refused_rather_than_followed() -> None:
    with pytest.raises(FilterError, match="nested deeper"):
        parse_text("NOT " * 100_000 + "eo:cloud_cover < 1")
    nested: dict[str, Any] = {"op": "<", "args": [1, 2]}
    for _ in range(200):
        nested = {"op": "not", "args": [nested]}
    with pytest.raises(FilterError):
        condition_of(nested)


def test_numbers_of_a_query_stay_what_they_are() -> None:
    assert body_of_query({"bbox": "1,2.5,3,4", "limit": "5", "filter": "1"}) == {
        "bbox": [1, 2.5, 3, 4],
        "limit": 5,
        "filter": "1",
    }
    with pytest.raises(CatalogError, match="bbox"):
        parse_search(body(**body_of_query({"bbox": "1,2,x"})))


def test_a_search_of_the_archive_reaches_over_the_antimeridian(tmp_path: Path) -> None:
    for name, west in (("far", -179.9), ("near", 179.2)):
        item = {
            "type": "Feature",
            "id": name,
            "collection": "c",
            "geometry": box(west, 0, west + 0.5, 1).__geo_interface__,
            "properties": {"datetime": "2020-01-01T00:00:00Z"},
            "assets": {"B02": {"href": "https://example.org/B02.tif"}},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(item))
    archive = Archive.open(tmp_path)
    year = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 12, 31, tzinfo=UTC))
    for west, expected in ((179.5, ["far", "near"]), (-180.5, ["far", "near"]), (179.0, ["near"]), (-179.5, ["far"])):
        found = archive.search("c", *year, box(west, 0, west + 0.8, 1))
        assert sorted(scene.id for scene in found) == expected, west
