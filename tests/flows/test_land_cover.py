import json
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import s3fs
from eolearn.core import EOPatch, FeatureType
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from sentinelhub import BatchProcessClient

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.order import prepare, survey_order
from flows.parameters import LandCover, parse_config
from flows.planning import make_plan
from tasks.conversion import PatchOptions
from tasks.errors import BudgetExceeded, EopatchFlowError, InvalidInput, TooFewTiles
from tasks.ledger import TileState, read_ledger
from tasks.plan import Tiling
from tasks.service import connect

pytestmark = pytest.mark.usefixtures("prefect_server")

SLUG = "small-20190101-20190310"

RED = """//VERSION=3
function setup() {
  return {input: ["B04"], output: {id: "RED", bands: 1, sampleType: "UINT16"}};
}
function evaluatePixel(sample) { return [sample.B04 * 10000]; }
"""


def test_an_area_becomes_labelled_eopatches(parameters: LandCover):
    summary = run(parameters)
    assert {record.tile.name: record.state for record in summary.records} == dict.fromkeys(
        ("t0", "t1", "t2", "t3"), TileState.LABELLED
    )
    assert (summary.bought, summary.converted, summary.labelled) == (True, 4, 4)
    for record in summary.records:
        patch = load(parameters, record.tile.name)
        assert patch.data["BANDS"].shape == (5, 60, 60, 6)
        assert [f"{moment:%Y-%m-%d}" for moment in patch.timestamps] == [
            "2019-01-01",
            "2019-01-16",
            "2019-01-31",
            "2019-02-15",
            "2019-03-02",
        ]
        assert patch.bbox.crs.epsg == 32633
        assert tuple(patch.bbox) == record.tile.bounds
        assert np.count_nonzero(patch.mask_timeless["LULC"]) > 0.9 * 3600
        np.testing.assert_array_equal(patch.mask["IS_DATA"], patch.mask["QUALITY"] > 0)


def test_a_run_leaves_ledger_map_summary_and_quicklook_beside_the_data(pictured: LandCover):
    summary = run(pictured)
    folder = Path(summary.folder)
    assert [record.state for record in read_ledger(folder / "ledger.gpkg")] == [TileState.LABELLED] * 4
    assert (folder / "report/tiles.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report/quicklooks/t0.png").read_bytes().startswith(b"\x89PNG")
    assert "4 of 4 tiles are complete" in (folder / "report/summary.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lease.json.lock",
        "eopatches",
        "lease.json",
        "ledger.gpkg",
        "report",
    ]


PUBLISHED = ("plan", "plan-tiles", "map", "tiles", "reference", "summary")
"""What artifacts are about."""


def test_a_run_publishes_plan_map_table_and_summary(pictured: LandCover):
    run(pictured)
    artifacts = {what: Artifact.get(f"small-{what}") for what in PUBLISHED}
    texts = {what: str(found.data) for what, found in artifacts.items() if found is not None}
    assert "5, from 2019-01-01 to 2019-03-02, every 15 days" in texts["plan"]
    assert [row["tile"] for row in json.loads(texts["plan-tiles"])] == ["t0", "t1", "t2", "t3"]
    assert "data:image/png;base64," in texts["map"]
    assert [row["tile"] for row in json.loads(texts["tiles"])] == ["t0", "t1", "t2", "t3"]
    assert "4 of 4 tiles are complete" in texts["summary"]
    assert "## Reference" in texts["summary"]
    assert sorted(row["tile"] for row in json.loads(texts["reference"])) == ["t0", "t1", "t2", "t3"]


def test_label_quality_of_earlier_runs_is_kept_and_where_it_is_lost_read_from_the_eopatches(parameters: LandCover):
    file = Path(run(parameters).folder) / "report/reference.csv"
    first = file.read_text()
    assert [line.split(",")[0] for line in first.splitlines()] == ["tile", "t0", "t1", "t2", "t3"]
    (patches(parameters) / "eopatch_t1/meta_info/REFERENCE.json.gz").unlink()
    run(parameters)
    assert file.read_text() == first
    file.unlink()
    run(parameters)
    assert file.read_text() == first


def test_a_second_run_buys_nothing_and_converts_nothing(parameters: LandCover):
    run(parameters)
    before = written(parameters)
    summary = run(parameters)
    assert summary.message == ("4 of 4 EOPatches are ready. Nothing was bought; 0 converted, 0 labelled.")
    assert written(parameters) == before
    assert len(requests_of(parameters)) == 1


