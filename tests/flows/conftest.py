"""A localhub over a small synthetic archive, and parameters of the flow that use it."""

from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from pydantic import SecretStr

from flows.parameters import LandCover
from localhub.sample import SampleInfo, build_sample
from localhub.sample.landscape import Extent
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings

EXTENT = Extent(560000, 5142000, 4800)
"""West, north and size of the small archive, metres in EPSG:32633."""
TILE_PIXELS, RESOLUTION_M = 60, 20.0


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> SampleInfo:
    """A synthetic archive of 4.8 km with twelve acquisitions."""
    return build_sample(tmp_path_factory.mktemp("sample") / "archive", extent=EXTENT, count=12)


@pytest.fixture(scope="session")
def four_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoPackage with tiles t0 to t3, 60 x 60 pixels of 20 m, in a square."""
    size = TILE_PIXELS * RESOLUTION_M
    corners = [(EXTENT.west + 1000 + size * i, EXTENT.north - 1000 - size * j) for j in range(2) for i in range(2)]
    boxes = [shapely.box(x, y - size, x + size, y) for x, y in corners]
    path = tmp_path_factory.mktemp("tiles") / "tiles.gpkg"
    columns = {"id": range(4), "identifier": [f"t{number}" for number in range(4)], "resolution": [RESOLUTION_M] * 4}
    gpd.GeoDataFrame(columns, geometry=boxes, crs=32633).to_file(path, layer="tiles", engine="pyogrio")
    return path


@pytest.fixture(scope="session")
def small_hub(s3: SeaweedFS, small_sample: SampleInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub over the small archive, whose jobs of earlier tests stay."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("localhub"),
        archive=small_sample.folder,
        port=0,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
        upload_seconds=0.1,
    )
    with LocalHub(settings) as hub:
        yield hub


@pytest.fixture
def keys(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 keys in the environment, as AWS's chain has them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


@pytest.fixture
def parameters(
    keys: None,  # noqa: ARG001 - needed in the environment
    s3: SeaweedFS,
    bucket: str,
    small_hub: LocalHub,
    small_sample: SampleInfo,
    four_tiles: Path,
    tmp_path: Path,
) -> LandCover:
    """Four small tiles, five dates, labels, no quick-looks; everything in the test's own bucket and folder."""
    return LandCover.model_validate(
        {
            "area": {"name": "Small"},
            "period": {"start": "2019-01-01", "end": "2019-03-10", "step_days": 15},
            "tiling": {"geopackage": str(four_tiles)},
            "service": {"base_url": small_hub.base_url},
            "storage": {
                "tiles_url": f"s3://{bucket}/tiles",
                "destination": str(tmp_path / "eopatches"),
                "endpoint_url": s3.endpoint_url,
            },
            "reference": {"file": str(small_sample.reference)},
            "run": {"quicklooks": 0, "patience_minutes": 0.2},
        }
    )


@pytest.fixture
def pictured(parameters: LandCover) -> LandCover:
    """The same with a quick-look, which takes as long to draw as a tile to convert."""
    return parameters.model_copy(update={"run": parameters.run.model_copy(update={"quicklooks": 1})})
