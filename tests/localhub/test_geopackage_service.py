"""GeoPackage input and the other grids through the whole service: what is delivered, and what ends a request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import requests
import s3fs
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.profiles import Profile
from sentinelhub import BatchProcessClient, BatchProcessRequest
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tests.localhub.batch_requests import RED, access, body, process_request, wait_for

RED_AND_MASK = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "dataMask"], units: "DN"}],
    output: {bands: 2, sampleType: "UINT16"},
  };
}
function evaluatePixel(sample) { return [sample.B04, 10 + sample.dataMask]; }
"""
CORNER = (465300.0, 5079500.0)
BOX = box(*CORNER, CORNER[0] + 100, CORNER[1] + 100)
TRIANGLE = Polygon([CORNER, (CORNER[0] + 300, CORNER[1]), (CORNER[0] + 117, CORNER[1] + 250)])
HOLED = box(*CORNER, CORNER[0] + 200, CORNER[1] + 200) - box(
    CORNER[0] + 43, CORNER[1] + 43, CORNER[0] + 118, CORNER[1] + 99
)


def uploaded(s3_files: s3fs.S3FileSystem, bucket: str, folder: Path, *tables: gpd.GeoDataFrame) -> str:
    """URL of a GeoPackage with these tables."""
    path = folder / "features.gpkg"
    for number, table in enumerate(tables):
        pyogrio.write_dataframe(table, path, layer=f"t{number}", append=path.exists())
    s3_files.put_file(str(path), f"{bucket}/features.gpkg")
    return f"s3://{bucket}/features.gpkg"


def table(geometry: Sequence[BaseGeometry], crs: Any = 32633, **columns: Sequence[Any]) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=list(geometry), crs=crs)


def ordered(
    client: BatchProcessClient, s3: SeaweedFS, features: str, url: str, script: str = RED, **more: Any
) -> BatchProcessRequest:
    """The request over the features when it has ended."""
    request = client.create(
        process_request(script),
        client.geopackage_input(access(s3, features)) | more,
        client.raster_output(access(s3, url)),
    )
    client.start_job(request)
    return wait_for(client, request)


def raster(s3_files: s3fs.S3FileSystem, key: str) -> tuple[NDArray[Any], Profile]:
    with rasterio.MemoryFile(s3_files.cat_file(key)) as memory, memory.open() as dataset:
        return dataset.read(), dataset.profile


def exact(scenes: Path, profile: Profile, shift: tuple[float, float] = (0, 0)) -> NDArray[Any]:
    """The red value of the newest scene at each pixel's centre of a raster, by pyproj; shifted by source pixels."""
    columns, rows = np.meshgrid(np.arange(profile["width"]) + 0.5, np.arange(profile["height"]) + 0.5)
    there = Transformer.from_crs(profile["crs"], 32633, always_xy=True).transform(
        *profile["transform"] @ (columns, rows)
    )
    with rasterio.open(next(scenes.glob("*20150909*/B04.tif"))) as source:
        column, row = (
            np.floor(axis + by).astype(int) for axis, by in zip(~source.transform @ there, shift, strict=True)
        )
        inside = (column >= 0) & (column < source.width) & (row >= 0) & (row < source.height)
        values = source.read(1)[np.where(inside, row, 0), np.where(inside, column, 0)]
    return np.where(inside, values, 0)


# ---- pixels outside of a geometry ----


@pytest.mark.parametrize("shape", [TRIANGLE, HOLED], ids=["triangle", "with a hole"])
def test_pixels_whose_centre_lies_outside_of_the_geometry_have_no_data(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    tmp_path: Path,
    scenes: Path,
    shape: Polygon,
) -> None:
    features = uploaded(s3_files, bucket, tmp_path, table([shape], identifier=["a"], resolution=[10.0]))
    assert ordered(client, s3, features, f"s3://{bucket}/o/<tileName>.tif", RED_AND_MASK).status.value == "DONE"
    (red, mask), profile = raster(s3_files, f"{bucket}/o/a.tif")
    columns, rows = np.meshgrid(np.arange(profile["width"]) + 0.5, np.arange(profile["height"]) + 0.5)
    inside = shapely.contains_xy(shape, *(profile["transform"] @ (columns, rows)))
    assert 0.4 < inside.mean() < 0.95
    np.testing.assert_array_equal(mask, 10 + inside)
    np.testing.assert_array_equal(red, np.where(inside, exact(scenes, profile), 0))


