"""Tiles whose samples do not fit into memory together give what they give as a whole, and their files are read once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localhub.archive import Archive
from localhub.engine import Evalscript
from localhub.payload import Data
from localhub.render import prepare, render, select
from localhub.spool import Spool
from tasks.grid import Tile
from tests.localhub.made_scenes import write_scene

TILE = Tile("t", 32633, (465000.0, 5079000.0, 465400.0, 5079300.0), 40, 30)
SCENES = 4
ROW_OF_A_SAMPLE = 40 * 2 * 2
"""Bytes: columns, bands, 16 bits."""
SCRIPT = f"""//VERSION=3
function setup() {{
  return {{
    input: [{{ bands: ["B02", "dataMask"], units: "DN" }}],
    output: {{ bands: {2 * SCENES}, sampleType: "UINT16" }},
    mosaicking: "TILE",
  }};
}}
function evaluatePixel(samples) {{
  return [...samples.map((sample) => sample.B02), ...samples.map((sample) => sample.dataMask)];
}}
"""


@pytest.fixture
def values() -> NDArray[np.uint16]:
    """Four scenes with holes, one without any data: (scene, row, column)."""
    random = np.random.default_rng(3)
    found = (random.integers(1, 9999, (SCENES, 30, 40)) * (random.random((SCENES, 30, 40)) < 0.5)).astype(np.uint16)
    found[2] = 0
    return found


@pytest.mark.parametrize(
    ("block_bytes", "is_spooled"),
    [
        pytest.param(10**9, False, id="at once"),
        pytest.param(30 * ROW_OF_A_SAMPLE, True, id="a sample at once"),
        pytest.param(11 * ROW_OF_A_SAMPLE, True, id="a sample in parts"),
        pytest.param(1, False, id="not even a row of a sample"),
    ],
)
def test_a_tile_that_does_not_fit_is_rendered_as_if_it_did_and_its_files_are_read_once(
    tmp_path: Path, values: NDArray[np.uint16], block_bytes: int, *, is_spooled: bool
) -> None:
    for number, scene in enumerate(values):
        write_scene(tmp_path, f"s{number}", {"B02": scene}, TILE)
    selections = select(Archive.open(tmp_path), [Data(type="sentinel-2-l1c")], TILE)
    order = [int(scene.id.removeprefix("s")) for scene in selections[0].scenes]
    rendered = np.zeros((2 * SCENES, 30, 40), np.uint16)

    def write(first: int, results: Mapping[str, NDArray[Any]]) -> None:
        block = results["default"]
        rendered[:, first : first + block.shape[1]] = block
        if is_spooled:  # nobody comes back to a file
            for path in tmp_path.rglob("*.tif"):
                path.unlink()

    with Evalscript(SCRIPT) as script:
        render(script, prepare(script, selections, {"default"}), selections, TILE, block_bytes, write, tmp_path)
    np.testing.assert_array_equal(rendered, np.concatenate([values[order], values[order] != 0]))


def test_samples_of_several_dtypes_come_back_in_one_that_holds_all(tmp_path: Path) -> None:
    with Spool(3, 2, tmp_path) as spool:
        spool.add(0, 0, {"a": np.array([[1, 2], [3, 4]], "uint16")})
        spool.add(1, 1, {"a": np.array([[-5, 6]], "int16")})
        assert spool.rows("a", 0, 2).tolist() == [[[1, 2], [3, 4]], [[0, 0], [-5, 6]], [[0, 0], [0, 0]]]
        assert spool.rows("a", 1, 1).dtype == np.int32
        nothing = spool.rows("b", 0, 1)
        assert (nothing.tolist(), nothing.dtype) == ([[[0, 0]]] * 3, np.uint16)
    assert not list(tmp_path.iterdir())
