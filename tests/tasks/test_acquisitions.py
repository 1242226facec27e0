"""Acquisitions: what the Catalog tells, and samples counted on it as localhub charges them."""

import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import s3fs
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from sentinelhub import SentinelHubCatalog
from shapely.geometry import mapping

from localhub.archive import Archive, Scene
from localhub.engine.scenes import SceneInfo, group_scenes
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks import acquisitions as module
from tasks import service as tasks_service
from tasks.acquisitions import Acquisitions, find_acquisitions, samples_of, scenes_of, search_area
from tasks.errors import InvalidInput, ServiceError, Unavailable
from tasks.grid import Tile, lonlat_shape, tiles_of_grid
from tasks.pricing import tile_price_pu
from tasks.service import Service, connect_catalog
from tests.localhub.batch_requests import access, client_of, process_request, wait_for
from tests.localhub.conftest import upload_grid
from tests.localhub.watching import remembered
from tests.tasks.faulty_server import Fault, FaultyServer
from tests.tasks.orbits import JUNE, SCENES

DAYS = (date(2019, 6, 1), date(2019, 6, 30))
AREA = shapely.box(15.795, 46.335, 16.02, 46.475)
FOUR_TILES = tiles_of_grid(AREA, 4326, 1, 20)
IN_JUNE = {name for name, *_ in SCENES} - {"earlier", "later"}
GLOBE = shapely.box(-180, -85, 180, 85)


@pytest.fixture
def catalog(orbits_hub: LocalHub) -> SentinelHubCatalog:
    return connect_catalog(Service(base_url=orbits_hub.base_url))


# ---- the search ----


def test_all_scenes_of_the_days_are_found_to_their_last_second(catalog: SentinelHubCatalog) -> None:
    found = find_acquisitions(catalog, "sentinel-2-l1c", DAYS, AREA)
    assert set(found.ids) == IN_JUNE
    told = dict(zip(found.ids, found.times, strict=True))
    assert told["last"] == np.datetime64("2019-06-30T23:59:59")
    assert dict(zip(found.ids, found.cloud_covers, strict=True))["islands"] == 50
    assert shapely.get_type_id(found.footprints[found.ids.index("islands")]) == shapely.GeometryType.MULTIPOLYGON


@pytest.mark.parametrize(
    ("cover", "missing"), [(80, set()), (79.5, {"last"}), (50, {"last"}), (49, {"last", "islands"})]
)
def test_the_greatest_cloud_cover_is_included(catalog: SentinelHubCatalog, cover: float, missing: set[str]) -> None:
    found = find_acquisitions(catalog, "sentinel-2-l1c", DAYS, AREA, max_cloud_coverage=cover)
    assert set(found.ids) == IN_JUNE - missing


