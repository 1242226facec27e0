"""What a crash or a failing disk leaves is never taken for an EOPatch."""

import gzip
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import numpy as np
import pytest
import s3fs
from eolearn.core import EOPatch, FeatureType
from eolearn.core.constants import OverwritePermission
from fsspec import AbstractFileSystem
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from prefect.states import Failed
from s3fs.errors import translate_boto_error
from sentinelhub import CRS, BBox

from localhub.seaweed import SeaweedFS
from tasks.arrayfiles import FileFormat
from tasks.eopatches import (
    add_features,
    check_marker,
    file_identity,
    marker_path,
    network_failed,
    new_patch,
    save_features,
)
from tasks.errors import TileError

FILES = LocalFileSystem()
ROOT = Path(__file__).parents[2]

WRITE = """
import json, resource, sys
import fsspec
import numpy as np
from eolearn.core import EOPatch
from sentinelhub import CRS, BBox
from tasks.eopatches import new_patch, save_features
folder, limit, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
patch = EOPatch(bbox=BBox((0, 0, 1, 1), CRS(32633)), timestamps=["2019-01-01"] * 3000)
patch.data["X"] = np.random.default_rng(0).random((3000, 4, 4, 1))
patch.meta_info["DONE"] = {}
print("writing", flush=True)
with new_patch(fsspec.filesystem(**options), folder, "DONE") as new:
    save_features(patch, new.folder, "zarr")
"""
"""Writes an EOPatch of 3000 files; arguments: folder, largest file in bytes or 0, file system."""