# ---- sizes ----


def test_defaults_give_the_size_of_features_that_lack_one(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    shapes = [BOX, BOX, BOX]
    columns = {"width": [5, None, None], "height": [4, None, None], "resolution": [None, 20.0, None]}
    features = uploaded(s3_files, bucket, tmp_path, table(shapes, identifier=["own", "resolved", "bare"], **columns))
    ended = ordered(client, s3, features, f"s3://{bucket}/o/<tileName>.tif", defaults={"width": 7, "height": 8})
    assert ended.status.value == "DONE"
    found = {name: raster(s3_files, f"{bucket}/o/{name}.tif")[0].shape[1:] for name in ("own", "resolved", "bare")}
    assert found == {"own": (4, 5), "resolved": (5, 5), "bare": (8, 7)}


@pytest.mark.parametrize(
    ("defaults", "field", "note"),
    [
        ({"width": 10, "height": 10, "resolution": 1.5}, "", "width and height exclude a resolution"),
        ({"width": 10}, "", "width and height go together"),
        ({"width": 3501, "height": 1}, "defaults.width", "less than or equal to 3500"),
        ({"width": 1, "height": 0}, "defaults.height", "greater than or equal to 1"),
        ({"width": 1.5, "height": 1}, "defaults.width", "valid integer"),
        ({"resolution": 0}, "defaults.resolution", "greater than 0"),
        ({"resolution": "10"}, "defaults.resolution", "valid number"),
    ],
)
def test_defaults_that_are_no_size_are_refused_at_creation(
    hub: LocalHub, web: requests.Session, s3: SeaweedFS, defaults: dict[str, Any], field: str, note: str
) -> None:
    payload = body(s3, "any-bucket")
    payload["input"] = {"type": "geopackage", "features": access(s3, "s3://any/grid.gpkg"), "defaults": defaults}
    answer = web.post(f"{hub.base_url}/api/v2/batch/process", json=payload, timeout=10)
    assert answer.status_code == 400
    notes = answer.json()["error"]["errors"]
    assert [note in text for place, text in notes.items() if place.endswith(field)] == [True], notes


# ---- rules ----


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (table([BOX, BOX], identifier=["a", "a"], resolution=[10, 10]), "identifier must be unique over all tables"),
        (table([BOX], crs="ESRI:54009", identifier=["a"], resolution=[10]), "The CRS of every table must be of EPSG"),
        (table([BOX], identifier=["a"], resolution=[0.01]), r"A raster may have 1 to 3500 pixels a side; 't0' feature"),
        (table([BOX], identifier=["a"]), "A feature must have width and height, or a resolution"),
        (table([BOX], identifier=["../a"], resolution=[10]), r"must not hold '/'; 't0' feature 1 \('\.\./a'\)"),
    ],
    ids=["identifier", "crs", "pixels", "size", "path"],
)
def test_a_geopackage_that_breaks_a_rule_ends_the_analysis_with_the_rules_name(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    tmp_path: Path,
    broken: gpd.GeoDataFrame,
    rule: str,
) -> None:
    ended = ordered(client, s3, uploaded(s3_files, bucket, tmp_path, broken), f"s3://{bucket}/o")
    assert ended.status.value == "FAILED"
    with pytest.raises(RuntimeError, match=rule):
        ended.raise_for_status()


