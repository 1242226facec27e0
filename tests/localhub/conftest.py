"""Fixtures of the service's tests: clients of a running localhub, and tiles within the real scenes."""

from pathlib import Path

import geopandas as gpd
import pytest
import rasterio
import requests
import s3fs
import shapely
from rasterio.profiles import Profile
from rasterio.transform import array_bounds
from sentinelhub import BatchProcessClient

from localhub.server import LocalHub
from tests.localhub.batch_requests import client_of, session_of


@pytest.fixture
def client(hub: LocalHub) -> BatchProcessClient:
    """The vendor's own client of the running localhub."""
    return client_of(hub)


@pytest.fixture
def web(hub: LocalHub) -> requests.Session:
    """A bare HTTP session with a valid token."""
    return session_of(hub)


@pytest.fixture(scope="session")
def scene_profile(scenes: Path) -> Profile:
    """Profile of the real scenes' grid: 101 rows, 100 columns."""
    with rasterio.open(next(scenes.glob("*/B02.tif"))) as dataset:
        return dataset.profile


@pytest.fixture
def whole_scene(s3_files: s3fs.S3FileSystem, bucket: str, scene_profile: Profile, tmp_path: Path) -> str:
    """URL of a GeoPackage whose one feature is the scenes' own grid."""
    transform, width, height = (scene_profile[name] for name in ("transform", "width", "height"))
    west, south, east, north = array_bounds(height, width, transform)
    table = gpd.GeoDataFrame(
        {"id": [1], "identifier": ["whole"], "width": [width], "height": [height]},
        geometry=[shapely.box(west, south, east, north)],
        crs="EPSG:32633",
    )
    return upload_grid(table, s3_files, bucket, tmp_path)


@pytest.fixture
def six_features(s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path) -> str:
    """URL of a GeoPackage with the features f0 to f5, of 10 x 10 pixels each, in a row within the scenes."""
    boxes = [shapely.box(465300 + 100 * i, 5079500, 465400 + 100 * i, 5079600) for i in range(6)]
    names = [f"f{number}" for number in range(6)]
    columns = {"id": range(6), "identifier": names, "resolution": [10.0] * 6}
    return upload_grid(gpd.GeoDataFrame(columns, geometry=boxes, crs="EPSG:32633"), s3_files, bucket, tmp_path)


def upload_grid(table: gpd.GeoDataFrame, s3_files: s3fs.S3FileSystem, bucket: str, folder: Path) -> str:
    """Write a table as a GeoPackage into the bucket and return its URL."""
    path = folder / "grid.gpkg"
    table.to_file(path, layer="Grid EPSG:32633", driver="GPKG", engine="pyogrio")
    s3_files.put_file(str(path), f"{bucket}/grid.gpkg")
    return f"s3://{bucket}/grid.gpkg"
