from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import s3fs
from numpy.typing import NDArray
from rasterio.windows import Window

from localhub.archive import Archive, ArchiveSource
from localhub.errors import RequestFailed
from localhub.faults import TileFault
from localhub.objectstore import Access, Bucket
from localhub.payload import Data, parse_create_request
from localhub.render import Selection, read_samples
from localhub.results import kept, upload
from localhub.seaweed import SeaweedFS
from localhub.worker import FaultOnDemand, FeatureTask, Outcome, process_feature
from tasks.grid import Tile
from tests.localhub.batch_requests import RED, access, process_request
from tests.localhub.made_scenes import write_scene

TILE = Tile("t", 32633, (465000.0, 5079000.0, 465400.0, 5079300.0), 40, 30)
WHOLE = Window(0, 0, 40, 30)


@pytest.fixture
def values() -> NDArray[np.uint16]:
    """Four scenes with holes: (scene, row, column)."""
    random = np.random.default_rng(3)
    return (random.integers(1, 9999, (4, 30, 40)) * (random.random((4, 30, 40)) < 0.5)).astype(np.uint16)


@pytest.fixture
def archive(tmp_path: Path, values: NDArray[np.uint16]) -> Archive:
    for number, scene in enumerate(values):
        write_scene(tmp_path, f"s{number}", {"B02": scene}, TILE)
    return Archive.open(tmp_path)


def all_of(archive: Archive) -> Selection:
    """Every scene of the archive's one collection."""
    return Selection(Data(type="sentinel-2-l1c"), archive.scenes)


def mosaic(values: NDArray[np.uint16], members: tuple[int, ...]) -> NDArray[Any]:
    """The first scene with data, pixel by pixel."""
    result = np.zeros((30, 40), int)
    for row, column in np.ndindex(30, 40):
        seen = [values[index, row, column] for index in members if values[index, row, column]]
        result[row, column] = seen[0] if seen else 0
    return result


def test_each_pixel_of_a_sample_is_the_first_scenes_that_has_data(archive: Archive, values: NDArray[np.uint16]) -> None:
    samples = ((0,), (3, 1), (2, 0, 1))
    read = read_samples(all_of(archive), samples, {"B02": 1, "dataMask": 1}, TILE, WHOLE)
    expected = np.stack([mosaic(values, members) for members in samples])
    np.testing.assert_array_equal(read["B02"], expected)
    np.testing.assert_array_equal(read["dataMask"], expected != 0)


def test_blocks_of_rows_make_up_the_whole(archive: Archive) -> None:
    samples = ((1, 0), (2,))
    whole = read_samples(all_of(archive), samples, {"B02": 1}, TILE, WHOLE)["B02"]
    blocks = [
        read_samples(all_of(archive), samples, {"B02": 1}, TILE, Window(0, first, 40, last - first))["B02"]
        for first, last in pairwise((0, 7, 20, 30))
    ]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_no_sample_gives_arrays_without_samples(archive: Archive) -> None:
    assert read_samples(all_of(archive), (), {"B02": 1}, TILE, WHOLE)["B02"].shape == (0, 30, 40)


def feature_task(archive: Archive, s3: SeaweedFS, bucket: str, scratch: Path, year: int, **fields: Any) -> FeatureTask:
    """A task over the archive's one band, for a year."""
    scratch.mkdir()
    period = {"from": f"{year}-01-01T00:00:00Z", "to": f"{year}-12-31T23:59:59Z"}
    payload = {
        "processRequest": process_request(
            RED.replace("B04", "B02"), [("default", "image/tiff"), ("userdata", "application/json")], timeRange=period
        ),
        "input": {"type": "geopackage", "features": access(s3, f"s3://{bucket}/grid.gpkg")},
        "output": {"type": "raster", "delivery": access(s3, f"s3://{bucket}/<tileName>/<outputId>.<format>")},
    }
    task = FeatureTask(
        job_id="job",
        request=parse_create_request(payload),
        access=Access(s3.endpoint_url, s3.access_key, s3.secret_key),
        tile=TILE,
        begun=False,
        archive=ArchiveSource(archive.place),
        cog_block_px=1024,
        scratch=scratch,
        block_bytes=1,
        deliver_zeros=True,
        kept=scratch.with_name("kept"),
    )
    return replace(task, **fields)