def test_a_file_that_is_no_geopackage_ends_the_analysis(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    s3_files.pipe_file(f"{bucket}/features.gpkg", b"no database at all")
    ended = ordered(client, s3, f"s3://{bucket}/features.gpkg", f"s3://{bucket}/o")
    assert (ended.status.value, ended.error) == (
        "FAILED",
        "The GeoPackage features.gpkg cannot be read: file is not a database.",
    )


# ---- <tileId> ----


def test_the_tile_id_of_a_feature_is_its_own_id(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    columns = {"id": [907, 15], "identifier": ["a", "b"], "resolution": [10.0, 10.0]}
    features = uploaded(s3_files, bucket, tmp_path, table([BOX, BOX], **columns))
    assert ordered(client, s3, features, f"s3://{bucket}/o/<tileId>.<format>").status.value == "DONE"
    assert {Path(key).name for key in s3_files.glob(f"{bucket}/o/*.tif")} == {"907.tif", "15.tif"}


def test_features_of_two_tables_with_the_same_id_need_the_tile_name(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    tables = [table([BOX], id=[1], identifier=[name], resolution=[10.0]) for name in "ab"]
    features = uploaded(s3_files, bucket, tmp_path, *tables)
    refused = ordered(client, s3, features, f"s3://{bucket}/o/<tileId>.<format>")
    assert refused.status.value == "FAILED"
    assert refused.error.startswith("Features 'a' and 'b' would both be written to o/1.tif; put <tileName> into")
    assert ordered(client, s3, features, f"s3://{bucket}/o/<tileId>/<tileName>.tif").status.value == "DONE"
    assert s3_files.exists(f"{bucket}/o/1/b.tif")


# ---- the grids in one CRS ----


@pytest.mark.parametrize(
    ("grid", "name", "epsg"),
    [((3, 0.001), "E014N45", 4326), ((6, 100), "100kmE46N25", 3035), ((7, 20), "20kmE466N252", 3035)],
)
def test_tiles_of_the_degree_and_laea_grids_are_delivered_with_the_warped_scene(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    scenes: Path,
    grid: tuple[int, float],
    name: str,
    epsg: int,
) -> None:
    west, south = Transformer.from_crs(32633, 4326, always_xy=True).transform(465_600, 5_079_700)
    request = client.create(
        process_request(RED, bbox=[west, south, west + 0.001, south + 0.001]),
        client.tiling_grid_input(*grid),
        client.raster_output(access(s3, f"s3://{bucket}/o/<tileName>.tif")),
    )
    client.start_job(request)
    assert wait_for(client, request).error is None
    (red,), profile = raster(s3_files, f"{bucket}/o/{name}.tif")
    assert (profile["crs"].to_epsg(), profile["width"], profile["height"]) == (epsg, 1000, 1000)
    assert profile["transform"].a == pytest.approx(grid[1])
    assert np.count_nonzero(red) > 50
    tolerance = 0.15  # of a source pixel: GDAL's transformer may be off by an eighth
    shifts = [(x, y) for x in (-tolerance, 0, tolerance) for y in (-tolerance, 0, tolerance)]
    assert np.any([red == exact(scenes, profile, shift) for shift in shifts], axis=0).all()


def test_every_grid_is_listed_with_its_unit(client: BatchProcessClient) -> None:
    grids = {grid["id"]: grid["properties"] for grid in client.iter_tiling_grids()}
    assert sorted(grids) == [0, 1, 2, 3, 6, 7]
    assert {number: (grid["unit"], grid["singleCrs"]) for number, grid in grids.items()} == {
        **dict.fromkeys((0, 1, 2), ("METRE", False)),
        3: ("DEGREE", True),
        **dict.fromkeys((6, 7), ("METRE", True)),
    }
    assert grids[3].items() >= {"tileWidth": 1.0, "tileHeight": 1.0, "chunkWidth": 500, "chunkHeight": 500}.items()
    assert grids[7].items() >= {"tileWidth": 20000.0, "resolutions": [10, 20], "chunkWidth": 0}.items()


def test_an_unknown_grid_is_answered_with_all_that_there_are(hub: LocalHub, web: requests.Session) -> None:
    answer = web.get(f"{hub.base_url}/api/v2/batch/tilinggrids/4", timeout=10)
    assert answer.status_code == 400
    for known in ("0 (20km grid)", "3 (WGS84 1 degree grid)", "6 (LAEA 100km grid)", "7 (LAEA 20km grid)"):
        assert known in answer.json()["error"]["message"]
