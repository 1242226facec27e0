"""The vendor's own client drives localhub over real HTTP; results in a real object store equal independent ones."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import s3fs
from numpy.typing import NDArray
from rasterio.profiles import Profile
from rasterio.warp import Resampling, reproject
from sentinelhub import (
    CRS,
    BatchProcessClient,
    BatchProcessRequest,
    BBox,
    DataCollection,
    MimeType,
    MosaickingOrder,
    SentinelHubRequest,
)
from sentinelhub.api.batch import monitor_batch_process_job
from shapely.geometry import box

from localhub.seaweed import SeaweedFS
from tests.localhub.batch_requests import RED, SLOW, access, process_request, wait_for

MEAN_NDVI = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "B08", "CLM", "dataMask"]}],
    output: [{id: "NDVI", bands: 1, sampleType: "FLOAT32"}, {id: "B04", bands: 5, sampleType: "UINT16"}],
    mosaicking: "ORBIT",
  };
}
function evaluatePixel(samples) {
  let sum = 0, count = 0;
  for (const s of samples) {
    if (s.dataMask === 1 && s.CLM === 0) { sum += (s.B08 - s.B04) / (s.B08 + s.B04); count++; }
  }
  return {NDVI: [sum / count], B04: samples.map(s => 10000 * s.B04)};
}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  outputMetadata.userData = {dates: scenes.orbits.map(o => o.dateFrom)};
}
"""


def band(scenes: Path, name: str) -> NDArray[Any]:
    """A band of all scenes, oldest first: (scene, row, column), read without any of our code."""
    files = sorted(scenes.glob(f"*/{name}.tif"), key=lambda path: path.parent.name)
    return np.stack([rasterio.open(file).read(1) for file in files])


def read_raster(s3_files: s3fs.S3FileSystem, path: str) -> tuple[NDArray[Any], Profile, dict[str, str]]:
    with rasterio.MemoryFile(s3_files.cat_file(path)) as memory, memory.open() as dataset:
        return dataset.read(), dataset.profile, dataset.tags(ns="IMAGE_STRUCTURE")


def start(
    client: BatchProcessClient, s3: SeaweedFS, grid: str, url: str, script: str, **output: Any
) -> BatchProcessRequest:
    """Create and start a request over the features of a GeoPackage."""
    request = client.create(
        process_request(script),
        client.geopackage_input(access(s3, grid)),
        client.raster_output(access(s3, url), **output),
    )
    client.start_job(request)
    return request


def features_of(
    s3_files: s3fs.S3FileSystem, folder: str, request: BatchProcessRequest, scratch: Path
) -> list[tuple[Any, ...]]:
    """Rows of the execution database in the bucket."""
    path = scratch / "execution.sqlite"
    path.write_bytes(s3_files.cat_file(f"{folder}/execution-{request.request_id}.sqlite"))
    with sqlite3.connect(path) as database:
        return database.execute("SELECT id, name, status, error, delivered FROM features ORDER BY id").fetchall()


def test_the_client_sees_every_grid(client: BatchProcessClient) -> None:
    grids = list(client.iter_tiling_grids())
    assert {grid["id"]: grid["name"] for grid in grids}.items() >= {0: "20km grid", 1: "10km grid"}.items()
    assert client.get_tiling_grid(1) == grids[1]
    assert grids[0]["properties"]["tileWidth"] == 20040.0


def test_a_request_goes_from_creation_to_results_over_a_tiling_grid(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, scenes: Path, tmp_path: Path
) -> None:
    request = client.create(
        SentinelHubRequest(
            evalscript=RED,
            input_data=[
                SentinelHubRequest.input_data(
                    DataCollection.SENTINEL2_L1C,
                    time_interval=("2015-07-01", "2015-07-20"),
                    mosaicking_order=MosaickingOrder.LEAST_RECENT,
                )
            ],
            responses=[SentinelHubRequest.output_response("default", MimeType.TIFF)],
            bbox=BBox((14.555, 45.868, 14.560, 45.872), CRS.WGS84),
        ),
        client.tiling_grid_input(1, 10),
        client.raster_output(access(s3, f"s3://{bucket}/out"), cog_output=True),
        description="a summer",
    )
    assert (request.status.value, request.user_action.value) == ("CREATED", "NONE")
    client.update_request(request, "another summer")
    assert client.get_request(request).request["description"] == "another summer"
    assert request.request_id in [found.request_id for found in client.iter_requests(search="ANOTHER")]

    client.start_analysis(request)
    assert wait_for(client, request, ["ANALYSIS_DONE"]).user_action.value == "ANALYSE"
    client.start_job(request)
    done = wait_for(client, request)
    assert (done.status.value, done.completion_percentage, done.cost_PU, done.error) == ("DONE", 100, 100, None)
    assert monitor_batch_process_job(done, client).status.value == "DONE"

    values, profile, structure = read_raster(s3_files, f"{bucket}/out/{request.request_id}/33TVL_6_2/default.tif")
    assert (profile["crs"].to_epsg(), profile["width"], profile["height"]) == (32633, 1000, 1000)
    assert profile["transform"].to_gdal() == (460000, 10, 0, 5080000, 0, -10)
    assert structure["LAYOUT"] == "COG"
    with rasterio.open(next(scenes.glob("*20150711*/B04.tif"))) as source:
        expected = np.zeros((1000, 1000), "uint16")
        reproject(
            rasterio.band(source, 1),
            expected,
            dst_transform=profile["transform"],
            dst_crs="EPSG:32633",
            resampling=Resampling.nearest,
        )
    assert np.count_nonzero(expected) > 5000
    np.testing.assert_array_equal(values[0], expected)
    assert features_of(s3_files, f"{bucket}/out", request, tmp_path) == [(1, "33TVL_6_2", "DONE", None, 1)]


