"""The flow over real Sentinel-2 scenes and real land-use polygons, against NumPy and eo-learn's own raster."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from eolearn.core import EOPatch
from numpy.typing import NDArray
from pydantic import SecretStr
from s3fs import S3FileSystem

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.parameters import LandCover
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings

CLOUDY = ("20150731", "20150820")
START, STEP_DAYS, COUNT = datetime(2015, 7, 1, tzinfo=UTC), 10, 10
HALF_STEP = 0.5e-4 + 1e-6
"""Half of the encoding's step of 0.0001, and float32's rounding."""


@pytest.fixture(scope="module")
def summary(
    prefect_server: None,  # noqa: ARG001 - needed to run
    test_data: Path,
    s3: SeaweedFS,
    tmp_path_factory: pytest.TempPathFactory,
) -> Summary:
    """One run over the real archive."""
    folder = tmp_path_factory.mktemp("real")
    settings = Settings(
        data_dir=folder / "localhub",
        archive=test_data / "s2-slovenia-2015",
        port=0,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
    )
    with pytest.MonkeyPatch.context() as environment, LocalHub(settings) as hub:
        environment.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        make_bucket(s3, "real-input")
        parameters = LandCover.model_validate(
            {
                "area": {"name": "Real"},
                "period": {"start": "2015-07-01", "end": "2015-09-30", "step_days": STEP_DAYS},
                "tiling": {"geopackage": str(scene_grid(test_data, folder))},
                "reference": {"file": str(test_data / "reference/slovenia-land-use.gpkg")},
                "service": {"base_url": hub.base_url},
                "storage": {
                    "tiles_url": "s3://real-input/tiles",
                    "destination": str(folder / "eopatches"),
                    "endpoint_url": s3.endpoint_url,
                },
            }
        )
        found = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields})
    assert isinstance(found, Summary)
    return found


@pytest.fixture(scope="module")
def patch(summary: Summary) -> EOPatch:
    return EOPatch.load(f"{summary.folder}/eopatches/eopatch_scene")


@pytest.fixture(scope="module")
def expected(test_data: Path) -> dict[str, NDArray[np.float64]]:
    """Digital numbers of each band interpolated by numpy.interp, (time, height, width)."""
    scenes = sorted((test_data / "s2-slovenia-2015").iterdir())
    days = np.array([(scene_time(scene) - START).days for scene in scenes])
    wanted = np.arange(COUNT) * STEP_DAYS
    clear = np.array([(read(scene, "CLM") == 0) & (read(scene, "dataMask") == 1) for scene in scenes])
    return {
        band: interpolated(days, np.array([read(scene, band) for scene in scenes]), clear, wanted)
        for band in ("B02", "B03", "B04", "B08", "B11", "B12")
    }


def test_the_patch_has_the_scenes_shape_dates_and_place(patch: EOPatch, test_data: Path):
    assert patch.data["BANDS"].shape == (COUNT, 101, 100, 6)
    assert patch.timestamps == [(START + timedelta(days=STEP_DAYS * k)).replace(tzinfo=None) for k in range(COUNT)]
    with rasterio.open(next((test_data / "s2-slovenia-2015").glob("*/B02.tif"))) as scene:
        np.testing.assert_allclose(tuple(patch.bbox), tuple(scene.bounds), rtol=0, atol=1e-6)


def test_cloudy_scenes_contribute_nothing(patch: EOPatch, test_data: Path):
    scenes = sorted((test_data / "s2-slovenia-2015").iterdir())
    for scene in scenes:
        if any(day in scene.name for day in CLOUDY):
            assert np.all(read(scene, "CLM") == 1)
    clear = sum(
        (read(scene, "CLM") == 0).astype(int) for scene in scenes if not any(day in scene.name for day in CLOUDY)
    )
    np.testing.assert_array_equal(patch.mask_timeless["VALID_COUNT"][..., 0], clear)
    assert patch.mask_timeless["VALID_COUNT"].max() == 3


def test_bands_equal_an_independent_computation(patch: EOPatch, expected: dict[str, NDArray[np.float64]]):
    for number, band in enumerate(expected):
        np.testing.assert_allclose(patch.data["BANDS"][..., number], expected[band] / 10000, rtol=0, atol=HALF_STEP)


def test_ndvi_equals_an_independent_computation(patch: EOPatch, expected: dict[str, NDArray[np.float64]]):
    ndvi = (expected["B08"] - expected["B04"]) / (expected["B08"] + expected["B04"])
    np.testing.assert_allclose(patch.data["NDVI"][..., 0], ndvi, rtol=0, atol=HALF_STEP)


def test_quality_says_where_values_are_held(patch: EOPatch):
    # clear acquisitions: 07-11, 08-30 and 09-09; output dates: 07-01, 07-11, …, 09-29
    quality = patch.mask["QUALITY"][..., 0]
    assert [int(value) for value in np.median(quality, axis=(1, 2))] == [2, 1, 1, 1, 1, 1, 1, 1, 2, 2]


def test_labels_equal_eolearns_own_raster_in_every_pixel(patch: EOPatch, test_data: Path):
    with rasterio.open(test_data / "reference/slovenia-land-use-rasterised.tif") as raster:
        np.testing.assert_array_equal(patch.mask_timeless["LULC"][..., 0], raster.read(1))
    assert len(patch.vector_timeless["LULC_REFERENCE"]) == 88


def interpolated(
    days: NDArray[Any], values: NDArray[Any], clear: NDArray[np.bool_], wanted: NDArray[Any]
) -> NDArray[np.float64]:
    """numpy.interp of the clear samples of each pixel: (scene, row, column) becomes (time, row, column)."""
    _, height, width = values.shape
    result = np.empty((len(wanted), height, width))
    for row, column in np.ndindex(height, width):
        use = clear[:, row, column]
        result[:, row, column] = np.interp(wanted, days[use], values[use, row, column])
    return result


def read(scene: Path, band: str) -> NDArray[Any]:
    with rasterio.open(scene / f"{band}.tif") as dataset:
        return np.asarray(dataset.read(1))


def scene_time(scene: Path) -> datetime:
    return datetime.strptime(scene.name.rsplit("_", 1)[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def scene_grid(test_data: Path, folder: Path) -> Path:
    """A GeoPackage whose one tile is the scenes' own grid of 101 rows and 100 columns."""
    with rasterio.open(next((test_data / "s2-slovenia-2015").glob("*/B02.tif"))) as scene:
        columns = {"id": [1], "identifier": ["scene"], "width": [scene.width], "height": [scene.height]}
        table = gpd.GeoDataFrame(columns, geometry=[shapely.box(*scene.bounds)], crs=scene.crs)
    table.to_file(folder / "scene.gpkg", layer="scene", engine="pyogrio")
    return folder / "scene.gpkg"


def make_bucket(s3: SeaweedFS, name: str) -> None:
    S3FileSystem(key=s3.access_key, secret=s3.secret_key, client_kwargs={"endpoint_url": s3.endpoint_url}).mkdir(name)
