"""eo-grow's own pipelines, unmodified and run by its own command, order from localhub and convert what it delivers."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import s3fs
import shapely
from eolearn.core import EOPatch
from fs_s3fs import S3FS
from numpy.typing import NDArray
from rasterio.transform import from_bounds
from rasterio.warp import Resampling, reproject
from sentinelhub import CRS, BatchProcessClient, BatchProcessRequest, BBox

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import client_of, wait_for
from tests.localhub.clients.eogrow_project import EoGrowProject

DOWNLOAD = "eogrow.pipelines.download_batch.BatchDownloadPipeline"
CONVERT = "eogrow.pipelines.batch_to_eopatch.BatchToEOPatchPipeline"

SIZE_M = 300
BUFFER_M = 20
PIXELS = (SIZE_M + 2 * BUFFER_M) // 10

STACKS = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "B08", "dataMask"], units: "DN"}],
    output: [
      {id: "B04", bands: 1, sampleType: "UINT16"},
      {id: "B08", bands: 1, sampleType: "UINT16"},
      {id: "mask", bands: 1, sampleType: "UINT8"},
      {id: "MAX_NDVI", bands: 1, sampleType: "FLOAT32"},
    ],
    mosaicking: "ORBIT",
  };
}
function updateOutput(outputs, collection) {
  for (const id of ["B04", "B08", "mask"]) outputs[id].bands = collection.scenes.length;
}
function evaluatePixel(samples) {
  return {
    B04: samples.map((s) => s.B04),
    B08: samples.map((s) => s.B08),
    mask: samples.map((s) => s.dataMask),
    MAX_NDVI: [Math.max(...samples.map((s) => (s.B08 - s.B04) / (s.B08 + s.B04)))],
  };
}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  outputMetadata.userData = {orbits: scenes.orbits, timestamps: scenes.orbits.map((orbit) => orbit.tiles[0].date)};
}
"""
"""A stack of each band over the acquisitions, newest first, and a timeless index."""

GOOD = (465310, 5079310, 465590, 5079590)
"""An area within one tile of the real scenes: west, south, east, north in EPSG:32633."""
BESIDE = (465610, 5079310, 465890, 5079590)
"""An area within the tile to the east of it, also of the real scenes."""
FAILING = (465310, 5079910, 465590, 5080190)
"""An area within a third, which has no pixel in common with the first."""
WITHOUT_SCENES = (468010, 5079310, 468290, 5079590)
"""An area within a tile where there are no scenes."""
TIMESTAMPS = [
    dt.datetime.fromisoformat(text)
    for text in (
        "2015-07-11T10:00:08",
        "2015-07-31T10:00:09",
        "2015-08-20T10:07:28",
        "2015-08-30T10:05:47",
        "2015-09-09T10:00:17",
    )
]
"""Sensing times of the real scenes, without a zone, as eo-learn keeps them."""