def test_simple_mosaicking_delivers_the_first_scene_in_the_asked_order(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, whole_scene: str, scenes: Path
) -> None:
    request = client.create(
        process_request(RED, mosaickingOrder="leastRecent"),
        client.geopackage_input(access(s3, whole_scene)),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>/<outputId>.<format>")),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    values, profile, structure = read_raster(s3_files, f"{bucket}/whole/default.tif")
    np.testing.assert_array_equal(values[0], band(scenes, "B04")[0])
    assert (profile["dtype"], structure.get("LAYOUT")) == ("uint16", None)


def test_orbits_come_in_order_and_equal_an_independent_computation(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
    scenes: Path,
    scene_profile: Profile,
    tmp_path: Path,
) -> None:
    outputs = [("NDVI", "image/tiff"), ("B04", "image/tiff"), ("userdata", "application/json")]
    request = client.create(
        process_request(MEAN_NDVI, outputs),
        client.geopackage_input(access(s3, whole_scene)),
        client.raster_output(access(s3, f"s3://{bucket}/p/<tileName>/<outputId>.<format>"), cog_output=True),
    )
    client.start_job(request)
    assert wait_for(client, request).error is None

    red, infrared = (band(scenes, name) * 0.0001 for name in ("B04", "B08"))
    clear = (band(scenes, "CLM") == 0) & (band(scenes, "dataMask") == 1)
    index = (infrared - red) / (infrared + red)
    mean = np.where(clear, index, 0).sum(axis=0) / clear.sum(axis=0)
    ndvi, profile, _ = read_raster(s3_files, f"{bucket}/p/whole/NDVI.tif")
    np.testing.assert_allclose(ndvi[0], mean, atol=1e-6)
    assert profile["dtype"] == "float32"
    np.testing.assert_allclose(profile["transform"][:6], scene_profile["transform"][:6], rtol=1e-12)
    newest_first, _, _ = read_raster(s3_files, f"{bucket}/p/whole/B04.tif")
    np.testing.assert_array_equal(newest_first, band(scenes, "B04")[::-1])
    dates = json.loads(s3_files.cat_file(f"{bucket}/p/whole/userdata.json"))["dates"]
    assert [date[:10] for date in dates] == ["2015-09-09", "2015-08-30", "2015-08-20", "2015-07-31", "2015-07-11"]

    manifest = tmp_path / "manifest.gpkg"
    manifest.write_bytes(s3_files.cat_file(f"{bucket}/p/featureManifest-{request.request_id}.gpkg"))
    assert [name for name, _ in pyogrio.list_layers(manifest)] == ["feature_32633"]
    table = gpd.read_file(manifest, layer="feature_32633", engine="pyogrio")
    assert list(table.columns) == ["outputId", "identifier", "path", "width", "height", "geometry"]
    assert table.crs.to_epsg() == 32633
    assert set(table["path"]) == {f"s3://{bucket}/p/whole/{name}" for name in ("NDVI.tif", "B04.tif", "userdata.json")}
    assert table[["identifier", "width", "height"]].drop_duplicates().to_numpy().tolist() == [["whole", 100, 101]]
    assert pyogrio.read_info(manifest)["fid_column"] == "fid"
    assert pyogrio.read_info(manifest)["geometry_name"] == "geometry"


def test_the_area_selects_among_the_features_of_a_geopackage(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    tmp_path: Path,
) -> None:
    area = process_request(RED)
    area["input"]["bounds"] = {
        "geometry": box(465400, 5079500, 465550, 5079600).__geo_interface__,
        "properties": {"crs": "http://www.opengis.net/def/crs/EPSG/0/32633"},
    }
    request = client.create(
        area,
        client.geopackage_input(access(s3, six_features)),
        client.raster_output({"s3": {"url": f"s3://{bucket}", "iamRoleARN": "arn:aws:iam::1:role/any"}}),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    assert [row[1:] for row in features_of(s3_files, bucket, request, tmp_path)] == [
        ("f1", "DONE", None, 1),
        ("f2", "DONE", None, 1),
    ]


def test_a_feature_without_scenes_is_done_with_no_data_and_delivers_nothing(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
    tmp_path: Path,
) -> None:
    period = {"from": "2019-01-01T00:00:00Z", "to": "2019-02-01T00:00:00Z"}
    request = client.create(
        process_request(RED, timeRange=period),
        client.geopackage_input(access(s3, whole_scene)),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>/<outputId>.tif")),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    assert features_of(s3_files, bucket, request, tmp_path) == [(1, "whole", "DONE", "No data", 0)]
    assert not s3_files.exists(f"{bucket}/whole")


def test_a_script_that_throws_makes_its_feature_fatal_and_leaves_the_others(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    scenes: Path,
    tmp_path: Path,
) -> None:
    # the script knows its feature by the red value of its first pixel
    newest = band(scenes, "B04")[-1]
    with rasterio.open(next(scenes.glob("*20150909*/B04.tif"))) as dataset:
        firsts = [int(newest[dataset.index(465305 + 100 * i, 5079595)]) for i in range(6)]
    assert firsts.count(firsts[3]) == 1
    throwing = RED.replace(
        "return [sample.B04]",
        f"if (!first) first = sample.B04;\n  if (first === {firsts[3]}) sample.none.any;\n  return [sample.B04]",
    )
    request = start(client, s3, six_features, f"s3://{bucket}/o/<tileName>.tif", throwing + "let first;\n")
    assert wait_for(client, request).status.value == "DONE"
    rows = features_of(s3_files, f"{bucket}/o", request, tmp_path)
    assert [(name, status, delivered) for _, name, status, _, delivered in rows] == [
        (f"f{i}", "FATAL" if i == 3 else "DONE", i != 3) for i in range(6)
    ]
    assert "Failed to evaluate script!\nevalscript.js:6: TypeError" in rows[3][3]
    assert not s3_files.exists(f"{bucket}/o/f3.tif")


@pytest.mark.parametrize(
    ("script", "responses", "reason"),
    [
        (RED.replace("B04", "B99"), [("default", "image/tiff")], "Collection 'S2L1C' has no band 'B99'."),
        (RED.replace('"DN"', '"KELVIN"'), [("default", "image/tiff")], "unsupported units 'KELVIN'"),
        (RED, [("NDVI", "image/tiff")], r"Response 'NDVI' is not an output of setup\(\); it has \[default\]"),
        (RED.replace("function", "fnction"), [("default", "image/tiff")], "evalscript.js:2: SyntaxError"),
        (RED.replace("UINT16", "INT8"), [("default", "image/tiff")], "INT8, which cogOutput does not allow"),
    ],
)
def test_the_analysis_refuses_a_script_that_cannot_work(
    client: BatchProcessClient,
    s3: SeaweedFS,
    bucket: str,
    whole_scene: str,
    script: str,
    responses: list[tuple[str, str]],
    reason: str,
) -> None:
    request = client.create(
        process_request(script, responses),
        client.geopackage_input(access(s3, whole_scene)),
        client.raster_output(access(s3, f"s3://{bucket}"), cog_output=True),
    )
    client.start_analysis(request)
    failed = wait_for(client, request)
    assert failed.status.value == "FAILED"
    with pytest.raises(RuntimeError, match=reason):
        failed.raise_for_status()


def test_existing_files_fail_the_request_unless_it_overwrites_or_skips_them(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    tmp_path: Path,
) -> None:
    url = f"s3://{bucket}/o/<tileName>.tif"
    s3_files.pipe_file(f"{bucket}/o/f2.tif", b"mine")

    refused = wait_for(client, start(client, s3, six_features, url, RED))
    assert refused.status.value == "FAILED"
    assert refused.error.startswith(f"File s3://{bucket}/o/f2.tif exists already")

    skipping = wait_for(client, start(client, s3, six_features, url, RED, skip_existing=True))
    assert skipping.status.value == "DONE"
    assert s3_files.cat_file(f"{bucket}/o/f2.tif") == b"mine"
    assert {row[2] for row in features_of(s3_files, f"{bucket}/o", skipping, tmp_path)} == {"DONE"}

    writing = wait_for(client, start(client, s3, six_features, url, RED, overwrite=True))
    assert writing.status.value == "DONE"
    assert read_raster(s3_files, f"{bucket}/o/f2.tif")[0].shape == (1, 10, 10)


def test_a_stopped_job_keeps_what_is_done_and_goes_on_when_it_is_started_again(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    tmp_path: Path,
) -> None:
    request = start(client, s3, six_features, f"s3://{bucket}/o/<tileName>.tif", SLOW)
    wait_for(client, request, ["PROCESSING"])
    client.stop_job(request)
    stopped = wait_for(client, request)
    assert (stopped.status.value, stopped.stopped_status_reason.value) == ("STOPPED", "USER_ACTION")
    rows = features_of(s3_files, f"{bucket}/o", request, tmp_path)
    done = {row[1] for row in rows if row[2] == "DONE"}
    assert len(done) < 6
    assert {row[2] for row in rows} <= {"DONE", "PENDING"}
    assert all(s3_files.exists(f"{bucket}/o/{name}.tif") for name in done)

    written = {name: s3_files.modified(f"{bucket}/o/{name}.tif") for name in done}
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    assert {row[2] for row in features_of(s3_files, f"{bucket}/o", request, tmp_path)} == {"DONE"}
    assert {name: s3_files.modified(f"{bucket}/o/{name}.tif") for name in done} == written