def test_the_ledger_keeps_what_earlier_runs_did(parameters: LandCover):
    first = run(parameters)
    second = run(parameters)
    assert read_ledger(Path(second.folder) / "ledger.gpkg") == list(first.records)
    assert all(record.attempts == 1 and record.bytes_read and record.bytes_written for record in first.records)


def test_a_damaged_ledger_is_written_anew(parameters: LandCover):
    ledger = Path(run(parameters).folder) / "ledger.gpkg"
    ledger.write_bytes(ledger.read_bytes()[:5000])
    run(parameters)
    assert [record.state for record in read_ledger(ledger)] == [TileState.LABELLED] * 4


def test_a_lost_eopatch_is_made_again_from_what_was_delivered(parameters: LandCover):
    run(parameters)
    (patches(parameters) / "eopatch_t2/meta_info/BATCH.json.gz").unlink()
    summary = run(parameters)
    assert (summary.bought, summary.converted, summary.labelled) == (False, 1, 1)
    assert len(requests_of(parameters)) == 1


def test_lost_labels_are_made_again_without_asking_the_service(parameters: LandCover):
    run(parameters)
    (patches(parameters) / "eopatch_t1/meta_info/REFERENCE.json.gz").unlink()
    offline = parameters.model_copy(
        update={"service": parameters.service.model_copy(update={"base_url": "http://127.0.0.1:9"})}
    )
    summary = run(offline)
    assert (summary.bought, summary.converted, summary.labelled) == (False, 0, 1)


def test_a_corrupt_file_fails_its_tile_alone(parameters: LandCover, s3_files: s3fs.S3FileSystem):
    job = run(parameters).job
    assert job is not None
    path = f"{parameters.storage.tiles_url.removeprefix('s3://')}/{job.id}/t1/B08.tif"
    s3_files.pipe_file(path, s3_files.cat_file(path)[:2000])
    for marker in patches(parameters).glob("*/meta_info/BATCH.json.gz"):
        marker.unlink()
    kept = parameters.limits.model_copy(update={"repair": False})
    with pytest.raises(TooFewTiles, match="3 of 4 EOPatches are ready, 1 failed"):
        run(parameters.model_copy(update={"limits": kept}))
    lenient = parameters.model_copy(update={"limits": kept.model_copy(update={"min_success": 0.75})})
    summary = run(lenient)
    failed = [record for record in summary.records if record.state is TileState.FAILED]
    assert [record.tile.name for record in failed] == ["t1"]
    assert "B08.tif is not a readable GeoTIFF" in failed[0].reason
    assert len(requests_of(parameters)) == 1


def test_a_tile_without_data_is_not_bought_again(
    parameters: LandCover, four_tiles: Path, s3_files: s3fs.S3FileSystem, tmp_path: Path
):
    with_far_tile = parameters.model_copy(update={"tiling": Tiling(geopackage=str(add_far_tile(four_tiles, tmp_path)))})
    first = run(with_far_tile)
    assert states(first) == dict.fromkeys(("t0", "t1", "t2", "t3"), "labelled") | {"far": "no data"}
    s3_files.rm(parameters.storage.tiles_url.removeprefix("s3://"), recursive=True)  # a bucket's rule of expiry
    second = run(with_far_tile)
    assert (second.job, second.bought, states(second)) == (None, False, states(first))
    assert read_ledger(Path(second.folder) / "ledger.gpkg") == list(first.records)
    order = prepare(with_far_tile)
    assert make_plan(order, survey_order(order)).request == "Nothing is missing: a run would buy nothing."
    kept = with_far_tile.model_copy(update={"patches": PatchOptions(keep_empty=True)})
    assert [record.tile.name for record in survey_order(prepare(kept)) if record.state is TileState.PENDING] == ["far"]


def test_labels_that_are_made_up_for_are_no_more_tiles_at_once_than_was_asked(parameters: LandCover):
    run(parameters.model_copy(update={"reference": None}))
    begin = datetime.now(UTC)
    one_by_one = parameters.run.model_copy(update={"tiles_at_once": 1})
    assert run(parameters.model_copy(update={"run": one_by_one})).labelled == 4
    with get_client(sync_client=True) as client:
        deadline = time.monotonic() + 30
        while len(runs := label_runs(client.read_task_runs(limit=200), begin)) < 4 and time.monotonic() < deadline:
            time.sleep(0.5)
    assert len(runs) == 4
    assert all(after.start_time >= before.end_time for before, after in pairwise(runs))


