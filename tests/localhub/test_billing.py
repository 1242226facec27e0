"""What a run costs, and what happens when the account cannot pay: over the real scenes, by the vendor's client."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import s3fs
import shapely
from rasterio.profiles import Profile
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.jobs import Job
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.store import Feature, Store
from tasks.grid import Tile
from tests.localhub.batch_requests import RED, SLOW, access, process_request, wait_for
from tests.localhub.conftest import upload_grid
from tests.localhub.watching import (
    balance,
    database_path,
    execution_rows,
    faults,
    remembered,
    set_balance,
    start_tiles,
    task_of,
)

ALL_BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12", "CLM", "CLP"]
SCENES = 5
"""Acquisitions of the test's summer, each of another day, so orbits and tiles are as many."""


@pytest.fixture
def limited(hub: LocalHub) -> Iterator[LocalHub]:
    """The hub, with an account that has 2000 processing units; without end again afterwards."""
    set_balance(hub, 2000)
    yield hub
    set_balance(hub, None)


def script(bands: list[str], mosaicking: str, sample_type: str = "UINT16", hook: str = "") -> str:
    """An evalscript that reads bands and delivers a constant."""
    inputs = json.dumps([{"bands": bands}])
    return (
        f"//VERSION=3\nfunction setup() {{ return {{input: {inputs}, mosaicking: '{mosaicking}', "
        f"output: {{bands: 1, sampleType: '{sample_type}'}}}}; }}\n"
        f"function evaluatePixel(samples) {{ return [1]; }}\n{hook}\n"
    )


def newest_two(kind: str) -> str:
    """The hook that drops all samples but two."""
    return (
        "function preProcessScenes(collections) { "
        f"collections.scenes.{kind} = collections.scenes.{kind}.slice(0, 2); return collections; }}"
    )


def units(width: int, height: int, bands: int, samples: int, factor: float = 1) -> float:
    """The published price of a raster, with the batch discount where it is due."""
    return width * height / 512 / 512 * bands / 3 * samples * factor / (3 if width * height >= 10_000 else 1)


@pytest.mark.parametrize(
    ("evalscript", "price"),
    [
        (script(["B02"], "SIMPLE"), units(100, 101, 1, 1)),
        (script(["B02", "B03", "dataMask"], "SIMPLE"), units(100, 101, 2, 1)),
        (script(["dataMask"], "SIMPLE"), units(100, 101, 1, 1)),
        (script(["B02"], "SIMPLE", "FLOAT32"), units(100, 101, 1, 1, 2)),
        (script(["B02", "B08", "dataMask"], "ORBIT"), units(100, 101, 2, SCENES)),
        (script(["B02", "CLM", "CLP"], "TILE", "FLOAT32"), units(100, 101, 3, SCENES, 2)),
        (script(["B02"], "ORBIT", hook=newest_two("orbits")), units(100, 101, 1, 2)),
        (script(["B02"], "TILE", hook=newest_two("tiles")), units(100, 101, 1, 2)),
        (script(["B02"], "ORBIT", hook=newest_two("orbits").replace("0, 2", "0, 0")), units(100, 101, 1, 1)),
    ],
)
def test_a_tile_costs_what_was_read_for_it(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    bucket: str,
    whole_scene: str,
    scene_profile: Profile,
    evalscript: str,
    price: float,
) -> None:
    assert (scene_profile["width"], scene_profile["height"]) == (100, 101)
    request = start_tiles(client, s3, whole_scene, f"{bucket}/o", evalscript)
    done = wait_for(client, request)
    assert (done.status.value, done.cost_PU) == ("DONE", 100)  # the least that a request costs
    assert remembered(hub, request)["whole"].cost_pu == pytest.approx(price)


