"""Arrays in eo-learn's formats: what is written part by part is what NumPy, zarr and eo-learn write and read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from eolearn.core import EOPatch
from sentinelhub import CRS, BBox

from localhub.sample.noise import fractal
from tasks import arrayfiles
from tasks.arrayfiles import ArraySource, FileFormat, array_path, save_array, stored_hashes
from tasks.eopatches import save_features

ARRAYS = {
    "bands": np.random.default_rng(0).random((3, 40, 30, 6), np.float32),
    "numbers": np.random.default_rng(0).integers(0, 9999, (3, 40, 30, 1), np.uint16),
    "masks": np.random.default_rng(0).random((3, 40, 30, 1)) > 0.5,
    "wide": np.random.default_rng(0).integers(-(2**60), 2**60, (3, 40, 30, 2)),
    "noise": np.random.default_rng(0).integers(0, 256, (3, 40, 30, 2), np.uint8),  # larger when it is compressed
    "no dates": np.zeros((0, 40, 30, 2), np.uint8),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrayfiles, "MEMBER_BYTES", 1000)


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_npy_file_of_several_gzip_members_is_what_numpy_saves(tmp_path: Path, name: str, temporal: bool) -> None:
    array = ARRAYS[name]
    save_array(ArraySource.of(array, temporal=temporal), tmp_path / "x", "npy.gz")
    np.save(tmp_path / "expected.npy", array)
    content = (tmp_path / "x.npy.gz").read_bytes()
    assert gzip.decompress(content) == (tmp_path / "expected.npy").read_bytes()
    assert name == "no dates" or content.count(b"\x1f\x8b\x08") > 2
    with gzip.open(tmp_path / "x.npy.gz") as file:
        np.testing.assert_array_equal(np.load(file), array)


@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_eolearn_reads_what_we_write_and_writes_the_same_files(tmp_path: Path, file_format: FileFormat) -> None:
    patch = EOPatch(bbox=BBox((0, 0, 1, 1), CRS(32633)), timestamps=["2019-01-01"] * 3)
    for name, array in ARRAYS.items():
        if len(array):
            patch.data[name] = array
            patch.data_timeless[name] = array[0]
    save_features(patch, tmp_path / "ours", file_format)
    assert EOPatch.load(str(tmp_path / "ours")) == patch
    patch.save(str(tmp_path / "theirs"), use_zarr=file_format == "zarr")
    names = {path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*")}
    assert names == {path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*")}
    floats = [path for path in names if path.match("*.zarr/*") and ARRAYS[path.parent.stem].dtype.kind == "f"]
    assert bool(floats) == (file_format == "zarr")
    for path in floats:  # masks and integers are compressed otherwise
        assert (tmp_path / "ours" / path).read_bytes() == (tmp_path / "theirs" / path).read_bytes(), path
    for path in (path for path in names if path.name == ".zarray"):
        ours, theirs = (json.loads((tmp_path / whose / path).read_bytes()) for whose in ("ours", "theirs"))
        assert ours | {"compressor": None} == theirs | {"compressor": None}


@pytest.mark.parametrize(
    ("content", "largest"), [("reflectance", 1.0), ("half without data", 1.25), ("classes", 1.0), ("mask", 0.7)]
)
def test_zarrs_are_smaller_than_eolearns_or_hardly_larger(tmp_path: Path, content: str, largest: float) -> None:
    random = np.random.default_rng(7)
    relief = fractal(random, 300, 1.8)[np.newaxis, :, :, np.newaxis]
    reflectance = (800 * (1 + 0.18 * relief) + random.normal(0, 30, (1, 300, 300, 6))).astype(np.uint16)
    array = {
        "reflectance": reflectance,
        "half without data": np.where(relief > 0, reflectance, np.uint16(0)),
        "classes": (relief * 3).round().clip(0, 9).astype(np.uint8),
        "mask": relief > 0,
    }[content]
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    save_array(ArraySource.of(array, temporal=True), tmp_path / "ours", "zarr")
    zarr.save_array(str(theirs), array, chunks=array.shape)
    np.testing.assert_array_equal(zarr.open_array(str(ours), "r"), array)
    assert next(ours.glob("0.*")).stat().st_size <= largest * next(theirs.glob("0.*")).stat().st_size


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_hashes_tell_whether_an_array_is_the_one_that_was_written(
    tmp_path: Path, file_format: FileFormat, temporal: bool
) -> None:
    array = ARRAYS["bands"]
    hashes = save_array(ArraySource.of(array, temporal=temporal), tmp_path / "x", file_format, hashed=True)
    path = array_path(tmp_path / "x", file_format)
    assert stored_hashes(path, array.shape, array.dtype, temporal=temporal) == hashes

    changed = array.copy()
    changed[2, 39, 29, 5] += 1
    save_array(ArraySource.of(changed, temporal=temporal), tmp_path / "y", file_format)
    other = array_path(tmp_path / "y", file_format)
    assert stored_hashes(other, array.shape, array.dtype, temporal=temporal) != hashes
    with pytest.raises(ValueError, match=r"shape"):
        stored_hashes(path, (3, 30, 40, 6), array.dtype, temporal=temporal)
    with pytest.raises(ValueError, match=r"type"):
        stored_hashes(path, array.shape, np.dtype("float64"), temporal=temporal)


@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_hashes_are_of_what_was_written_though_its_memory_is_used_again_afterwards(
    tmp_path: Path, file_format: FileFormat
) -> None:
    numbers = ARRAYS["numbers"].copy()

    def read(frame: int, first: int, last: int, rows: np.ndarray) -> None:
        rows[...] = numbers[frame, first:last]

    def finished(frame: int) -> None:
        numbers[frame] = 0

    source = ArraySource(numbers.shape, numbers.dtype, True, read, numbers.__getitem__, finished)
    hashes = save_array(source, tmp_path / "x", file_format, hashed=True)
    assert not numbers.any()
    path = array_path(tmp_path / "x", file_format)
    assert stored_hashes(path, numbers.shape, numbers.dtype, temporal=True) == hashes


def test_an_array_that_is_longer_than_expected_is_another_one(tmp_path: Path) -> None:
    save_array(ArraySource.of(ARRAYS["masks"], temporal=True), tmp_path / "x", "npy.gz")
    with (tmp_path / "x.npy.gz").open("ab") as file:
        file.write(gzip.compress(b"more"))
    with pytest.raises(ValueError, match="is longer than"):
        stored_hashes(tmp_path / "x.npy.gz", ARRAYS["masks"].shape, np.dtype(bool), temporal=True)


def test_an_error_while_an_array_is_made_ends_the_writing(tmp_path: Path) -> None:
    def read(frame: int, _first: int, _last: int, rows: np.ndarray) -> None:
        if frame == 1:
            raise ValueError("no values")
        rows[...] = 0

    for file_format in ("npy.gz", "zarr"):
        with pytest.raises(ValueError, match="no values"):
            save_array(ArraySource((3, 40, 30, 1), np.dtype("uint8"), True, read), tmp_path / "x", file_format)