def test_a_picture_that_cannot_be_drawn_does_not_fail_the_run(pictured: LandCover):
    folder = Path(run(pictured).folder)
    (folder / "report/quicklooks/t0.png").unlink()
    bands = folder / "eopatches/eopatch_t0/data/BANDS.npy.gz"
    bands.write_bytes(bytes(bands.stat().st_size))  # of the size that it had: only reading tells
    summary = run(pictured)
    assert "Quick-look" not in summary.places
    assert summary.message.startswith("4 of 4 EOPatches are ready")


def test_eopatches_may_go_to_s3_as_zarr(pictured: LandCover, bucket: str, s3_files: s3fs.S3FileSystem, tmp_path: Path):
    changed = pictured.model_dump() | {
        "storage": pictured.storage.model_dump() | {"destination": f"s3://{bucket}/eopatches"},
        "patches": {"file_format": "zarr"},
    }
    summary = run(LandCover.model_validate(changed))
    assert summary.converted == summary.labelled == 4
    s3_files.get(f"{bucket}/eopatches/{SLUG}/eopatches/eopatch_t0", str(tmp_path / "copy"), recursive=True)
    patch = EOPatch.load(str(tmp_path / "copy"))
    assert patch.data["NDVI"].shape == (5, 60, 60, 1)
    assert s3_files.exists(f"{bucket}/eopatches/{SLUG}/ledger.gpkg")


def test_an_own_evalscript_needs_no_mapping_and_no_reference(pictured: LandCover, tmp_path: Path):
    script = tmp_path / "red.js"
    script.write_text(RED)
    changed = pictured.model_dump() | {"imagery": {"evalscript": str(script)}, "reference": None}
    summary = run(LandCover.model_validate(changed))
    assert [record.state for record in summary.records] == [TileState.CONVERTED] * 4
    patch = load(pictured, "t0")
    assert patch.get_features() == [(FeatureType.DATA_TIMELESS, "RED"), (FeatureType.META_INFO, "BATCH")]


