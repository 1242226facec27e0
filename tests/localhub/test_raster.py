from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

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
        ((1024, 4096), {}, [2]),
        ((1000, 1000), {"blockxsize": 256, "blockysize": 512}, [2, 4]),
        ((1000, 1000), {"overviewMinSize": 100}, [2, 4, 8, 16]),
        ((1000, 1000), {"overviewLevels": (3, 9)}, [3, 9]),
        ((1000, 1000), {"overviewLevels": ()}, []),
    ],
)
def test_overviews_halve_until_the_smaller_side_is_below_the_least_size(
    size: tuple[int, int], fields: dict[str, Any], levels: list[int]
) -> None:
    assert overview_levels(size, cog(**fields)) == levels


def test_a_block_is_as_asked_but_no_larger_than_the_raster() -> None:
    assert block_size(1024, (500, 400)) == 512
    assert block_size(256, (500, 400)) == 256
    assert block_size(1024, (3000, 400)) == 1024


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
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