def test_a_tile_of_a_grid_is_paid_in_full_with_its_buffer_however_little_of_it_is_asked_for(
    hub: LocalHub, client: BatchProcessClient, s3: SeaweedFS, bucket: str
) -> None:
    request = client.create(
        process_request(RED, bbox=[14.555, 45.868, 14.560, 45.872]),
        client.tiling_grid_input(1, 10, 20, 30),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>.tif")),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    (tile,) = remembered(hub, request).values()
    assert tile.cost_pu == pytest.approx(units(1040, 1060, 1, 1))


@pytest.fixture
def three_large(s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path) -> str:
    """URL of a GeoPackage with three features of 800 x 800 pixels: 40.7 units each with all bands of all scenes."""
    boxes = [shapely.box(465300 + 100 * i, 5079500, 465400 + 100 * i, 5079600) for i in range(3)]
    columns = {"id": range(3), "identifier": ["a", "b", "c"], "width": [800] * 3, "height": [800] * 3}
    return upload_grid(gpd.GeoDataFrame(columns, geometry=boxes, crs="EPSG:32633"), s3_files, bucket, tmp_path)


def test_a_request_above_the_minimum_is_charged_what_its_tiles_cost_also_over_a_stop(
    limited: LocalHub, client: BatchProcessClient, s3: SeaweedFS, bucket: str, three_large: str
) -> None:
    tile = units(800, 800, len(ALL_BANDS), SCENES, 2)
    assert 2 * tile < 100 < 3 * tile
    with faults(limited, unhealthy_after_tiles=1):
        request = start_tiles(client, s3, three_large, f"{bucket}/o", script(ALL_BANDS, "ORBIT", "FLOAT32"))
        assert wait_for(client, request).status.value == "STOPPED"
    assert (task_of(limited, request)["costPU"], balance(limited)) == (100, 1900)
    client.start_job(request)
    done = wait_for(client, request)
    assert (done.status.value, done.cost_PU) == ("DONE", pytest.approx(3 * tile))
    assert balance(limited) == pytest.approx(2000 - 3 * tile)


def test_tiles_that_fail_have_no_data_or_are_skipped_cost_nothing(
    limited: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
) -> None:
    s3_files.pipe_file(f"{bucket}/o/f0.tif", b"mine")
    with faults(limited, tiles=[{"kind": "fatal", "tile": "f1"}, {"kind": "no_data", "tile": "f2"}]):
        request = start_tiles(client, s3, six_features, f"{bucket}/o", skip_existing=True, overwrite=True)
        assert wait_for(client, request).status.value == "DONE"
    found = remembered(limited, request)
    assert {name for name, feature in found.items() if feature.cost_pu == 0} == {"f0", "f1", "f2"}
    assert found["f3"].cost_pu == pytest.approx(0.01 / 3)
    assert balance(limited) == 1900

    for name in ("f1", "f2"):
        s3_files.pipe_file(f"{bucket}/o/{name}.tif", b"mine")
    skipped = wait_for(client, start_tiles(client, s3, six_features, f"{bucket}/o", skip_existing=True))
    assert (skipped.status.value, skipped.cost_PU) == ("DONE", 0)
    assert balance(limited) == 1900


def states(s3_files: s3fs.S3FileSystem, folder: str, request: BatchProcessRequest) -> tuple[list[str], list[str]]:
    """The tiles that are DONE and those that are PENDING, by the execution database in the bucket."""
    rows = execution_rows(s3_files, database_path(folder, request))
    assert rows is not None
    found: dict[str, list[str]] = {"DONE": [], "PENDING": []}
    for name, (status, _, delivered) in rows.items():
        found[status].append(name)
        assert delivered == (status == "DONE")
    return found["DONE"], found["PENDING"]


def test_a_job_whose_account_is_used_up_stops_and_goes_on_when_there_are_units_again(
    limited: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
) -> None:
    request = client.create(
        process_request(SLOW),
        client.geopackage_input(access(s3, six_features)),
        client.raster_output(access(s3, f"s3://{bucket}/o/<tileName>.tif")),
    )
    set_balance(limited, 60)  # creating wants more than that
    client.start_job(request)
    stopped = wait_for(client, request)
    assert (stopped.status.value, stopped.stopped_status_reason.value) == ("STOPPED", "OUT_OF_PU")
    done, pending = states(s3_files, f"{bucket}/o", request)
    assert (len(done), len(pending)) == (2, 4)  # one was in progress when the first used the account up
    assert all(s3_files.exists(f"{bucket}/o/{name}.tif") for name in done)
    assert balance(limited) == -40

    client.start_job(request)
    again = wait_for(client, request)
    assert (again.status.value, again.stopped_status_reason.value) == ("STOPPED", "OUT_OF_PU")
    assert states(s3_files, f"{bucket}/o", request) == (done, pending)

    set_balance(limited, 10)
    client.start_job(request)
    finished = wait_for(client, request)
    assert (finished.status.value, finished.cost_PU) == ("DONE", 100)
    assert "stoppedStatusReason" not in task_of(limited, request)
    assert balance(limited) == 10  # the minimum was paid with the first tile


@pytest.mark.parametrize(
    ("limit", "reason"), [("out_of_pu_after_tiles", "OUT_OF_PU"), ("unhealthy_after_tiles", "UNHEALTHY")]
)
def test_the_service_stops_a_job_after_so_many_tiles_of_each_start_on_demand(
    hub: LocalHub,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    limit: str,
    reason: str,
) -> None:
    with faults(hub, **{limit: 4}):
        request = start_tiles(client, s3, six_features, f"{bucket}/o")
        wait_for(client, request)
        task: Any = task_of(hub, request)
        assert (task["status"], task["stoppedStatusReason"], task["userAction"]) == ("STOPPED", reason, "START")
        assert task["completionPercentage"] == pytest.approx(100 * 4 / 6)
        assert [len(names) for names in states(s3_files, f"{bucket}/o", request)] == [4, 2]
        client.start_job(request)
        assert wait_for(client, request).status.value == "DONE"


def test_a_tile_is_recorded_and_charged_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open_accounts(["somebody"], 1000.0)
    account = store.account("somebody")
    assert account is not None
    now = datetime.now(UTC)
    job = Job("a-job", account.account_id, {}, now, now)
    place = Tile("t", 32633, (0.0, 0.0, 10.0, 10.0), 1, 1)
    tiles = [Feature(number, place, begun=True, cost_pu=0.0) for number in (1, 2, 3)]
    store.add(job, {})
    store.set_features(job.id, tiles)

    store.end_feature(job, replace(tiles[0], status="DONE", cost_pu=90.0))
    assert store.balance(account.account_id) == 900
    with pytest.raises(AttributeError):  # fails after the charge, as a crash would
        store.end_feature(job, replace(tiles[1], status="DONE", cost_pu=90.0), due="broken")  # type: ignore[arg-type]
    assert [feature.status for feature in store.features(job.id)] == ["DONE", "PENDING", "PENDING"]
    assert store.balance(account.account_id) == 900

    for _ in range(2):  # a repeat replaces what it repeats
        store.end_feature(job, replace(tiles[1], status="DONE", cost_pu=90.0))
        assert store.balance(account.account_id) == pytest.approx(820)
    store.end_feature(job, replace(tiles[2], status="FATAL"))
    assert store.balance(account.account_id) == pytest.approx(820)
    assert store.progress(job.id).billed_pu == pytest.approx(180)
    store.close()
