"""A worker's memory is bounded by a block of rows, however high the tile is, and a script still sees one context."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from localhub.archive import ArchiveSource
from localhub.faults import TileFault
from localhub.objectstore import Access
from localhub.payload import parse_create_request
from localhub.pool import WorkerPool
from localhub.results import kept
from localhub.worker import FeatureTask, process_feature
from tasks.grid import Tile
from tests.localhub.batch_requests import process_request
from tests.localhub.made_scenes import grid, write_scene

WIDTH = 500
HEIGHTS = (280, 2000)
SCENES = 30
SCRIPT = """//VERSION=3
let pixels = 0, highest = 0, inOrder = true;
function setup() {
  const output = {id: "default", bands: 6, sampleType: "FLOAT32"};
  return {input: [{bands: ["B02", "B03"], units: "DN"}], output, mosaicking: "ORBIT"};
}
function evaluatePixel(samples) {
  inOrder = inOrder && samples[0].B02 === pixels++ % 60000 + 1;
  highest = Math.max(highest, samples[0].B03);
  return samples.slice(0, 6).map((sample) => sample.B02);
}
function updateOutputMetadata(scenes, input, output) { output.userData = {pixels, highest, inOrder}; }
"""
"""What comes from the whole tile: the number of its pixels, the highest value, and whether they came row by row."""


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of scenes over the same two files; B02 counts the pixels, B03 has its maximum in the last row."""
    folder = tmp_path_factory.mktemp("tall")
    counted = np.arange(WIDTH * HEIGHTS[1]) % 60000 + 1
    height = np.linspace(1, 9999, WIDTH * HEIGHTS[1])
    bands = {name: values.astype("uint16").reshape(-1, WIDTH) for name, values in (("B02", counted), ("B03", height))}
    write_scene(folder, "s", bands, tile_of(HEIGHTS[1]))
    item = json.loads((folder / "s.json").read_text())
    (folder / "s.json").unlink()
    for number in range(SCENES):
        item |= {"id": f"s{number}", "properties": {"datetime": f"2020-06-{number + 1:02}T10:00:00Z"}}
        (folder / f"s{number}.json").write_text(json.dumps(item))
    return folder


def tile_of(height: int) -> Tile:
    return grid(32633, 465000, 5099000, 10, WIDTH, height)


def task_of(archive: Path, scratch: Path, height: int) -> FeatureTask:
    """A tile that stays in a folder: its delivery is put off."""
    place = {"s3": {"url": "s3://bucket/<tileName>/<outputId>.<format>", "accessKey": "key", "secretAccessKey": "key"}}
    outputs = [("default", "image/tiff"), ("userdata", "application/json")]
    payload: dict[str, Any] = {
        "processRequest": process_request(SCRIPT, outputs, timeRange=_YEAR),
        "input": {"type": "geopackage", "features": {"s3": {**place["s3"], "url": "s3://bucket/grid.gpkg"}}},
        "output": {"type": "raster", "delivery": place, "cogOutput": True},
    }
    return FeatureTask(
        job_id="job",
        request=parse_create_request(payload),
        access=Access(None, "key", "key"),
        tile=tile_of(height),
        begun=True,
        archive=ArchiveSource(archive),
        cog_block_px=256,
        scratch=scratch,
        block_bytes=16 * 2**20,
        deliver_zeros=False,
        kept=scratch / f"kept-{height}",
        faults=(TileFault(kind="undelivered", seconds=1),),
    )


def files_of(scratch: Path, height: int) -> dict[str, Path]:
    return {file.output: file.path for file in kept(scratch / f"kept-{height}")}


_YEAR = {"from": "2020-01-01T00:00:00Z", "to": "2020-12-31T23:59:59Z"}


def peak_bytes_of(task: FeatureTask) -> int:
    """Process a tile in this worker and return the most memory that it has had so far."""
    process_feature(task)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_height_and_one_context_sees_every_pixel_in_order(
    tall: Path, tmp_path: Path
) -> None:
    pool = WorkerPool(1)
    try:
        low, high = (pool.submit(peak_bytes_of, task_of(tall, tmp_path, height)).result(120) for height in HEIGHTS)
    finally:
        pool.close()
    whole_tile = WIDTH * (HEIGHTS[1] - HEIGHTS[0]) * SCENES * 2 * 2
    assert high - low < whole_tile / 2
    for height in HEIGHTS:
        user_data = files_of(tmp_path, height)["userdata"]
        top = int(np.linspace(1, 9999, WIDTH * HEIGHTS[1])[WIDTH * height - 1])
        assert json.loads(user_data.read_text()) == {"pixels": WIDTH * height, "highest": top, "inOrder": True}
    with rasterio.open(files_of(tmp_path, HEIGHTS[1])["default"]) as dataset:
        counted = (np.arange(WIDTH * HEIGHTS[1]) % 60000 + 1).reshape(-1, WIDTH)
        np.testing.assert_array_equal(dataset.read(6), counted)