@contextmanager
def _writer(folder: str, limit: int = 0, s3: SeaweedFS | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun to write; its end is awaited."""
    options: dict[str, Any] = {"protocol": "file"}
    if s3 is not None:
        client = {"endpoint_url": s3.endpoint_url}
        options = {"protocol": "s3", "key": s3.access_key, "secret": s3.secret_key, "client_kwargs": client}
    command = [sys.executable, "-W", "ignore", "-c", WRITE, folder, str(limit), json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_patch(patch: EOPatch, files: AbstractFileSystem, folder: str, marker: str, file_format: FileFormat) -> None:
    with new_patch(files, folder, marker) as new:
        save_features(patch, new.folder, file_format)


def small_patch(value: float = 1.0) -> EOPatch:
    patch = EOPatch(bbox=BBox((0, 0, 1, 1), CRS(32633)), timestamps=["2019-01-01"])
    patch.data["X"] = np.full((1, 2, 2, 1), value)
    patch.meta_info["DONE"] = {"value": value}
    return patch


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "eopatches" / "eopatch_x")


def test_a_process_that_is_killed_while_writing_leaves_no_patch_and_the_next_one_cleans_up(folder: str) -> None:
    run = Path(folder).parents[1]
    with _writer(folder) as process:
        _wait_until(lambda: len(list(run.rglob("*"))) > 100)
        process.kill()

    assert not Path(folder).exists()
    assert len(list(run.iterdir())) == 1

    write_patch(small_patch(), FILES, folder, "DONE", "npy.gz")

    assert check_marker(FILES, folder, "DONE", {"value": 1.0})
    assert [path.name for path in run.iterdir()] == ["eopatches"]


def test_a_disk_that_takes_no_more_leaves_the_old_patch_as_it_was(folder: str) -> None:
    write_patch(small_patch(), FILES, folder, "DONE", "npy.gz")

    with _writer(folder, limit=100) as process:
        _, errors = process.communicate(timeout=60)

    assert "File too large" in errors
    assert EOPatch.load(folder).data["X"].shape == (1, 2, 2, 1)
    assert check_marker(FILES, folder, "DONE", {"value": 1.0})
    assert [path.name for path in Path(folder).parents[1].iterdir()] == ["eopatches"]


def test_a_bucket_that_does_not_exist_fails_the_write(s3_files: s3fs.S3FileSystem) -> None:
    with pytest.raises(OSError, match="bucket"):
        write_patch(small_patch(), s3_files, "no-such-bucket-here/eopatch_x", "DONE", "npy.gz")


def test_a_process_that_is_killed_while_uploading_leaves_no_marker(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    folder = f"{bucket}/eopatches/eopatch_x"
    write_patch(small_patch(), s3_files, folder, "DONE", "npy.gz")

    with _writer(folder, s3=s3) as process:
        _wait_until(lambda: not s3_files.exists(marker_path(folder, "DONE")))
        process.kill()
    assert not check_marker(s3_files, folder, "DONE", {})

    write_patch(small_patch(2.0), s3_files, folder, "DONE", "npy.gz")
    assert check_marker(s3_files, folder, "DONE", {"value": 2.0})


def test_features_are_added_after_their_old_marker_is_gone(folder: str) -> None:
    write_patch(small_patch(), FILES, folder, "DONE", "zarr")
    added = EOPatch(bbox=BBox((0, 0, 1, 1), CRS(32633)))
    added.mask_timeless["M"] = np.ones((2, 2, 1), np.uint8)
    added.meta_info["ADDED"] = {"round": 1}
    add_features(added, FILES, folder, "ADDED", "zarr")
    added.mask_timeless["M"] = np.zeros((2, 2, 1), np.uint8)
    added.meta_info["ADDED"] = {"round": 2}

    add_features(added, FILES, folder, "ADDED", "npy.gz")

    patch = EOPatch.load(folder)
    assert not patch.mask_timeless["M"].any()
    assert patch.timestamps == small_patch().timestamps
    assert check_marker(FILES, folder, "ADDED", {"round": 2})
    assert check_marker(FILES, folder, "DONE", {"value": 1.0})
    assert [path.name for path in (Path(folder) / "mask_timeless").iterdir()] == ["M.npy.gz"]


def test_a_file_is_identified_by_size_and_version(tmp_path: Path, s3_files: s3fs.S3FileSystem, bucket: str) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    s3_files.pipe_file(f"{bucket}/file", b"abc")

    assert file_identity(FILES, str(tmp_path / "file")) == {
        "size": 3,
        "version": str((tmp_path / "file").stat().st_mtime),
    }
    assert file_identity(s3_files, f"{bucket}/file") == {"size": 3, "version": "900150983cd24fb0d6963f7d28e17f72"}
    with pytest.raises(FileNotFoundError):
        file_identity(s3_files, f"{bucket}/nothing")


def s3_error(code: str) -> BaseException:
    error = botocore.exceptions.ClientError({"Error": {"Code": code, "Message": ""}}, "PutObject")
    translated: BaseException = translate_boto_error(error)
    return translated


@pytest.mark.parametrize(
    ("error", "repeat"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FSTimeoutError(), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3"), True),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://s3"), True),
        (botocore.exceptions.IncompleteReadError(actual_bytes=3, expected_bytes=9), True),
        (aiohttp.ClientPayloadError("Response payload is not completed"), True),
        (s3_error("SlowDown"), True),
        (s3_error("InternalError"), True),
        (s3_error("ServiceUnavailable"), True),
        (s3_error("NoSuchBucket"), False),
        (s3_error("AccessDenied"), False),
        (OSError(28, "No space left on device"), False),
        (PermissionError(), False),
        (TileError("corrupt"), False),
        (ValueError(), False),
    ],
)
def test_only_what_the_network_or_the_object_store_did_is_repeated(error: Exception, repeat: bool) -> None:
    assert network_failed(None, None, Failed(data=error)) is repeat


@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_a_file_that_was_truncated_or_lost_after_the_commit_is_noticed(folder: str, file_format: FileFormat) -> None:
    write_patch(small_patch(), FILES, folder, "DONE", file_format)
    assert check_marker(FILES, folder, "DONE", {})
    sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size}
    for path in sizes.keys() - {Path(marker_path(folder, "DONE"))}:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert "bytes, expected" in check_marker(FILES, folder, "DONE", {}).reason
        path.unlink()
        assert not check_marker(FILES, folder, "DONE", {})
        path.write_bytes(content)
    assert check_marker(FILES, folder, "DONE", {})


def test_features_that_others_add_do_not_damage_an_eopatch(folder: str) -> None:
    write_patch(small_patch(), FILES, folder, "DONE", "npy.gz")
    own = EOPatch.load(folder)
    own.data["OWN"] = np.zeros((1, 2, 2, 1))
    own.save(folder, features=[(FeatureType.DATA, "OWN")], overwrite_permission=OverwritePermission.ADD_ONLY)
    assert check_marker(FILES, folder, "DONE", {})


def test_a_truncated_object_is_noticed(s3_files: s3fs.S3FileSystem, bucket: str) -> None:
    folder = f"{bucket}/eopatches/eopatch_x"
    write_patch(small_patch(), s3_files, folder, "DONE", "npy.gz")
    assert check_marker(s3_files, folder, "DONE", {})
    s3_files.pipe_file(f"{folder}/data/X.npy.gz", s3_files.cat_file(f"{folder}/data/X.npy.gz")[:10])
    assert check_marker(s3_files, folder, "DONE", {}).reason.startswith("data/X.npy.gz has 10 bytes")


def test_a_marker_without_sizes_is_believed(folder: str) -> None:
    write_patch(small_patch(), FILES, folder, "DONE", "npy.gz")
    Path(marker_path(folder, "DONE")).write_bytes(gzip.compress(b'{"value": 1.0}'))
    assert check_marker(FILES, folder, "DONE", {"value": 1.0})


# ---- uploads while an EOPatch is being made ----


class NoSpaceError(OSError):
    """What a failing conversion raises."""


def _fail_after_first_file(
    files: AbstractFileSystem, folder: str, condition: Callable[[], bool] = lambda: True
) -> None:
    """Begin an EOPatch, wait for the condition, and fail."""
    with new_patch(files, folder, "DONE") as new:
        path = new.folder / "data" / "X.npy.gz"
        path.parent.mkdir()
        path.write_bytes(b"an array")
        new.finished(path)
        _wait_until(condition)
        raise NoSpaceError


def test_files_are_uploaded_while_others_are_made_and_an_error_takes_them_back(
    s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    folder = f"{bucket}/run/eopatches/eopatch_x"
    with pytest.raises(NoSpaceError):
        _fail_after_first_file(s3_files, folder, lambda: s3_files.exists(f"{folder}/data/X.npy.gz"))
    assert not [path for path in s3_files.find(folder) if path != folder]

    write_patch(small_patch(), s3_files, folder, "DONE", "npy.gz")
    assert check_marker(s3_files, folder, "DONE", {})


def test_an_eopatch_that_is_to_be_replaced_stays_until_all_of_the_new_one_is_made(
    s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    folder = f"{bucket}/run/eopatches/eopatch_x"
    write_patch(small_patch(), s3_files, folder, "DONE", "npy.gz")
    before = s3_files.find(folder, detail=True)
    with pytest.raises(NoSpaceError):
        _fail_after_first_file(s3_files, folder)
    after = s3_files.find(folder, detail=True)
    assert {path: info["ETag"] for path, info in after.items()} == {path: info["ETag"] for path, info in before.items()}


def test_arrays_of_zarr_are_uploaded_early_chunk_for_chunk(s3_files: s3fs.S3FileSystem, bucket: str) -> None:
    folder = f"{bucket}/run/eopatches/eopatch_x"
    patch = small_patch()
    with new_patch(s3_files, folder, "DONE") as new:
        save_features(patch, new.folder, "zarr")
        for path in (new.folder / "data").iterdir():
            new.finished(path)
            _wait_until(lambda path=path: s3_files.exists(f"{folder}/data/{path.name}/.zarray"))
        assert not check_marker(s3_files, folder, "DONE", {})
    assert check_marker(s3_files, folder, "DONE", {})


def test_files_are_those_of_eo_learn(tmp_path: Path) -> None:
    times = ["2019-01-01", "2019-01-16T10:05"]
    patch = EOPatch(bbox=BBox((0, 0, 100, 100), CRS(32633)), timestamps=times)
    patch[FeatureType.META_INFO, "BATCH"] = {"tile": "33TWM", "sizes": {"a": 1}, "none": None, "text": "ž"}
    patch[FeatureType.DATA, "NDVI"] = np.random.default_rng(0).random((2, 3, 4, 1), np.float32)
    patch.save(str(tmp_path / "theirs"))

    save_features(patch, tmp_path / "ours", "npy.gz")

    def contents(folder: Path) -> dict[str, bytes]:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return {name: gzip.decompress(raw) if name.endswith(".gz") else raw for name, raw in files.items()}

    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert len(contents(tmp_path / "ours")) == 4


def test_an_upload_holds_few_files_and_parts_in_memory(s3_files: s3fs.S3FileSystem, bucket: str) -> None:
    folder = f"{bucket}/patch"
    sizes = {"data/ONE.npy.gz": 160_000_000} | {f"data/X.zarr/{n}": 20_000_000 for n in range(12)}
    with new_patch(s3_files, folder, "DONE") as new:
        save_features(EOPatch(bbox=BBox((0, 0, 1, 1), CRS(32633)), meta_info={"DONE": {}}), new.folder, "zarr")
        for number, (name, size) in enumerate(sizes.items()):
            path = new.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([number]) * size)
        tracemalloc.start()
        new.finished(new.folder / "data/ONE.npy.gz")
        new.finished(new.folder / "data/X.zarr")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 200_000_000  # with what s3fs takes by itself they are 480
    assert {name: s3_files.size(f"{folder}/{name}") for name in sizes} == sizes
    assert s3_files.cat_file(f"{folder}/data/ONE.npy.gz", start=100_000_000, end=100_000_010) == bytes(10)
    assert check_marker(s3_files, folder, "DONE", {})
