"""Delivered files are deleted only after the EOPatch has been read back and is what was written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.arrayfiles import FileFormat
from tasks.conversion import PatchOptions, TileFiles, convert_tile
from tasks.conversion.convert import ConversionRecord
from tasks.errors import TileError
from tests.tasks.delivery_files import MAPPING, PROVENANCE, TILE, dates, deliver, random_outputs

LOCAL = LocalFileSystem(auto_mkdir=True)


class Damaging(DirFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An object store that spoils one file on its way in."""

    spoiled, content = "BANDS", b""

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if self.spoiled in rpath:
            Path(lpath).write_bytes(self.content or Path(lpath).read_bytes()[:-50])
        super().put_file(lpath, rpath, **options)

    def put(self, lpath: list[str], rpath: list[str], **options: Any) -> None:
        for source, target in zip(lpath, rpath, strict=True):
            self.put_file(source, target, **options)


class Stuck(LocalFileSystem):  # type: ignore[misc]
    """A store that lets nothing be deleted."""

    def rm_file(self, path: str) -> None:
        raise PermissionError(f"{path} is under a retention rule")


@pytest.fixture
def delivered(tmp_path: Path) -> TileFiles:
    return deliver(tmp_path / "tile", random_outputs(TILE, 3), TILE, dates(3))


def files_of(delivered: TileFiles) -> list[Path]:
    return [Path(path) for path in (*delivered.outputs.values(), str(delivered.userdata))]


def run(
    delivered: TileFiles,
    folder: str,
    options: PatchOptions,
    target: AbstractFileSystem = LOCAL,
    source: AbstractFileSystem = LOCAL,
) -> ConversionRecord:
    return convert_tile(
        TILE, delivered, source, target, folder, mapping=MAPPING, options=options, provenance=PROVENANCE
    )


@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_raw_files_are_kept_or_deleted_after_the_eopatch_was_read_back(
    delivered: TileFiles, tmp_path: Path, file_format: FileFormat
) -> None:
    kept, deleted = str(tmp_path / "a/eopatches/kept"), str(tmp_path / "a/eopatches/deleted")
    run(delivered, kept, PatchOptions(file_format=file_format))
    assert all(path.exists() for path in files_of(delivered))
    record = run(delivered, deleted, PatchOptions(file_format=file_format, raw_tiles="delete"))
    assert not any(path.exists() for path in files_of(delivered))
    assert (record.outcome, record.note) == ("converted", "")
    for feature in (before := EOPatch.load(kept)).get_features():
        np.testing.assert_array_equal(before[feature], EOPatch.load(deleted)[feature])


def test_raw_files_are_deleted_when_the_eopatch_lies_on_s3(
    delivered: TileFiles, bucket: str, s3_files: s3fs.S3FileSystem
) -> None:
    run(delivered, f"{bucket}/patch", PatchOptions(raw_tiles="delete"), s3_files)
    assert s3_files.exists(f"{bucket}/patch/meta_info/BATCH.json.gz")
    assert not any(path.exists() for path in files_of(delivered))


@pytest.mark.parametrize(("spoiled", "content"), [("BANDS", b""), ("BANDS", b"x" * 100), ("timestamps", b"")])
def test_an_eopatch_that_comes_back_damaged_is_removed_and_the_raw_files_stay(
    delivered: TileFiles, tmp_path: Path, spoiled: str, content: bytes
) -> None:
    store = Damaging(str(tmp_path / "store"), LOCAL, skip_instance_cache=True)
    store.spoiled, store.content = spoiled, content
    with pytest.raises(TileError, match=r"is not what was written: .* the delivered files were kept"):
        run(delivered, "patch", PatchOptions(raw_tiles="delete"), store)
    assert all(path.exists() for path in files_of(delivered))
    assert not store.exists("patch/meta_info/BATCH.json.gz")


def test_files_of_a_tile_without_an_eopatch_stay(tmp_path: Path) -> None:
    empty = {name: np.zeros_like(numbers) for name, numbers in random_outputs(TILE, 3).items()}
    delivered = deliver(tmp_path / "tile", empty, TILE, dates(3))
    assert run(delivered, str(tmp_path / "a/b/c"), PatchOptions(raw_tiles="delete")).outcome == "no data"
    assert all(path.exists() for path in files_of(delivered))


def test_files_of_a_tile_without_data_stay_beside_its_eopatch_of_zeros(tmp_path: Path) -> None:
    outputs = random_outputs(TILE, 3)
    outputs["QUALITY"][:] = 0
    delivered = deliver(tmp_path / "tile", outputs, TILE, dates(3))
    record = run(delivered, str(tmp_path / "a/b/c"), PatchOptions(raw_tiles="delete", keep_empty=True))
    assert record.outcome == "no data"
    assert not EOPatch.load(str(tmp_path / "a/b/c")).mask_timeless["VALID_COUNT"].any()
    assert all(path.exists() for path in files_of(delivered))


def test_files_of_a_tile_that_fails_stay(delivered: TileFiles, tmp_path: Path) -> None:
    broken = Path(delivered.outputs["B08"])
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(TileError):
        run(delivered, str(tmp_path / "a/b/c"), PatchOptions(raw_tiles="delete"))
    assert all(path.exists() for path in files_of(delivered))


def test_files_that_cannot_be_deleted_do_not_fail_the_tile(delivered: TileFiles, tmp_path: Path) -> None:
    folder = str(tmp_path / "a/b/c")
    record = run(delivered, folder, PatchOptions(raw_tiles="delete"), source=Stuck())
    assert "could not be deleted" in record.note
    assert "retention rule" in record.note
    assert EOPatch.load(folder).meta_info["BATCH"]["tile"] == TILE.name