STACKS = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "B08"], units: "DN"}],
    output: ["RED", "PAIR", "HIGHEST"].map((id) => ({id, bands: 1, sampleType: "UINT16"})),
    mosaicking: "ORBIT",
  };
}
function updateOutput(outputs, collection) {
  outputs.RED.bands = collection.scenes.length;
  outputs.PAIR.bands = 2 * collection.scenes.length;
}
function evaluatePixel(samples) {
  const red = samples.map((sample) => sample.B04);
  return {RED: red, PAIR: samples.flatMap((s) => [s.B04, s.B08]), HIGHEST: [Math.max(...red)]};
}
function updateOutputMetadata(scenes, input, output) {
  output.userData = {timestamps: scenes.orbits.map((orbit) => orbit.dateFrom)};
}
"""


def test_outputs_that_grow_with_the_scenes_become_features_with_their_dates(pictured: LandCover, tmp_path: Path):
    script = tmp_path / "stacks.js"
    script.write_text(STACKS)
    own = pictured.model_dump() | {"imagery": {"evalscript": str(script)}, "reference": None}
    with pytest.raises(InvalidInput, match=r"outputs PAIR \(2\) have several bands per scene"):
        run(LandCover.model_validate(own))
    assert requests_of(pictured) == []
    rules = [("data", "RED", 1), ("data", "PAIR", 2), ("data_timeless", "HIGHEST", 1)]
    features = [
        {"feature_type": kind, "name": name, "outputs": [name], "bands_per_date": bands, "dtype": "uint16"}
        for kind, name, bands in rules
    ]
    run(LandCover.model_validate(own | {"features": {"features": features, "quality_output": None}}))
    patch = load(pictured, "t0")
    red = patch.data["RED"][..., 0]
    assert len(red) == len(patch.timestamps or []) > 1
    assert patch.timestamps == sorted(patch.timestamps or [])
    assert patch.data["PAIR"].shape == (*red.shape, 2)
    np.testing.assert_array_equal(patch.data["PAIR"][..., 0], red)
    np.testing.assert_array_equal(patch.data_timeless["HIGHEST"][..., 0], red.max(axis=0))
    assert red.any()


def test_a_price_above_the_cap_is_refused_before_anything_is_created(parameters: LandCover):
    capped = parameters.model_copy(update={"limits": parameters.limits.model_copy(update={"max_pu": 1.0})})
    with pytest.raises(BudgetExceeded, match=r"4 tiles may cost up to 100 PU, but limits.max_pu is 1"):
        run(capped)
    assert requests_of(parameters) == []


def test_polygons_that_touch_no_tile_are_told_before_anything_is_created(parameters: LandCover, tmp_path: Path):
    assert parameters.reference is not None
    far = gpd.read_file(parameters.reference.file)
    far.geometry = far.geometry.translate(500_000, 0)
    far.to_file(tmp_path / "far.gpkg", engine="pyogrio")
    elsewhere = parameters.reference.model_copy(update={"file": str(tmp_path / "far.gpkg")})
    with pytest.raises(InvalidInput, match=r"far\.gpkg: no polygon with a class touches any of the 4 tiles; check"):
        run(parameters.model_copy(update={"reference": elsewhere}))
    assert requests_of(parameters) == []


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown grid": ({"tiling": {"grid": 5}}, r"tiling.grid: Input should be 0, 1 or 2"),
    "resolution that the grid lacks": (
        {"tiling": {"grid": 1, "resolution_m": 15}, "area": {"name": "x", "bbox": [15.8, 46.3, 15.9, 46.4]}},
        r"Resolution 15 m is not offered by tiling grid 1",
    ),
    "self-crossing area": (
        {
            "area": {
                "name": "x",
                "geojson": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]},
            }
        },
        r"rea.geojson has an invalid geometry: Self-intersection",
    ),
    "empty area": (
        {"area": {"name": "x", "geojson": {"type": "Polygon", "coordinates": []}}},
        r"area.geojson is empty",
    ),
    "area outside of the grid": (
        {"tiling": {"grid": 1}, "area": {"name": "x", "bbox": [0, 85, 1, 86]}},
        r"tiling grid 1 .* covers",
    ),
    "area outside of the GeoPackage": (
        {"area": {"name": "x", "bbox": [0, 10, 1, 11]}},
        r"The area overlaps no tile of",
    ),
    "end before start": (
        {"period": {"start": "2019-03-01", "end": "2019-02-01"}},
        r"period ends on 2019-02-01, before it starts on 2019-03-01",
    ),
    "step longer than the period": (
        {"period": {"start": "2019-01-01", "end": "2019-01-10", "step_days": 20}},
        r"step of 20 days is longer than the period of 10 days",
    ),
    "reference that does not exist": (
        {"reference": {"file": "nowhere.gpkg"}},
        r"Reference file nowhere.gpkg does not exist",
    ),
    "missing bucket": (
        {"storage": {"tiles_url": "s3://no-such-bucket/tiles"}},
        r"The bucket of the delivery s3://no-such-bucket/tiles does not exist",
    ),
    "destination that is not writable": (
        {"storage": {"destination": "/proc/version/eopatches"}},
        r"The destination /proc/version/eopatches cannot be written: /proc/version is a file",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_clear_error_and_nothing_is_created(case: str, parameters: LandCover):
    changes, message = CASES[case]
    content = parameters.model_dump(mode="json")
    for name, change in changes.items():
        content[name] = (content[name] | change) if name == "storage" else change
    with pytest.raises(InvalidInput, match=message):
        run(parse_config(content, "test"))
    assert requests_of(parameters) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_column": "CLASS"}, "has no column CLASS; its columns are"),
        ({"class_column": "LULC_NAME"}, "no class ids, which are integers from 0 to 255"),
        ({"class_table": {"1": 1}}, "not in the class table"),
    ],
)
def test_bad_classes_are_found_before_anything_is_created(parameters: LandCover, change: dict[str, Any], message: str):
    content = parameters.model_dump(mode="json")
    content["reference"] |= change
    with pytest.raises(InvalidInput, match=message):
        run(LandCover.model_validate(content))
    assert requests_of(parameters) == []


def test_an_evalscript_that_does_not_parse_is_told_with_its_line(parameters: LandCover, tmp_path: Path):
    script = tmp_path / "broken.js"
    script.write_text("//VERSION=3\nfunction setup( {\n")
    broken = parameters.model_copy(
        update={"imagery": parameters.imagery.model_copy(update={"evalscript": str(script)})}
    )
    with pytest.raises(InvalidInput, match=r"broken.js does not run: line:\d+: SyntaxError"):
        run(broken)


def test_dates_that_an_own_evalscript_does_not_tell_are_missed_before_anything_is_created(
    parameters: LandCover, tmp_path: Path
):
    script = tmp_path / "red.js"
    script.write_text(RED + "// updateOutputMetadata\n")
    changed = parameters.model_dump() | {
        "imagery": {"evalscript": str(script)},
        "features": {
            "features": [{"feature_type": "data", "name": "RED", "outputs": ["RED"]}],
            "quality_output": None,
        },
    }
    with pytest.raises(InvalidInput, match="no updateOutputMetadata to tell them"):
        run(LandCover.model_validate(changed))
    assert requests_of(parameters) == []


def test_a_reference_on_a_server_that_is_not_running_is_told(parameters: LandCover):
    content = parameters.model_dump(mode="json")
    content["storage"]["endpoint_url"] = "http://127.0.0.1:9"
    content["reference"] = {"file": "s3://bucket/reference.gpkg"}
    with pytest.raises(InvalidInput, match=r"Reference file s3://bucket/reference.gpkg at http://127.0.0.1:9 cannot"):
        prepare(LandCover.model_validate(content))


def test_outputs_that_the_mapping_does_not_name_are_told(parameters: LandCover):
    rule = {"feature_type": "data", "name": "NDVI", "outputs": ["NDVI"]}
    changed = LandCover.model_validate(parameters.model_dump() | {"features": {"features": [rule]}})
    with pytest.raises(InvalidInput, match="B02"):
        run(changed)


def test_several_problems_are_told_at_once(parameters: LandCover):
    content = parameters.model_dump(mode="json")
    content["storage"]["tiles_url"] = "s3://no-such-bucket/tiles"
    content["reference"] = {"file": "nowhere.gpkg"}
    with pytest.raises(InvalidInput) as caught:
        run(LandCover.model_validate(content))
    assert len(str(caught.value).splitlines()) == 2


def test_wrong_credentials_are_told(parameters: LandCover, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SH_CLIENT_ID", "somebody")
    monkeypatch.setenv("SH_CLIENT_SECRET", "a-wrong-secret")
    with pytest.raises(EopatchFlowError, match="refused the OAuth client") as caught:
        run(parameters)
    assert "a-wrong-secret" not in str(caught.value)


def test_copernicus_data_space_gets_no_cloud_mask_or_role_that_it_lacks(parameters: LandCover):
    content = parameters.model_dump(mode="json")
    content["service"]["base_url"] = "https://sh.dataspace.copernicus.eu"
    with pytest.raises(InvalidInput, match=r"choose imagery\.cloud_mask 'scl'"):
        run(LandCover.model_validate(content))
    content["imagery"] |= {"cloud_mask": "scl", "collection": "sentinel-2-l2a"}
    content["storage"]["iam_role_arn"] = "arn:aws:iam::1:role/x"
    with pytest.raises(InvalidInput, match="does not deliver by a role"):
        run(LandCover.model_validate(content))


def run(parameters: LandCover) -> Summary:
    """Run the flow in this process; errors are raised."""
    summary = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields})
    assert isinstance(summary, Summary)
    return summary


def states(summary: Summary) -> dict[str, str]:
    return {record.tile.name: record.state.value for record in summary.records}


def add_far_tile(tiles: Path, folder: Path) -> Path:
    """The tiles of a GeoPackage, and one that no scene reaches."""
    frame = gpd.read_file(tiles, engine="pyogrio")
    far = frame.iloc[[0]].assign(id=9, identifier="far", geometry=frame.geometry.iloc[[0]].translate(yoff=-200_000))
    path = folder / "tiles.gpkg"
    pd.concat([frame, far]).to_file(path, layer="tiles", engine="pyogrio")
    return path


def label_runs(runs: list[TaskRun], since: datetime) -> list[TaskRun]:
    ours = [one for one in runs if one.name.startswith("reference-") and one.start_time and one.start_time > since]
    return sorted((one for one in ours if one.end_time), key=lambda one: one.start_time)


def patches(parameters: LandCover) -> Path:
    return Path(parameters.storage.destination) / SLUG / "eopatches"


def load(parameters: LandCover, tile: str) -> EOPatch:
    return EOPatch.load(str(patches(parameters) / f"eopatch_{tile}"))


def written(parameters: LandCover) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in patches(parameters).rglob("*") if path.is_file()}


def requests_of(parameters: LandCover) -> list[str]:
    """Ids of the requests that deliver into this test's bucket."""
    client: BatchProcessClient = connect(parameters.service)
    place = parameters.storage.tiles_url + "/"
    return [
        request.request_id
        for request in client.iter_requests()
        if request.request["output"]["delivery"]["s3"]["url"].startswith(place)
    ]
