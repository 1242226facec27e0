"""What becomes of files that exist where a raster request delivers: the table of `overwrite` and `skipExisting`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import rasterio
import s3fs
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.seaweed import SeaweedFS
from tests.localhub.batch_requests import RED, access, process_request, wait_for

MINE = b"mine"
Run = Callable[..., BatchProcessRequest]


@pytest.fixture
def run(client: BatchProcessClient, s3: SeaweedFS, bucket: str, six_features: str) -> Run:
    """Runs a request with two outputs for the features f1 and f2, with fields of its output, to its end."""

    def ended(**output: Any) -> BatchProcessRequest:
        process = process_request(RED, [("default", "image/tiff"), ("userdata", "application/json")])
        process["input"]["bounds"] = {
            "bbox": (465410, 5079510, 465590, 5079590),
            "properties": {"crs": "http://www.opengis.net/def/crs/EPSG/0/32633"},
        }
        place = access(s3, f"s3://{bucket}/o/<tileName>/<outputId>.<format>")
        request = client.create(
            process, client.geopackage_input(access(s3, six_features)), client.raster_output(place, **output)
        )
        client.start_job(request)
        return wait_for(client, request)

    return ended


@pytest.fixture
def put(s3_files: s3fs.S3FileSystem, bucket: str) -> Callable[..., None]:
    """Puts files that are not localhub's."""

    def write(*names: str) -> None:
        for name in names:
            s3_files.pipe_file(f"{bucket}/o/{name}", MINE)

    return write


@pytest.fixture
def delivered(s3_files: s3fs.S3FileSystem, bucket: str) -> Callable[[], set[str]]:
    """Names the files that are localhub's results."""

    def is_result(name: str, content: bytes) -> bool:
        if name.endswith(".json"):
            return content != MINE and json.loads(content) == {}
        if content == MINE:
            return False
        with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
            return bool(dataset.shape == (10, 10))

    def names() -> set[str]:
        files = {path.removeprefix(f"{bucket}/o/"): path for path in s3_files.find(f"{bucket}/o/")}
        return {name for name, path in files.items() if "/" in name and is_result(name, s3_files.cat_file(path))}

    return names


EVERY = {"f1/default.tif", "f1/userdata.json", "f2/default.tif", "f2/userdata.json"}
ONE = ("f1/default.tif",)
BOTH = ("f1/default.tif", "f1/userdata.json")


def test_without_both_one_existing_file_fails_the_request(run: Run, put: Any, delivered: Any, bucket: str) -> None:
    put("f2/userdata.json")
    failed = run()
    assert (failed.status.value, failed.cost_PU or 0) == ("FAILED", 0)
    assert failed.error.startswith(f"File s3://{bucket}/o/f2/userdata.json exists already; allow overwrite")
    assert delivered() == set()


@pytest.mark.parametrize("files", [ONE, BOTH])
def test_overwrite_writes_all_files_again(run: Run, put: Any, delivered: Any, files: tuple[str, ...]) -> None:
    put(*files)
    assert run(overwrite=True).status.value == "DONE"
    assert delivered() == EVERY


@pytest.mark.parametrize("overwrite", [True, False])
def test_skip_existing_leaves_features_alone_that_have_all_files(
    run: Run, put: Any, delivered: Any, overwrite: bool
) -> None:
    put(*BOTH)
    assert run(overwrite=overwrite, skip_existing=True).status.value == "DONE"
    assert delivered() == EVERY - set(BOTH)


def test_skip_existing_with_overwrite_writes_a_feature_again_that_lacks_a_file(
    run: Run, put: Any, delivered: Any
) -> None:
    put(*ONE)
    assert run(overwrite=True, skip_existing=True).status.value == "DONE"
    assert delivered() == EVERY


def test_skip_existing_without_overwrite_fails_the_request_when_a_feature_lacks_a_file(
    run: Run, put: Any, delivered: Any, bucket: str
) -> None:
    put(*ONE)
    failed = run(skip_existing=True)
    assert failed.status.value == "FAILED"
    assert failed.error.startswith(f"File s3://{bucket}/o/f1/default.tif exists already; allow overwrite")
    assert delivered() == set()


def test_a_request_whose_files_all_exist_is_done_without_cost(run: Run, put: Any, delivered: Any) -> None:
    put(*EVERY)
    done = run(skip_existing=True)
    assert (done.status.value, done.completion_percentage, done.cost_PU or 0) == ("DONE", 100, 0)
    assert delivered() == set()
