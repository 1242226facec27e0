"""Fixtures of the stages that talk to Sentinel Hub: a localhub over the real scenes, and small tiles within them."""

from pathlib import Path

import geopandas as gpd
import pytest
import shapely

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks import service as tasks_service
from tasks.evalscript import Imagery, Script, load_script
from tasks.plan import Period
from tasks.service import Service
from tasks.storage import Storage

RED = """//VERSION=3
function setup() {
  return {input: [{bands: ["B04"], units: "DN"}], output: {id: "red", bands: 1, sampleType: "UINT16"}};
}
function evaluatePixel(sample) { return [sample.B04]; }
"""
"""The red band of the newest scene, as stored."""
SUMMER = Period.model_validate({"start": "2015-07-01", "end": "2015-09-30"})


@pytest.fixture
def storage(s3: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A bucket for tiles, whose keys are in the environment; the service's client is the stand-in's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.delenv("SH_CLIENT_ID", raising=False)
    monkeypatch.delenv("SH_CLIENT_SECRET", raising=False)
    return Storage(tiles_url=f"s3://{bucket}/tiles", endpoint_url=s3.endpoint_url)


@pytest.fixture
def service(hub: LocalHub) -> Service:
    """The running localhub."""
    tasks_service._sessions.clear()
    return Service(base_url=hub.base_url)


@pytest.fixture
def red(tmp_path: Path) -> Script:
    """A script that is evaluated in no time."""
    path = tmp_path / "red.js"
    path.write_text(RED)
    return load_script(Imagery(evalscript=str(path)), SUMMER.start, SUMMER.end, SUMMER.step_days)


@pytest.fixture
def small_tiles(tmp_path: Path) -> Path:
    """A GeoPackage with three tiles of 10 x 10 pixels within the scenes, and one far away from them."""
    boxes = [shapely.box(465300 + 100 * i, 5079500, 465400 + 100 * i, 5079600) for i in range(3)]
    boxes.append(shapely.box(700000, 5079500, 700100, 5079600))
    columns = {"id": range(4), "identifier": ["a", "b", "c", "far"], "resolution": [10.0] * 4}
    path = tmp_path / "tiles.gpkg"
    gpd.GeoDataFrame(columns, geometry=boxes, crs=32633).to_file(path, layer="tiles", engine="pyogrio")
    return path
