from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from rasterio.enums import Resampling

from localhub.engine import Output
from localhub.payload import CogParameters
from localhub.raster import RasterStack, block_size, overview_levels
from tasks.grid import Tile

TILE = Tile("t", 32633, (400000.0, 5000000.0, 410000.0, 5008000.0), 500, 400)


def cog(**fields: Any) -> CogParameters:
    return CogParameters.model_validate(fields)


@pytest.mark.parametrize(
    ("size", "fields", "levels"),
    [
        ((500, 500), {}, []),
        ((2004, 2004), {}, [2]),
        ((1024, 1024), {}, []),
        ((1024, 4096), {}, [2, 4]),
        ((1000, 1000), {"blockxsize": 256, "blockysize": 512}, [2, 4]),
        ((1000, 1000), {"overviewMinSize": 100}, [2, 4, 8, 16]),
        ((5, 3), {"overviewMinSize": 1}, [2, 4, 8]),
        ((1000, 1000), {"overviewLevels": (9, 3, 9)}, [3, 9]),
        ((1000, 1000), {"overviewLevels": ()}, []),
    ],
)
def test_overviews_halve_until_no_side_exceeds_the_least_size(
    size: tuple[int, int], fields: dict[str, Any], levels: list[int]
) -> None:
    assert overview_levels(size, cog(**fields)) == levels


def test_a_block_is_as_asked_but_no_larger_than_the_raster() -> None:
    assert block_size(1024, (500, 400)) == 512
    assert block_size(256, (500, 400)) == 256
    assert block_size(1024, (3000, 400)) == 1024


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "float32"])
@pytest.mark.parametrize(
    ("parameters", "blocks", "overviews"),
    [
        (None, None, []),
        (cog(), (512, 512), []),
        (cog(blockxsize=128, blockysize=128), (128, 128), [2, 4]),
        (cog(blockxsize=256, blockysize=128, usePredictor=False), (256, 128), [2, 4]),
        (cog(overviewLevels=(4,), resamplingAlgorithm="nearest"), (512, 512), [4]),
    ],
)
def test_what_is_written_in_blocks_of_rows_is_read_back_as_a_whole(
    tmp_path: Path,
    dtype: str,
    parameters: CogParameters | None,
    blocks: tuple[int, int] | None,
    overviews: list[int],
) -> None:
    values = np.random.default_rng(1).integers(0, 120, (3, 400, 500)).astype(dtype)
    output = Output("x", 3, dtype.upper(), 99.0)
    with RasterStack(tmp_path, TILE, [output]) as stack:
        for first in (0, 150, 300):
            stack.write(first, {"x": values[:, first : first + 150]})
    path = stack.export(parameters)["x"]
    assert list(tmp_path.iterdir()) == [path]
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert (dataset.dtypes[0], dataset.nodata, dataset.crs.to_epsg()) == (dtype, 99.0, 32633)
        assert dataset.transform == TILE.transform
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        assert structure["COMPRESSION"] == "DEFLATE"
        predictor = "3" if dtype == "float32" else "2"
        wanted = predictor if parameters is None or parameters.use_predictor else None
        assert structure.get("PREDICTOR") == wanted
        if blocks is not None:
            assert dataset.block_shapes[0] == blocks[::-1]
            assert dataset.overviews(1) == overviews
            assert (structure["LAYOUT"], structure["INTERLEAVE"]) == ("COG", "PIXEL")


def exported(folder: Path, values: NDArray[Any], sample_type: str, parameters: CogParameters | None) -> Path:
    """The file of an output whose no-data value is 0."""
    with RasterStack(folder, TILE, [Output("x", len(values), sample_type, 0.0)]) as stack:
        stack.write(0, {"x": values})
    return stack.export(parameters)["x"]


def smooth(seed: int = 1) -> NDArray[np.uint16]:
    """A band of slopes and noise, of which a corner has no data."""
    rows, columns = np.mgrid[:400, :500]
    noise = np.random.default_rng(seed).integers(0, 300, (400, 500))
    values = (1000 + 3 * rows + 2 * columns + noise).astype(np.uint16)
    values[:101, :77] = 0
    return values[np.newaxis]


