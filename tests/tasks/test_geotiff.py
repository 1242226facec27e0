"""Whatever a GeoTIFF's layout: the numbers are those that GDAL reads, and damage is an error."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tasks.conversion import TileFiles, content, geotiff, planes
from tasks.conversion.delivery import Delivery
from tasks.conversion.geotiff import read_layout
from tasks.errors import DeliveryError, TileError
from tasks.grid import Tile
from tests.tasks.delivery_files import write_raster

WIDTH, HEIGHT, BANDS = 70, 55, 5
TILE = Tile(
    "33TVM_4_5", 32633, (440000.0, 5_000_000.0, 440000.0 + 20 * WIDTH, 5_000_000.0 + 20 * HEIGHT), WIDTH, HEIGHT
)
SAMPLE_TYPES = ["uint8", "int8", "uint16", "int16", "float32"]

TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}
BLOCKS: dict[str, dict[str, Any]] = {
    "square tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32},
    "oblong tiles": TILED,
    "a tile that is larger than the raster": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "strips": {"tiled": False, "blockxsize": None, "blockysize": 7},
    "one strip": {"tiled": False, "blockxsize": None, "blockysize": HEIGHT},
}


@pytest.fixture(autouse=True, params=[1, 2000])
def turned_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time; and several, of which the last step has fewer."""
    monkeypatch.setattr(geotiff, "TURNED_BYTES", request.param)


def some_numbers(dtype: str) -> np.ndarray:
    random = np.random.default_rng(1)
    walk = random.normal(0, 9, (BANDS, HEIGHT, WIDTH)).cumsum(axis=2)
    if dtype == "float32":
        walk[2, 3:9, 4:7] = np.nan
        return walk.astype(dtype)
    limits = np.iinfo(dtype)
    numbers = walk.round().clip(limits.min, limits.max).astype(dtype)
    numbers[0, 0, :4] = limits.min, limits.max, limits.min, limits.max
    return numbers


def read(path: Path, files: AbstractFileSystem, scratch: Path) -> np.ndarray:
    remote = str(path)
    if isinstance(files, MemoryFileSystem):
        files.pipe_file(remote, path.read_bytes())
    pool = planes.Pool()
    delivery = Delivery(TILE, TileFiles({"X": remote}, None), files, scratch, pool)
    return delivery.planes("X", planes.Rooms(pool, scratch, 1, 1)).numbers


@pytest.mark.parametrize("files", [LocalFileSystem(), MemoryFileSystem()], ids=["local", "remote"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", SAMPLE_TYPES)
def test_numbers_of_every_sample_type_and_layout_are_those_that_gdal_reads(
    tmp_path: Path, dtype: str, blocks: str, interleave: str, files: AbstractFileSystem
) -> None:
    path = tmp_path / "x.tif"
    for predictor in (1, 3 if dtype == "float32" else 2):
        write_raster(path, some_numbers(dtype), TILE, interleave=interleave, predictor=predictor, **BLOCKS[blocks])
        assert read_layout(str(path), 0) is not None
        np.testing.assert_array_equal(read(path, files, tmp_path), some_numbers(dtype))


@pytest.mark.parametrize(
    "profile",
    [{"compress": kind} for kind in ("lzw", "zstd", "packbits", None)]
    + [{"endianness": "big"}, {"nbits": 12}, {"compress": "lerc_deflate", "predictor": 1}],
)
def test_other_codings_are_read_by_gdal(tmp_path: Path, profile: dict[str, Any]) -> None:
    numbers = some_numbers("uint16").clip(0, 4095)
    predictor = (
        {"predictor": 1} if profile.get("compress", "deflate") in (None, "packbits") or "nbits" in profile else {}
    )
    write_raster(tmp_path / "x.tif", numbers, TILE, **TILED, **predictor | profile)
    assert read_layout(str(tmp_path / "x.tif"), 0) is None
    np.testing.assert_array_equal(read(tmp_path / "x.tif", LocalFileSystem(), tmp_path), numbers)


@pytest.mark.parametrize("no_data", [None, 65_535])
def test_blocks_that_a_sparse_file_leaves_out_hold_the_no_data_number(tmp_path: Path, no_data: int | None) -> None:
    numbers = some_numbers("uint16")
    numbers[:, :32] = no_data or 0
    write_raster(tmp_path / "x.tif", numbers, TILE, **TILED, sparse_ok=True, nodata=no_data)
    with rasterio.open(tmp_path / "x.tif") as raster:
        np.testing.assert_array_equal(raster.read(), numbers)
    layout = read_layout(str(tmp_path / "x.tif"), no_data or 0)
    assert layout is not None
    assert 0 in [size for _, size in layout.places]
    np.testing.assert_array_equal(read(tmp_path / "x.tif", LocalFileSystem(), tmp_path), numbers)


def test_each_block_with_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_raster(path, some_numbers("uint16"), TILE, **TILED)
    layout, good = read_layout(str(path), 0), path.read_bytes()
    assert layout is not None
    for start, size in layout.places:
        for position in (start + size // 2, start + size - 1):  # the numbers, and their checksum
            spoiled = bytearray(good)
            spoiled[position] ^= 4
            path.write_bytes(spoiled)
            with pytest.raises(DeliveryError, match=r"x\.tif is not a readable GeoTIFF"):
                read(path, LocalFileSystem(), tmp_path)


def test_bits_that_flip_in_the_tags_are_never_another_error_than_the_tiles(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_raster(path, some_numbers("uint16"), TILE, **TILED)
    good, layout = path.read_bytes(), read_layout(str(path), 0)
    assert layout is not None
    tags = [place for place in range(len(good)) if not any(start <= place < start + n for start, n in layout.places)]
    damaged = 0
    for place, bit in itertools.product(tags, range(8)):
        spoiled = bytearray(good)
        spoiled[place] ^= 1 << bit
        path.write_bytes(spoiled)
        try:
            numbers = read(path, LocalFileSystem(), tmp_path)
        except TileError:
            damaged += 1
        else:  # tags have no checksum
            assert numbers.shape == (BANDS, HEIGHT, WIDTH)
    assert damaged > 500


def test_files_and_numbers_that_are_too_large_for_memory_go_to_scratch_and_leave_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "LARGEST_IN_MEMORY", 100)
    monkeypatch.setattr(planes, "LARGEST_IN_MEMORY", 100)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for interleave in ("pixel", "band"):
        write_raster(tmp_path / "x.tif", some_numbers("int16"), TILE, **TILED, interleave=interleave)
        numbers = read(tmp_path / "x.tif", MemoryFileSystem(), scratch)
        np.testing.assert_array_equal(numbers, some_numbers("int16"))
        assert numbers.base is not None
        assert not list(scratch.iterdir())