def test_pages_are_followed(catalog: SentinelHubCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_ITEMS", 4)
    found = find_acquisitions(catalog, "sentinel-2-l1c", DAYS, AREA)
    assert len(found) == len(IN_JUNE)
    assert set(found.ids) == IN_JUNE


def test_only_what_is_needed_of_an_item_is_asked_for(catalog: SentinelHubCatalog) -> None:
    (item,) = catalog.search("sentinel-2-l1c", time=(DAYS[0], DAYS[0]), fields=module._FIELDS)
    assert item.keys() == {"id", "geometry", "properties"}
    assert item["properties"].keys() == {"datetime", "eo:cloud_cover"}


def test_trouble_that_passes_is_waited_out_and_no_scene_is_lost(
    orbits_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_ITEMS", 5)
    monkeypatch.setattr(tasks_service, "PAUSE_SECONDS", 0.01)
    troubles = (
        Fault("POST", "/search", 502),
        Fault("POST", "/search", 429),
        Fault("POST", "/search", 0, executed=True),
    )
    with FaultyServer(orbits_hub.base_url, troubles) as server:
        catalog = connect_catalog(Service(base_url=server.base_url))
        assert set(find_acquisitions(catalog, "sentinel-2-l1c", DAYS, AREA).ids) == IN_JUNE
        server.faults = [Fault("POST", "/search", 502)]
        with pytest.raises(Unavailable, match="answered 502"):
            find_acquisitions(catalog, "sentinel-2-l1c", DAYS, AREA, patience_seconds=0)


def test_a_search_that_the_service_refuses_is_told_at_once(catalog: SentinelHubCatalog) -> None:
    with pytest.raises(InvalidInput, match="Illegal collection"):
        find_acquisitions(catalog, "sentinel-1-grd", DAYS, AREA)


# ---- items ----


def item(name: str, **changes: object) -> dict[str, object]:
    whole = {"id": name, "geometry": mapping(AREA), "properties": {"datetime": "2019-06-01T10:00:00Z"}}
    return whole | changes


def test_an_item_that_comes_twice_counts_once_and_clouds_may_be_unknown() -> None:
    found = Acquisitions.of_items([item("a"), item("b"), item("a")])
    assert found.ids == ("a", "b")
    assert np.isnan(found.cloud_covers).all()


@pytest.mark.parametrize(
    "broken",
    [{"geometry": None}, {"properties": {}}, {"properties": {"datetime": "June"}}, {"geometry": {"type": "X"}}],
)
def test_an_item_without_time_or_footprint_is_told(broken: dict[str, object]) -> None:
    with pytest.raises(ServiceError, match="an item that cannot be understood"):
        Acquisitions.of_items([item("a", **broken)])


# ---- samples ----


@pytest.mark.parametrize("mosaicking", ["SIMPLE", "ORBIT", "TILE"])
def test_the_samples_counted_are_those_that_localhub_charges(
    orbits_hub: LocalHub, catalog: SentinelHubCatalog, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str,
    tmp_path: Path, mosaicking: str,
) -> None:  # fmt: skip
    corners = [(561, 5131), (564.95, 5135), (566, 5135), (569, 5145), (575, 5145), (578, 5148), (590, 5145)]
    boxes = [shapely.box(1000 * x, 1000 * y, 1000 * x + 100, 1000 * y + 100) for x, y in corners]
    boxes.append(shapely.box(564_000, 5_140_000, 569_000, 5_140_100))  # both orbits see a part of it
    tiles = [
        Tile(f"t{number}", 32633, box.bounds, round((box.bounds[2] - box.bounds[0]) / 10), 10)
        for number, box in enumerate(boxes)
    ]
    columns = {"id": range(8), "identifier": [tile.name for tile in tiles], "resolution": [10.0] * 8}
    grid = upload_grid(gpd.GeoDataFrame(columns, geometry=boxes, crs=32633), s3_files, bucket, tmp_path)
    script = (
        "//VERSION=3\nfunction evaluatePixel() { return [1]; }\n"
        f"function setup() {{ return {{input: ['B02'], mosaicking: '{mosaicking}', output: {{bands: 1}}}}; }}"
    )
    client = client_of(orbits_hub)
    request = client.create(
        process_request(script, timeRange=JUNE, maxCloudCoverage=80),
        client.geopackage_input(access(s3, grid)),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>.tif")),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"

    found = find_acquisitions(catalog, "sentinel-2-l1c", DAYS, search_area(tiles), max_cloud_coverage=80)
    counted = samples_of(tiles, found, mosaicking)
    charged = remembered(orbits_hub, request)
    expected = {
        "SIMPLE": [1, 1, 0, 1, 1, 1, 0, 1],
        "ORBIT": [9, 8, 0, 10, 10, 11, 0, 16],
        "TILE": [9, 8, 0, 10, 10, 11, 0, 18],
    }
    assert counted.tolist() == expected[mosaicking]
    for tile, samples in zip(tiles, counted, strict=True):
        price = tile_price_pu(tile.width * tile.height, 1, samples, float_output=False)
        assert charged[tile.name].cost_pu == pytest.approx(price)


def test_two_orbits_of_one_day_are_one_sample_with_orbit_and_two_with_tile(catalog: SentinelHubCatalog) -> None:
    found = find_acquisitions(catalog, "sentinel-2-l1c", DAYS, search_area(FOUR_TILES))
    assert [tile.name for tile in FOUR_TILES] == ["33TWM_6_5", "33TWM_6_6", "33TWM_7_5", "33TWM_7_6"]
    assert samples_of(FOUR_TILES, found, "TILE").tolist() == [18, 19, 11, 10]
    assert samples_of(FOUR_TILES, found, "ORBIT").tolist() == [16, 17, 11, 10]
    assert samples_of(FOUR_TILES, found, "SIMPLE").tolist() == [1, 1, 1, 1]
    assert scenes_of(FOUR_TILES, found) == len(IN_JUNE)
    assert scenes_of(FOUR_TILES[2:3], found) == 11


def test_nothing_acquired_is_no_sample() -> None:
    assert samples_of(FOUR_TILES, Acquisitions.of_items([]), "ORBIT").tolist() == [0, 0, 0, 0]


tiles = st.builds(
    lambda epsg, x, y, size: Tile(f"{x} {y}", epsg, (x, y, x + size, y + size), 10, 10),
    st.sampled_from([32601, 32660, 32701]),  # on both sides of the antimeridian
    st.integers(150, 850).map(lambda x: 1000.0 * x),
    st.integers(5000, 5500).map(lambda y: 1000.0 * y),
    st.sampled_from([100.0, 10_000.0, 100_000.0]),
)
boxes = st.builds(
    lambda lon, lat, width, height: shapely.box(lon, lat, min(lon + width, 180), lat + height),
    st.sampled_from([-180.0, -179.5, -178, 176, 177.5, 179]),
    st.sampled_from([-45.0, 45, 46.25, 47]),
    st.sampled_from([0.1, 1, 3]),
    st.sampled_from([0.1, 1, 3]),
)
footprints = st.one_of(boxes, st.tuples(boxes, boxes).map(shapely.union_all))


@settings(deadline=None, max_examples=60)
@given(st.lists(tiles, min_size=1, max_size=5), st.lists(footprints, max_size=8), st.integers(1, 4))
def test_samples_are_those_of_the_engine_also_across_the_antimeridian(
    placed: list[Tile], seen: list[shapely.Geometry], scenes_a_day: int
) -> None:
    start = datetime(2019, 6, 1, 23, tzinfo=UTC)
    times = [
        start + timedelta(days=number // scenes_a_day, minutes=25 * (number % scenes_a_day)) for number in range(8)
    ]
    scenes = [
        Scene(f"s{number}", "c", when, 0.0, footprint, {}, {})
        for number, (when, footprint) in enumerate(zip(times, seen, strict=False))
    ]
    anywhere = Scene("anywhere", "c", start - timedelta(days=99), 0.0, GLOBE, {}, {})
    archive = Archive(Path(), (*scenes, anywhere))
    table = Acquisitions.of_items(
        {
            "id": scene.id,
            "geometry": mapping(scene.footprint),
            "properties": {"datetime": scene.datetime.isoformat()},
        }
        for scene in scenes
    )
    area = search_area(placed)
    for mosaicking in ("SIMPLE", "ORBIT", "TILE"):
        counted = samples_of(placed, table, mosaicking)
        for tile, count in zip(placed, counted, strict=True):
            met = archive.search("c", times[0], times[-1], lonlat_shape(tile))
            assert all(area.intersects(scene.footprint) for scene in met)
            groups = group_scenes([SceneInfo(scene.datetime, 0.0, "") for scene in met], mosaicking)
            assert count == (len(groups) if met else 0)


# ---- where to search ----


def test_an_area_of_few_points_is_searched_as_it_is_and_one_of_many_by_hulls_that_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bent = tiles_of_grid(shapely.union_all([shapely.box(14, 46, 16, 46.1), shapely.box(14, 46, 14.1, 47)]), 4326, 1, 20)
    far = tiles_of_grid(shapely.box(30, 50, 30.1, 50.1), 4326, 1, 20)
    monkeypatch.setattr(module, "MAX_VERTICES", 10_000)
    outline = search_area([*bent, *far])
    monkeypatch.setattr(module, "MAX_VERTICES", 200)
    hulls = search_area([*bent, *far])
    monkeypatch.setattr(module, "MAX_VERTICES", 10)
    box = search_area([*bent, *far])
    assert outline.area < hulls.area < box.area
    assert box.covers(hulls)
    assert hulls.buffer(1e-9).covers(outline)
    middle = shapely.Point(23, 48)
    assert [area.covers(middle) for area in (outline, hulls, box)] == [False, False, True]
    assert all(outline.covers(lonlat_shape(tile).buffer(-1e-9)) for tile in bent)


def test_a_country_of_tiles_is_counted_over_thousands_of_scenes_in_seconds() -> None:
    country = tiles_of_grid(shapely.box(14, 45.5, 16.2, 47), 4326, 1, 20)
    assert len(country) > 250
    rng = np.random.default_rng(1)
    corners = rng.uniform((12, 44), (17, 48), (10_000, 2))
    days = np.datetime64("2019-01-01T10:00:00") + np.timedelta64(1, "h") * np.arange(10_000)
    rows = shapely.box(*corners.T, *(corners + 1.3).T)
    table = Acquisitions(tuple(map(str, range(10_000))), days, np.zeros(10_000), rows)
    begin = time.process_time()
    counted = samples_of(country, table, "ORBIT")
    assert time.process_time() - begin < 5
    outlines = [lonlat_shape(tile) for tile in country[::40]]
    found = [len(set(days[shapely.intersects(rows, outline)].astype("datetime64[D]"))) for outline in outlines]
    assert counted[::40].tolist() == found
