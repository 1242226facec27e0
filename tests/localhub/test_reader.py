"""Bands and data masks land on the tile's grid as GDAL says they should, and unchanged where the grids coincide."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window
from shapely import box

from localhub.archive import Archive, ArchiveError, Scene
from localhub.reader import Methods, read_band, read_data_mask
from tasks.grid import Tile
from tests.localhub.made_scenes import METHODS, warped

WEST, NORTH = 560000.0, 5150000.0
UTM_33, UTM_34 = 32633, 32634
BILINEAR, BICUBIC = Methods("BILINEAR", "BILINEAR"), Methods("BICUBIC", "BICUBIC")


def _write(
    path: Path, values: NDArray[Any], resolution: float, *, epsg: int | None = UTM_33, nodata: float | None = None
) -> str:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        crs=f"EPSG:{epsg}" if epsg else None,
        transform=Affine(resolution, 0, WEST, 0, -resolution, NORTH),
        nodata=nodata,
    ) as dataset:
        dataset.write(values, 1)
    return str(path)


def _scene(assets: Mapping[str, str]) -> Scene:
    time = datetime(2019, 7, 1, 10, tzinfo=UTC)
    return Scene("S2A_TEST", "sentinel-2-l1c", time, 0.0, box(15.7, 46.3, 15.9, 46.5), dict(assets), {})


def _tile(
    columns: int, rows: int, resolution: float, *, left: float = WEST, top: float = NORTH, epsg: int = UTM_33
) -> Tile:
    bounds = (left, top - rows * resolution, left + columns * resolution, top)
    return Tile("tile", epsg, bounds, columns, rows)


@pytest.fixture(scope="module")
def noise() -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(1, 10000, (300, 320), dtype=np.uint16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, noise: NDArray[np.uint16]) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    classes = np.random.default_rng(6).integers(0, 12, noise.shape, dtype=np.uint8)
    return _scene({"B02": _write(folder / "B02.tif", noise, 10), "SCL": _write(folder / "SCL.tif", classes, 10)})


def test_a_tile_on_the_files_grid_gets_the_files_pixels(scene: Scene, noise: NDArray[np.uint16]) -> None:
    tile = _tile(50, 40, 10, left=WEST + 70, top=NORTH - 30)
    assert np.array_equal(read_band(scene, "B02", tile), noise[3:43, 7:57])


@pytest.mark.parametrize(
    "bounds",
    [(-180.0, -90.0, 180.0, 90.0), (-180.0, -90.0, 15.9, 90.0), (15.8, -89.9, 15.81, 89.9)],
    ids=["the world", "centre beyond the file's projection", "a needle"],
)
def test_a_tile_of_any_extent_can_be_read(scene: Scene, bounds: tuple[float, float, float, float]) -> None:
    for width, height in ((3600, 1800), (40, 1800)):
        tile = Tile("far", 4326, bounds, width, height)
        with rasterio.open(scene.assets["B02"]) as dataset:
            expected = np.zeros((height, width), np.uint16)
            reproject(rasterio.band(dataset, 1), expected, dst_transform=tile.transform, dst_crs="EPSG:4326")
        np.testing.assert_array_equal(read_band(scene, "B02", tile), expected)
        assert read_band(scene, "B02", tile, methods=BICUBIC).shape == (height, width)


@given(column=st.integers(-60, 330), row=st.integers(-60, 310), columns=st.integers(1, 90), rows=st.integers(1, 90))
def test_pixels_outside_the_file_are_0_and_have_no_data(
    scene: Scene, noise: NDArray[np.uint16], column: int, row: int, columns: int, rows: int
) -> None:
    tile = _tile(columns, rows, 10, left=WEST + 10 * column, top=NORTH - 10 * row)
    padded = np.pad(noise, 200)[200 + row : 200 + row + rows, 200 + column : 200 + column + columns]
    assert np.array_equal(read_band(scene, "B02", tile), padded)
    assert np.array_equal(read_data_mask(scene, tile), padded != 0)


@pytest.mark.parametrize("resampling", ["NEAREST", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize(
    "tile",
    [
        _tile(100, 90, 20, left=WEST + 200, top=NORTH - 400),
        _tile(100, 90, 7, left=WEST + 203, top=NORTH - 401),
        _tile(200, 200, 20, left=WEST - 300, top=NORTH + 300),
        _tile(120, 110, 20, left=99400.0, top=5163000.0, epsg=UTM_34),
        Tile("degrees", 4326, (15.785, 46.475, 15.815, 46.490), 100, 50),
        Tile("web", 3857, (1757000.0, 5855000.0, 1760000.0, 5857000.0), 60, 40),
    ],
    ids=["coarser", "finer", "beyond the file", "next UTM zone", "degrees", "web Mercator"],
)
def test_other_grids_agree_with_gdals_warp_of_whole_arrays(scene: Scene, tile: Tile, resampling: Any) -> None:
    read = read_band(scene, "B02", tile, methods=Methods(resampling, resampling))
    assert read.dtype == np.uint16
    assert (read != 0).any()
    assert np.array_equal(read, warped(scene.assets["B02"], tile, METHODS[resampling]))


def test_nearest_of_twice_the_pixel_size_takes_the_pixel_below_and_right_of_the_centre(
    scene: Scene, noise: NDArray[np.uint16]
) -> None:
    assert np.array_equal(read_band(scene, "B02", _tile(50, 50, 20)), noise[1:100:2, 1:100:2])


def test_bilinear_between_two_pixels_is_their_mean(tmp_path: Path) -> None:
    values = np.array([[100, 200], [100, 200]], np.uint16)
    scene = _scene({"B02": _write(tmp_path / "B02.tif", values, 10)})
    tile = _tile(1, 1, 5, left=WEST + 7.5, top=NORTH - 7.5)
    assert read_band(scene, "B02", tile, methods=BILINEAR) == 150


@pytest.mark.parametrize(
    ("resolution", "methods"),
    [(20, Methods(downsampling="BICUBIC")), (7, Methods(upsampling="BICUBIC"))],
    ids=["coarser", "finer"],
)
def test_the_pixel_size_of_the_file_tells_up_from_down(scene: Scene, resolution: float, methods: Methods) -> None:
    tile = _tile(60, 60, resolution)
    opposite = Methods(methods.downsampling, methods.upsampling)
    nearest = read_band(scene, "B02", tile)
    assert np.array_equal(
        read_band(scene, "B02", tile, methods=methods), read_band(scene, "B02", tile, methods=BICUBIC)
    )
    assert np.array_equal(read_band(scene, "B02", tile, methods=opposite), nearest)
    assert not np.array_equal(read_band(scene, "B02", tile, methods=methods), nearest)


def test_pixels_of_the_files_size_are_its_pixels_even_in_the_next_utm_zone(scene: Scene) -> None:
    tile = _tile(120, 110, 10, left=99400.0, top=5163000.0, epsg=UTM_34)
    read = read_band(scene, "B02", tile, methods=BICUBIC)
    assert np.array_equal(read, warped(scene.assets["B02"], tile, Resampling.nearest))
    assert read.any()


def test_bilinear_onto_twice_the_pixel_size_weighs_four_by_four_pixels(scene: Scene, noise: NDArray[np.uint16]) -> None:
    weights = np.array([1, 3, 3, 1]) / 8  # a triangle as wide as two pixels of the tile
    expected = [
        [weights @ noise[2 * r - 1 : 2 * r + 3, 2 * c - 1 : 2 * c + 3] @ weights for c in range(20, 60)]
        for r in range(20, 60)
    ]
    tile = _tile(200, 200, 20, left=WEST - 400, top=NORTH + 400)
    read = read_band(scene, "B02", tile, methods=BILINEAR)[40:80, 40:80]
    assert np.abs(read - np.array(expected)).max() <= 0.501


@pytest.mark.parametrize("band", ["SCL", "CLM", "sunAzimuthAngles", "viewZenithMean"])
def test_classes_and_angles_are_never_averaged(scene: Scene, band: str) -> None:
    tile = _tile(60, 60, 13)
    named = replace(scene, assets={band: scene.assets["SCL"]})
    assert np.array_equal(read_band(named, band, tile, methods=BICUBIC), read_band(scene, "SCL", tile))


@pytest.mark.parametrize(
    "tile", [_tile(90, 80, 10, left=WEST - 50), _tile(120, 110, 20, left=99400.0, top=5163000.0, epsg=UTM_34)]
)
def test_windows_put_together_are_the_tile(scene: Scene, tile: Tile) -> None:
    for band in ("B02", "dataMask"):
        blocks = [
            read_band(scene, band, tile, Window(0, row, tile.width, min(17, tile.height - row)), BILINEAR)
            for row in range(0, tile.height, 17)
        ]
        assert np.array_equal(np.concatenate(blocks), read_band(scene, band, tile, methods=BILINEAR))


def test_overviews_are_not_read(tmp_path: Path, noise: NDArray[np.uint16]) -> None:
    path = _write(tmp_path / "B02.tif", noise, 10)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert np.array_equal(read_band(_scene({"B02": path}), "B02", _tile(50, 50, 40)), noise[2:200:4, 2:200:4])


@pytest.mark.parametrize("resolution", [10, 20])
def test_a_files_nodata_value_is_read_as_0_and_masked(tmp_path: Path, resolution: float) -> None:
    values = np.full((40, 40), 7, np.uint16)
    values[:, 20:] = 65535
    scene = _scene({"B02": _write(tmp_path / "B02.tif", values, 10, nodata=65535)})
    tile = _tile(int(400 / resolution), int(400 / resolution), resolution)
    half = tile.width // 2
    band, mask = read_band(scene, "B02", tile), read_data_mask(scene, tile)
    assert (band[:, :half] == 7).all()
    assert (mask[:, :half] == 1).all()
    assert not band[:, half:].any()
    assert not mask[:, half:].any()


@pytest.mark.parametrize("resolution", [10, 7, 20])
def test_0_is_no_data_in_optical_bands_of_sentinel_2_even_if_the_file_does_not_say_so(
    tmp_path: Path, resolution: float
) -> None:
    values = np.full((60, 60), 1000, np.uint16)
    values[:, 30:] = 0
    scene = _scene({"B02": _write(tmp_path / "B02.tif", values, 10)})
    tile = _tile(int(600 / resolution), int(600 / resolution), resolution)
    band, mask = read_band(scene, "B02", tile, methods=BILINEAR), read_data_mask(scene, tile)
    assert set(np.unique(band)) == {0, 1000}
    assert 0.4 < mask.mean() < 0.6
    assert not band[:, int(340 / resolution) :].any()
    classes = _write(tmp_path / "SCL.tif", np.full((60, 60), 4, np.uint8), 10)
    assert np.array_equal(read_data_mask(_scene({"SCL": classes, "B04": scene.assets["B02"]}), tile), mask)
    own = replace(scene, collection="byoc-own")
    assert read_data_mask(own, tile).all()


def test_no_data_does_not_bleed_into_interpolated_pixels(tmp_path: Path) -> None:
    values = np.full((40, 40), 1000, np.uint16)
    values[:, 20:] = 0
    scene = _scene({"B02": _write(tmp_path / "B02.tif", values, 10, nodata=0)})
    assert set(np.unique(read_band(scene, "B02", _tile(57, 57, 7), methods=BILINEAR))) == {0, 1000}


@pytest.mark.parametrize("nodata", [None, np.nan, -9999.0], ids=str)
@pytest.mark.parametrize("resolution", [10, 20, 7])
def test_nan_is_no_data_in_files_of_floats(tmp_path: Path, nodata: float | None, resolution: float) -> None:
    values = np.random.default_rng(8).normal(0, 5, (60, 60)).astype(np.float32)
    values[:, 40:] = np.nan
    if nodata is not None:
        values[:, :20] = nodata
    scene = _scene({"VV": _write(tmp_path / "VV.tif", values, 10, nodata=nodata)})
    tile = _tile(int(600 / resolution), int(600 / resolution), resolution)
    band, mask = read_band(scene, "VV", tile), read_data_mask(scene, tile)
    rows = columns = ((np.arange(tile.width) + 0.5) * resolution / 10).astype(int)
    expected = values[np.ix_(rows, columns)]
    has_data = ~np.isnan(expected) & (expected != nodata)
    assert band.dtype == np.float32
    np.testing.assert_array_equal(mask, has_data)
    np.testing.assert_array_equal(band, np.where(has_data, expected, 0))


@pytest.mark.parametrize("methods", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("resolution", [20, 7])
def test_nan_does_not_bleed_into_interpolated_floats(tmp_path: Path, methods: Methods, resolution: float) -> None:
    values = np.full((60, 60), -3.25, np.float32)
    values[:, 30:] = np.nan
    scene = _scene({"VV": _write(tmp_path / "VV.tif", values, 10)})
    read = read_band(scene, "VV", _tile(25, 25, resolution), methods=methods)
    np.testing.assert_allclose(np.unique(read), [-3.25, 0] if resolution == 20 else [-3.25], rtol=1e-6)


@pytest.mark.parametrize("resampling", ["NEAREST", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize("resolution", [20, 7])
def test_signed_integers_agree_with_gdals_warp(tmp_path: Path, resampling: Any, resolution: float) -> None:
    values = np.random.default_rng(9).integers(-3000, 3000, (100, 100), dtype=np.int16)
    values[30:50, 30:50] = -32768
    path = _write(tmp_path / "height.tif", values, 10, nodata=-32768)
    tile = _tile(45, 45, resolution)
    expected = warped(path, tile, METHODS[resampling], src_nodata=-32768, dst_nodata=-32768)
    read = read_band(_scene({"height": path}), "height", tile, methods=Methods(resampling, resampling))
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, np.where(expected == -32768, 0, expected))
    assert (read < 0).any()


def test_the_data_mask_of_the_archive_is_preferred(tmp_path: Path) -> None:
    values = np.full((20, 20), 7, np.uint16)
    stored = np.zeros((20, 20), np.uint8)
    stored[:5] = 255
    scene = _scene(
        {"B02": _write(tmp_path / "B02.tif", values, 10), "dataMask": _write(tmp_path / "dataMask.tif", stored, 10)}
    )
    mask = read_band(scene, "dataMask", _tile(20, 20, 10))
    assert mask.dtype == np.uint8
    assert mask.sum() == 100
    assert (mask[:5] == 1).all()


def test_bad_requests_and_files_are_named(scene: Scene, tmp_path: Path) -> None:
    tile = _tile(50, 40, 10)
    with pytest.raises(ArchiveError, match=r"S2A_TEST .* has no band B99. It has: B02, SCL"):
        read_band(scene, "B99", tile)
    with pytest.raises(ValueError, match="Resampling 'LANCZOS' is not known"):
        Methods("LANCZOS")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves tile tile of 40 rows and 50 columns"):
        read_band(scene, "B02", tile, Window(0, 30, 50, 11))
    broken = tmp_path / "B02.tif"
    broken.write_bytes(b"II*\0nothing")
    with pytest.raises(ArchiveError, match="Band B02 of scene S2A_TEST cannot be read from"):
        read_band(replace(scene, assets={"B02": str(broken)}), "B02", tile)


def test_a_file_without_a_crs_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "B02.tif", np.ones((20, 20), np.uint16), 10, epsg=None)
    with pytest.raises(ArchiveError, match="B02 of scene S2A_TEST"):
        read_band(_scene({"B02": path}), "B02", _tile(20, 20, 10))


def test_a_tile_on_a_real_scenes_grid_gets_its_pixels_bit_for_bit(test_data: Path) -> None:
    scene = Archive.open(test_data / "s2-slovenia-2015").scenes[0]
    with rasterio.open(scene.assets["B08"]) as dataset:
        stored, bounds = dataset.read(1), dataset.bounds
    tile = Tile("patch", UTM_33, tuple(bounds), 100, 101)
    assert np.array_equal(read_band(scene, "B08", tile), stored)
    assert read_data_mask(scene, tile).all()