KERNELS = {
    "nearest": Resampling.nearest,
    "average": Resampling.average,
    "gauss": Resampling.gauss,
    "cubic": Resampling.cubic,
    "cubicspline": Resampling.cubic_spline,
    "lanczos": Resampling.lanczos,
    "average_magphase": Resampling.average,
    "mode": Resampling.mode,
}


@pytest.mark.parametrize("algorithm", KERNELS)
def test_overviews_are_resampled_as_asked(tmp_path: Path, algorithm: str) -> None:
    values = smooth()
    expected = {"nearest": values[0, ::2, ::2]}
    with rasterio.open(exported(tmp_path, values, "UINT16", None)) as dataset:
        for name in KERNELS.keys() - {"nearest", "average_magphase"}:
            expected[name] = dataset.read(1, out_shape=(200, 250), resampling=KERNELS[name])
    parameters = cog(overviewLevels=(2,), resamplingAlgorithm=algorithm)
    with rasterio.open(exported(tmp_path, values, "UINT16", parameters), overview_level=0) as dataset:
        found = dataset.read(1)
    same = {name for name, overview in expected.items() if np.array_equal(found, overview)}
    assert same == {algorithm.removesuffix("_magphase")}


def test_an_average_leaves_out_pixels_without_data(tmp_path: Path) -> None:
    values = smooth()
    with rasterio.open(exported(tmp_path, values, "UINT16", cog(overviewLevels=(2,))), overview_level=0) as dataset:
        found = dataset.read(1)
    for row, column in ((0, 0), (50, 10), (10, 38), (50, 38), (120, 200)):
        block = values[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = block[block > 0].mean() if block.any() else 0
        assert abs(found[row, column] - expected) <= 0.5


@pytest.mark.parametrize("sample_type", ["UINT8", "INT16", "FLOAT32"])
def test_a_cog_is_laid_out_for_reading_over_the_network(tmp_path: Path, sample_type: str) -> None:
    values = np.random.default_rng(1).integers(0, 120, (3, 400, 500)).astype(sample_type.lower())
    path = exported(tmp_path, values, sample_type, cog(blockxsize=128, blockysize=64, overviewLevels=(8, 2, 4)))
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        assert [page.shape[:2] for page in pages] == [(400, 500), (200, 250), (100, 125), (50, 63)]
        assert (pages[0].tilewidth, pages[0].tilelength) == (128, 64)
        assert all(page.is_tiled for page in pages)
        headers, data = [page.offset for page in pages], [min(page.dataoffsets) for page in pages]
        assert headers == sorted(headers)
        assert headers[-1] < min(data)  # all directories come before all pixels
        assert data == sorted(data, reverse=True)  # the smallest overview comes first
        assert headers[0] < 512  # nothing before the first but GDAL's description of the layout
        assert [page.subfiletype for page in pages] == [0, 1, 1, 1]


def test_a_plain_tiff_is_in_strips_without_overviews(tmp_path: Path) -> None:
    with tifffile.TiffFile(exported(tmp_path, smooth(), "UINT16", None)) as file:
        (page,) = file.pages
        assert (page.is_tiled, page.predictor, page.compression.name) == (False, 2, "ADOBE_DEFLATE")


def test_outputs_without_data_are_zeros_even_where_zero_is_data(tmp_path: Path) -> None:
    outputs = [Output("x", 2, "INT16", -1.0), Output("y", 1, "FLOAT32", None)]
    with RasterStack(tmp_path, TILE, outputs) as stack:
        stack.write_zeros()
    for path in stack.export(None).values():
        with rasterio.open(path) as dataset:
            assert not dataset.read().any()


@pytest.mark.parametrize(("bands", "interleave"), [(8, "PIXEL"), (33, "BAND")])
def test_bands_that_make_a_block_large_are_written_one_after_the_other(
    tmp_path: Path, bands: int, interleave: str
) -> None:
    tile = Tile("t", 32633, (400000.0, 5000000.0, 410240.0, 5010240.0), 1024, 1024)
    last = np.arange(1024 * 1024, dtype="float32").reshape(1, 1024, 1024)
    with RasterStack(tmp_path, tile, [Output("x", bands, "FLOAT32", None)]) as stack:
        stack.write(0, {"x": np.repeat(last, bands, axis=0)})
    with rasterio.open(stack.export(cog())["x"]) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"] == interleave
        np.testing.assert_array_equal(dataset.read(bands), last[0])