def read_delivered(s3_files: s3fs.S3FileSystem, bucket: str) -> NDArray[Any]:
    with rasterio.MemoryFile(s3_files.cat_file(f"{bucket}/t/default.tif")) as memory, memory.open() as dataset:
        values: NDArray[Any] = dataset.read(1)
        return values


def test_a_feature_is_evaluated_row_by_row_when_memory_is_short_and_leaves_no_scratch(
    archive: Archive,
    values: NDArray[np.uint16],
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    tmp_path: Path,
) -> None:
    task = feature_task(archive, s3, bucket, tmp_path / "scratch", 2020)
    outcome = process_feature(task)
    assert (outcome.error, outcome.delivered) == (None, True)
    assert outcome.cost_pu == pytest.approx(0.01 / 3)
    np.testing.assert_array_equal(read_delivered(s3_files, bucket), mosaic(values, (0, 1, 2, 3)))
    assert not list(task.scratch.iterdir())
    with pytest.raises(RequestFailed, match=f"File s3://{bucket}/t/default.tif exists already"):
        process_feature(task)
    assert process_feature(replace(task, begun=True)) == outcome


@pytest.mark.parametrize("zeros", [True, False])
def test_a_feature_without_scenes_delivers_zeros_or_nothing(
    archive: Archive, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path, zeros: bool
) -> None:
    task = feature_task(archive, s3, bucket, tmp_path / "scratch", 2019, deliver_zeros=zeros)
    assert process_feature(task) == Outcome("No data", delivered=zeros, cost_pu=0.0)
    if zeros:
        assert not read_delivered(s3_files, bucket).any()
        assert s3_files.cat_file(f"{bucket}/t/userdata.json") == b"{}"
    else:
        assert s3_files.find(bucket) == []


def test_a_fault_of_one_output_leaves_the_others_whole(
    archive: Archive, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    good = feature_task(archive, s3, bucket, tmp_path / "scratch", 2020)
    sound = process_feature(good)
    whole = {name: s3_files.cat_file(f"{bucket}/t/{name}") for name in ("default.tif", "userdata.json")}
    s3_files.rm(f"{bucket}/t", recursive=True)

    broken = (TileFault(kind="truncated", output="def*"), TileFault(kind="missing", output="user*"))
    assert process_feature(replace(good, faults=broken)) == sound
    assert s3_files.cat_file(f"{bucket}/t/default.tif") == whole["default.tif"][: len(whole["default.tif"]) // 2]
    assert not s3_files.exists(f"{bucket}/t/userdata.json")


@pytest.mark.parametrize("seconds", [7.0, None])
def test_files_of_a_late_tile_are_kept_whole_and_those_of_one_that_never_comes_are_not(
    archive: Archive,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    tmp_path: Path,
    values: NDArray[np.uint16],
    seconds: float | None,
) -> None:
    late = (TileFault(kind="undelivered", seconds=seconds),)
    task = feature_task(archive, s3, bucket, tmp_path / "scratch", 2020, faults=late)
    for _ in range(2):  # again, as after a crash
        outcome = process_feature(task)
        assert (outcome.error, outcome.delivered, outcome.late_seconds) == (None, False, seconds)
        assert s3_files.find(bucket) == []
        assert not list(task.scratch.iterdir())
    assert outcome.cost_pu > 0
    assert task.kept.exists() == (seconds is not None)
    if seconds is not None:
        upload(kept(task.kept), Bucket(bucket, task.access))
        np.testing.assert_array_equal(read_delivered(s3_files, bucket), mosaic(values, (0, 1, 2, 3)))
        assert s3_files.cat_file(f"{bucket}/t/userdata.json") == b"{}"


@pytest.mark.parametrize(("times", "tries", "fails"), [(None, 99, True), (2, 0, True), (2, 1, True), (2, 2, False)])
def test_a_fatal_fault_fails_so_many_tries(
    archive: Archive, s3: SeaweedFS, bucket: str, tmp_path: Path, times: int | None, tries: int, fails: bool
) -> None:
    fatal = (TileFault(kind="fatal", times=times),)
    task = feature_task(archive, s3, bucket, tmp_path / "scratch", 2019, faults=fatal, tries=tries)
    if fails:
        with pytest.raises(FaultOnDemand, match="Tile t fails on demand"):
            process_feature(task)
    else:
        assert process_feature(task).error == "No data"
