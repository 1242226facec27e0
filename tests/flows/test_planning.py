"""The plan against what the service charges: counted acquisitions, prices that hold, and what is bought once."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import s3fs
import shapely
from sentinelhub import BatchProcessClient
from shapely.geometry import mapping

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.order import Order, prepare, survey_order
from flows.parameters import LandCover
from flows.planning import binding_plan, counted, delivered_bytes, make_plan, patch_bytes
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks.acquisitions import Acquisitions
from tasks.batch import create_job, jobs_of
from tasks.errors import BudgetExceeded, InvalidInput
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState, read_ledger
from tasks.plan import TimeRange
from tasks.pricing import Range
from tasks.report.bill import bill_markdown
from tasks.service import connect
from tests.localhub.watching import remembered
from tests.tasks.faulty_server import Fault, FaultyServer

pytestmark = pytest.mark.usefixtures("prefect_server")

MEAN = """//VERSION=3
const BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"];
function setup() {
  return {input: [...BANDS, "dataMask"], mosaicking: "ORBIT", output: {id: "MEAN", bands: 1, sampleType: "FLOAT32"}};
}
function evaluatePixel(samples) { return [samples.reduce((sum, sample) => sum + sample.B02, 0) / samples.length]; }
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  const acquisitions = scenes.orbits.map((orbit) => orbit.dateFrom.slice(0, 10));
  outputMetadata.userData = {timestamps: ["2019-06-01T00:00:00Z"], acquisitions};
}
"""
FIRST_TWELVE = """
function preProcessScenes(collections) {
  collections.scenes.orbits = collections.scenes.orbits.slice(0, 12);
  return collections;
}
"""
CORNERS = ((561, 5131), (564.95, 5135), (566, 5135), (569, 5145), (575, 5145), (578, 5148), (590, 5145))
"""Of small tiles, km: what the two orbits and the odd scene see of each differs, and of two it is nothing."""


@pytest.fixture
def in_june(
    keys: None,  # noqa: ARG001 - needed in the environment
    s3: SeaweedFS, bucket: str, orbits_hub: LocalHub, tmp_path: Path,
) -> dict[str, Any]:  # fmt: skip
    """Four tiles of grid 1 where two orbits overlap, without labels."""
    return {
        "area": {"name": "Orbits", "bbox": [15.795, 46.335, 16.02, 46.475]},
        "period": {"start": "2019-06-01", "end": "2019-06-30"},
        "imagery": {"max_cloud_coverage": 80},
        "service": {"base_url": orbits_hub.base_url},
        "storage": {
            "tiles_url": f"s3://{bucket}/tiles",
            "destination": str(tmp_path / "eopatches"),
            "endpoint_url": s3.endpoint_url,
        },
        "reference": None,
        "run": {"quicklooks": 0, "patience_minutes": 0.2},
    }


# ---- nothing to buy ----


def test_a_request_that_no_scene_would_serve_is_refused_before_it_is_created(in_june: dict[str, Any]) -> None:
    parameters = LandCover.model_validate(in_june | {"period": {"start": "2018-01-01", "end": "2018-02-28"}})
    with pytest.raises(InvalidInput, match=r"no acquisition for any of the 4 tiles of Orbits, .* would cost 100 PU"):
        run(parameters)
    assert jobs_of(connect(parameters.service), prepare(parameters).work) == []


# ---- estimate against bill ----


def test_the_likely_price_of_each_tile_is_its_bill_and_the_total_is_the_requests(
    in_june: dict[str, Any], orbits_hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(in_june | {"imagery": own_script(tmp_path, MEAN)})
    assert summary.job is not None
    show(summary, capsys, "two overlapping orbits, some tiles with fewer scenes")
    assert [record.samples for record in summary.records] == [16, 17, 11, 10]
    check_bills(orbits_hub, summary)
    for record in summary.records:
        assert record.estimate_pu == pytest.approx(record.price_pu)
    assert summary.job.cost_pu > 100
    assert sum(record.price_pu or 0 for record in summary.records) == pytest.approx(summary.job.cost_pu)
    text = (Path(summary.folder) / "report/summary.md").read_text()
    assert f"the service says {summary.job.cost_pu:,.2f} PU for the request." in text


def test_where_the_script_leaves_out_scenes_the_bill_lies_between_the_prices(
    in_june: dict[str, Any], orbits_hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(in_june | {"imagery": own_script(tmp_path, MEAN + FIRST_TWELVE)})
    show(summary, capsys, "preProcessScenes keeps 12 acquisitions at most")
    assert [record.samples for record in summary.records] == [12, 12, 11, 10]
    check_bills(orbits_hub, summary)
    assert any((record.price_pu or 0) < (record.estimate_pu or 0) for record in summary.records)


def test_the_built_in_script_tells_its_samples_and_tiles_without_a_scene_are_free(
    in_june: dict[str, Any], orbits_hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = {"area": {"name": "Orbits"}, "tiling": {"geopackage": str(small_tiles(tmp_path))}}
    summary = run(in_june | tiles)
    show(summary, capsys, "small tiles of the built-in script, below the minimum of a request")
    assert [record.samples for record in summary.records] == [9, 8, 0, 10, 10, 11, 0]
    assert [record.tile.name for record in summary.records if record.price_pu == 0] == ["t2", "t6"]
    check_bills(orbits_hub, summary)
    for record in summary.records:
        assert record.estimate_pu == pytest.approx(record.price_pu)
    assert "100 PU are the least that a request costs" in (Path(summary.folder) / "report/summary.md").read_text()
    ledger = Path(summary.folder) / "ledger.gpkg"
    told = {record.tile.name: record.price_pu for record in read_ledger(ledger)}
    ledger.unlink()
    again = run(in_june | tiles)  # nothing is asked for data that exist, but for the two empty tiles
    assert {record.tile.name: record.price_pu for record in again.records} == told


def check_bills(hub: LocalHub, summary: Summary) -> None:
    """Compare the bill of each tile with what localhub charged for it, and with its estimate."""
    assert summary.job is not None
    client: BatchProcessClient = connect(LandCover.model_validate({"service": {"base_url": hub.base_url}}).service)
    charged = remembered(hub, client.get_request(summary.job.id))
    for record in summary.records:
        assert record.price_pu == pytest.approx(charged[record.tile.name].cost_pu)
        low, high = record.estimate_low_pu, record.estimate_high_pu
        assert low is not None
        assert high is not None
        assert low - 1e-9 <= charged[record.tile.name].cost_pu <= high + 1e-9


def show(summary: Summary, capsys: pytest.CaptureFixture[str], title: str) -> None:
    with capsys.disabled():
        job = summary.job
        print(f"\n\n{title}\n{bill_markdown(summary.records, None if job is None else job.cost_pu)}")  # noqa: T201


# ---- before anything is bought ----


def test_a_plan_has_what_the_catalog_tells_both_prices_sizes_and_files(in_june: dict[str, Any], tmp_path: Path) -> None:
    order = prepare(LandCover.model_validate(in_june))
    plan = make_plan(order, survey_order(order))
    assert [planned.scenes for planned in plan.tiles] == [18, 19, 11, 10]
    assert [planned.samples for planned in plan.tiles] == [Range(n, n, n) for n in (16, 17, 11, 10)]
    prices = [500 * 500 / 512 / 512 * 7 / 3 * count / 3 for count in (16, 17, 11, 10)]
    assert [planned.price_pu.likely for planned in plan.tiles] == pytest.approx(prices)
    assert plan.price_pu == Range(100, 100, 100)  # the least that a request costs
    assert plan.process_pu.likely == pytest.approx(3 * sum(prices))
    assert plan.delivered_bytes > 0
    assert plan.request.startswith("No request for this exists")
    assert not Path(order.folder).exists()  # nothing is created
    assert list(tmp_path.iterdir()) == []


def test_the_run_leaves_its_plan_beside_the_data_binding_after_the_analysis(
    parameters: LandCover,
) -> None:
    summary = run(parameters.model_dump())
    report = Path(summary.folder) / "report"
    told = json.loads((report / "plan.json").read_text())
    assert told["binding"] is True
    assert [tile["name"] for tile in told["tiles"]] == ["t0", "t1", "t2", "t3"]
    frame = gpd.read_file(report / "plan.gpkg", engine="pyogrio")
    assert frame["price_pu_likely"].tolist() == pytest.approx([record.price_pu for record in summary.records])


def test_the_binding_price_is_that_of_the_manifests_tiles(in_june: dict[str, Any]) -> None:
    order = prepare(LandCover.model_validate(in_june))
    plan = make_plan(order, survey_order(order))
    wider = [replace(tile, width=2 * tile.width, height=2 * tile.height) for tile in order.tiles[:1]]
    binding = binding_plan(order, plan, wider)
    assert [planned.record.tile for planned in binding.tiles] == wider
    assert binding.tiles[0].price_pu.likely == pytest.approx(4 * plan.tiles[0].price_pu.likely)


def test_without_the_catalog_the_usual_acquisitions_have_to_do_and_the_plan_says_so(in_june: dict[str, Any]) -> None:
    with FaultyServer(in_june["service"]["base_url"], (Fault("POST", "/search", 503),)) as server:
        order = prepare(LandCover.model_validate(in_june | {"service": {"base_url": server.base_url}}))
        plan = make_plan(order, survey_order(order))
    assert [planned.samples for planned in plan.tiles] == [Range(6, 7.5, 12)] * 4
    assert [planned.scenes for planned in plan.tiles] == [None] * 4
    assert "because the Catalog did not tell: Sentinel Hub answered 503" in plan.basis


def test_a_collection_that_the_catalog_lacks_is_priced_by_the_usual_acquisitions(in_june: dict[str, Any]) -> None:
    imagery = {"collection": "sentinel-2-l2a", "cloud_mask": "scl"}
    order = prepare(LandCover.model_validate(in_june | {"imagery": imagery}))
    plan = make_plan(order, survey_order(order))
    assert "because the Catalog did not tell" in plan.basis
    assert plan.tiles[0].samples == Range(6, 7.5, 12)


@pytest.mark.parametrize(
    ("last_day_ago", "high"), [(0, 12), (1, 11), (2, 11), (3, 10), (400, 10)]
)  # 10 scenes in 30 days, or two orbits; of 3, 2, 1, 0 days some may be missing
def test_scenes_of_the_last_days_may_still_arrive(in_june: dict[str, Any], last_day_ago: int, high: int) -> None:
    order = prepare(LandCover.model_validate(in_june))
    today = date(2026, 3, 31)
    end = today - timedelta(days=last_day_ago)
    order = replace(order, period=TimeRange(end - timedelta(days=29), end))
    found = scenes_over(order.tiles[0], end - timedelta(days=29), count=10)
    (samples,) = counted(order, order.tiles[:1], found, today).samples
    assert samples == Range(10, 10, high)


def scenes_over(tile: Tile, first_day: date, count: int) -> Acquisitions:
    footprint = mapping(shapely.box(15, 46, 17, 47))
    days = [first_day + timedelta(days=2 * number) for number in range(count)]
    items = [{"id": f"s{day}", "geometry": footprint, "properties": {"datetime": f"{day}T10:00:00Z"}} for day in days]
    assert tile.epsg == 32633
    return Acquisitions.of_items(items)


def test_the_sizes_to_expect_are_near_those_of_a_run(parameters: LandCover) -> None:
    summary = run(parameters.model_dump())
    order = prepare(parameters)
    for record in summary.records:
        assert 0.2 < record.bytes_read / delivered_bytes(record.tile, order.script.outputs) < 2
        assert 0.2 < record.bytes_written / patch_bytes(record.tile, order.script.outputs, order.mapping) < 2


# ---- what exists already ----


def test_a_request_that_exists_is_told_with_what_is_left_to_pay(
    in_june: dict[str, Any], parameters: LandCover, s3_files: s3fs.S3FileSystem
) -> None:
    order = prepare(LandCover.model_validate(in_june))
    job = create_job(connect(order.parameters.service), order.work, order.parameters.storage)
    plan = planned(order)
    assert plan.request == f"Request {job.id} for this exists (CREATED) and is not paid: a run would start it."
    assert plan.left_pu == plan.price_pu

    done = run(parameters.model_dump())
    assert done.job is not None
    order = prepare(parameters)
    (Path(order.patch_url(order.tiles[0])) / "meta_info/BATCH.json.gz").unlink()
    plan = planned(order)
    assert plan.request.startswith(f"Already bought: request {done.job.id} (DONE, 100.0 PU)")
    assert (plan.price_pu.high, plan.left_pu.high) == (100, 0)

    s3_files.rm(parameters.storage.tiles_url.removeprefix("s3://"), recursive=True)
    plan = planned(order)
    assert plan.request == (
        f"Request {done.job.id} did this for 100.0 PU, but what it delivered is gone: a run would buy it again, in "
        "full."
    )
    assert plan.left_pu.high == 100


def test_what_was_deleted_is_bought_again_only_within_the_cap_and_in_full(
    parameters: LandCover, s3_files: s3fs.S3FileSystem
) -> None:
    first = run(parameters.model_dump())
    s3_files.rm(parameters.storage.tiles_url.removeprefix("s3://"), recursive=True)
    order = prepare(parameters)
    (Path(order.patch_url(order.tiles[0])) / "meta_info/BATCH.json.gz").unlink()  # one tile is enough
    content = parameters.model_dump()
    with pytest.raises(BudgetExceeded, match=r"4 tiles may cost up to 100 PU, but limits.max_pu is 99"):
        run(content | {"limits": {"max_pu": 99}})
    assert requests_of(parameters) == 1
    second = run(content)
    assert (second.bought, second.converted, requests_of(parameters)) == (True, 1, 2)
    assert first.job is not None
    assert second.job is not None
    assert second.job.id != first.job.id


def test_where_nothing_is_missing_nobody_is_asked(in_june: dict[str, Any]) -> None:
    nowhere = in_june | {"service": {"base_url": "http://127.0.0.1:9"}}
    order = prepare(LandCover.model_validate(nowhere))
    plan = make_plan(order, [TileRecord(tile, TileState.CONVERTED) for tile in order.tiles])
    assert plan.request == "Nothing is missing: a run would buy nothing."
    assert plan.price_pu == plan.left_pu == Range(0, 0, 0)


# ---- helpers ----


def run(content: dict[str, Any]) -> Summary:
    parameters = LandCover.model_validate(content)
    summary = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields})
    assert isinstance(summary, Summary)
    return summary


def planned(order: Order) -> Any:
    return make_plan(order, survey_order(order))


def own_script(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "mean.js"
    path.write_text(source)
    return {"evalscript": str(path), "max_cloud_coverage": 80}


def small_tiles(folder: Path, corners: Sequence[tuple[float, float]] = CORNERS) -> Path:
    """Tiles of 1 km and 10,000 pixels."""
    west_south = np.array(corners) * 1000
    boxes = [shapely.box(x, y, x + 1000, y + 1000) for x, y in west_south]
    columns = {"id": range(len(boxes)), "identifier": [f"t{n}" for n in range(len(boxes))], "resolution": [10.0] * 7}
    path = folder / "small.gpkg"
    gpd.GeoDataFrame(columns, geometry=boxes, crs=32633).to_file(path, layer="tiles", engine="pyogrio")
    return path


def requests_of(parameters: LandCover) -> int:
    """Count the requests that deliver into this test's bucket."""
    client: BatchProcessClient = connect(parameters.service)
    urls = [request.request["output"]["delivery"]["s3"]["url"] for request in client.iter_requests()]
    return sum(url.startswith(parameters.storage.tiles_url + "/") for url in urls)