@pytest.fixture
def project(
    eogrow_programs: Path, hub: LocalHub, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> EoGrowProject:
    """An empty project whose service is the session's localhub."""
    return EoGrowProject(eogrow_programs, hub, s3, s3_files, bucket, tmp_path)


@pytest.fixture
def zeros_hub(hub_settings: Settings, tmp_path: Path) -> Iterator[LocalHub]:
    """A localhub that delivers rasters of zeros where there is no scene."""
    settings = hub_settings.model_copy(update={"data_dir": tmp_path / "hub", "no_data_output": "zeros"})
    with LocalHub(settings) as running:
        yield running


def download(**config: Any) -> dict[str, Any]:
    """The download pipeline's config: every output of STACKS over the summer of the real scenes."""
    return {
        "iam_role_arn": "arn:aws:iam::1:role/any",
        "output_folder_key": "batch",
        "grid": {
            "geometry_filename": "aoi.geojson",
            "bbox_size": [SIZE_M, SIZE_M],
            "bbox_buffer": [BUFFER_M, BUFFER_M],
            "resolution": 10,
        },
        "inputs": [{"data_collection": "SENTINEL2_L1C", "time_period": ["2015-07-01", "2015-09-30"]}],
        "evalscript_path": "evalscript.js",
        "tiff_outputs": ["B04", "B08", "mask", "MAX_NDVI"],
        "save_userdata": True,
        "monitoring_analysis_sleep_time": 5,
        "monitoring_sleep_time": 60,
    } | config


def conversion(reader: str, **config: Any) -> dict[str, Any]:
    """The conversion pipeline's config."""
    return {
        "input_folder_key": "batch",
        "output_folder_key": "eopatches",
        "userdata_feature_name": "BATCH",
        "userdata_timestamp_reader": reader,
        "mapping": [
            {
                "batch_files": ["B04.tif", "B08.tif"],
                "feature": ["data", "BANDS"],
                "multiply_factor": 1e-4,
                "dtype": "float32",
            },
            {"batch_files": ["mask.tif"], "feature": ["mask", "IS_DATA"]},
            {"batch_files": ["MAX_NDVI.tif"], "feature": ["data_timeless", "MAX_NDVI"]},
        ],
    } | config


def put_inputs(project: EoGrowProject, boxes: Iterable[Sequence[float]], evalscript: str) -> None:
    """Upload what a user brings: the area as GeoJSON in longitude and latitude, and the evalscript."""
    area = gpd.GeoSeries([shapely.box(*box) for box in boxes], crs="EPSG:32633").to_crs(4326)
    project.files.pipe_file(f"{project.root}/input-data/aoi.geojson", area.to_json().encode())
    project.files.pipe_file(f"{project.root}/input-data/evalscript.js", evalscript.encode())


def tile_around(box: Sequence[float]) -> BBox:
    """The tile around a box: multiples of the tile size, and the buffer."""
    west, south = (SIZE_M * (value // SIZE_M) for value in box[:2])
    return BBox((west, south, west + SIZE_M, south + SIZE_M), CRS.UTM_33N).buffer((BUFFER_M, BUFFER_M), relative=False)


def tiles_of(project: EoGrowProject, *boxes: Sequence[float]) -> list[str]:
    """Names that eo-grow's grid, as it left it in its project, gives to the tiles around `boxes`; it has no others."""
    path = project.scratch / "grid.gpkg"
    path.write_bytes(project.files.cat_file(f"{project.root}/grids/grid.gpkg"))
    table = gpd.read_file(path, engine="pyogrio")
    names = {row.geometry.bounds: row.identifier for row in table.itertuples()}
    tiles = [tuple(tile_around(box)) for box in boxes]
    assert names.keys() == set(tiles)
    return [names[tile] for tile in tiles]


def on_tile(scenes: Path, band: str, tile: BBox) -> NDArray[Any]:
    """A band of the real scenes, oldest first, brought onto a tile by rasterio: (scene, row, column)."""
    transform = from_bounds(*tile, PIXELS, PIXELS)
    files = sorted(scenes.glob(f"*/{band}.tif"), key=lambda path: path.parent.name)
    result = np.zeros((len(files), PIXELS, PIXELS), "uint16")
    for file, values in zip(files, result, strict=True):
        with rasterio.open(file) as source:
            reproject(
                rasterio.band(source, 1),
                values,
                dst_transform=transform,
                dst_crs="EPSG:32633",
                resampling=Resampling.nearest,
            )
    return result


def patch_of(project: EoGrowProject, name: str) -> EOPatch:
    """An EOPatch of the project, read by eo-learn."""
    store = S3FS(
        project.bucket,
        "project/eopatches",
        aws_access_key_id=project.s3.access_key,
        aws_secret_access_key=project.s3.secret_key,
        endpoint_url=project.s3.endpoint_url,
        strict=False,
    )
    return EOPatch.load(name, filesystem=store)


def assert_holds_the_real_scenes(patch: EOPatch, tile: BBox, scenes: Path) -> None:
    """Every array, all timestamps and the place of an EOPatch, against rasterio and NumPy."""
    red, infrared, mask = (on_tile(scenes, band, tile) for band in ("B04", "B08", "dataMask"))
    assert red.all()
    assert (patch.bbox, patch.timestamps) == (tile, TIMESTAMPS)
    assert patch.data["BANDS"].dtype == np.float32
    np.testing.assert_allclose(patch.data["BANDS"], np.stack([red, infrared], axis=-1) / 10000, rtol=1e-6)
    np.testing.assert_array_equal(patch.mask["IS_DATA"][..., 0], mask)
    index = (infrared - red.astype(float)) / (infrared + red.astype(float))
    np.testing.assert_allclose(patch.data_timeless["MAX_NDVI"][..., 0], index.max(axis=0), rtol=1e-6)


def requests_of(project: EoGrowProject, client: BatchProcessClient) -> list[BatchProcessRequest]:
    """The requests that deliver into a project."""
    return [
        request
        for request in client.iter_requests()
        if request.request["output"]["delivery"]["s3"]["url"].startswith(f"s3://{project.root}/")
    ]


def batch_files(project: EoGrowProject) -> set[str]:
    """Paths of the files below the project's folder of batch results."""
    folder = f"{project.root}/batch/"
    return {path.removeprefix(folder) for path in project.files.find(folder)} - {""}


def throwing_on(box: Sequence[float], but_not_on: Sequence[float], scenes: Path) -> str:
    """STACKS, made to throw at a pixel value that the newest scene has on one tile and not on the other."""
    values, others = (set(on_tile(scenes, "B08", tile_around(b))[-1].flat) - {0} for b in (box, but_not_on))
    value = min(values - others)
    check = f"  if (samples[0].B08 === {value}) throw new Error('not this value');\n"
    return STACKS.replace("  return {\n    B04: samples", f"{check}  return {{\n    B04: samples")


def test_an_analysed_job_that_was_started_elsewhere_is_resumed_and_becomes_eopatches(
    project: EoGrowProject, client: BatchProcessClient, scenes: Path
) -> None:
    """eo-grow creates a job over a grid of its own, with an IAM role, and only analyses it; finds it by its id when it
    is done; reads grid, manifest and execution database; and makes EOPatches of rasters and userdata, which it removes
    then. The tile without scenes counts as finished, but has no files to convert: localhub's default.
    """
    put_inputs(project, (GOOD, BESIDE, WITHOUT_SCENES), STACKS)
    analysed = project.run(DOWNLOAD, **download(analysis_only=True))
    assert (analysed.returncode, analysed.finished) == (0, []), analysed.output
    (request,) = requests_of(project, client)
    assert request.status.value == "ANALYSIS_DONE", request.error
    assert batch_files(project) == {f"featureManifest-{request.request_id}.gpkg", f"request-{request.request_id}.json"}

    client.start_job(request)
    wait_for(client, request)
    resumed = project.run(DOWNLOAD, **download(batch_id=request.request_id))
    good, beside, without_scenes = tiles_of(project, GOOD, BESIDE, WITHOUT_SCENES)
    assert (resumed.returncode, resumed.failed) == (0, []), resumed.output
    assert set(resumed.finished) == {good, beside, without_scenes}
    assert len(requests_of(project, client)) == 1

    reader = "eogrow.utils.batch.read_timestamps_from_orbits"
    converted = project.run(CONVERT, **conversion(reader, raise_on_failure=False))
    assert (set(converted.finished), converted.failed) == ({good, beside}, [without_scenes]), converted.output
    assert_holds_the_real_scenes(patch_of(project, good), tile_around(GOOD), scenes)
    assert_holds_the_real_scenes(patch_of(project, beside), tile_around(BESIDE), scenes)
    assert not any("/" in path for path in batch_files(project))


def test_a_fatal_tile_is_reported_and_one_without_scenes_becomes_an_empty_eopatch(
    project: EoGrowProject, zeros_hub: LocalHub, scenes: Path
) -> None:
    """eo-grow creates, starts and follows a job to its end; lists the tile whose script threw as failed, the others as
    finished; and makes an EOPatch without dates of the tile without scenes, as it does of the service's dummy rasters.
    """
    project = replace(project, hub=zeros_hub)
    put_inputs(project, (GOOD, FAILING, WITHOUT_SCENES), throwing_on(FAILING, but_not_on=GOOD, scenes=scenes))
    ordered = project.run(DOWNLOAD, **download())
    (request,) = requests_of(project, client_of(zeros_hub))
    assert request.status.value == "DONE", request.error
    good, failing, without_scenes = tiles_of(project, GOOD, FAILING, WITHOUT_SCENES)
    assert (set(ordered.finished), ordered.failed) == ({good, without_scenes}, [failing]), ordered.output
    assert ordered.returncode == 1
    assert "PipelineExecutionError: Pipeline failed some executions" in ordered.output

    converted = project.run(CONVERT, **conversion("eogrow.utils.batch.read_timestamps", raise_on_failure=False))
    assert (set(converted.finished), converted.failed) == ({good, without_scenes}, [failing]), converted.output
    assert_holds_the_real_scenes(patch_of(project, good), tile_around(GOOD), scenes)
    empty = patch_of(project, without_scenes)
    assert (empty.bbox, empty.timestamps) == (tile_around(WITHOUT_SCENES), [])
    assert empty.data["BANDS"].shape == (0, PIXELS, PIXELS, 2)
    assert not empty.data_timeless["MAX_NDVI"].any()
    assert empty.meta_info["BATCH"] == {"orbits": [], "timestamps": []}
