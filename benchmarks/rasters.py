"""Reading, warping and writing rasters in localhub against GDAL alone, for the same arrays.

GDAL alone is the most direct way with rasterio: each file is opened once and read into its place, by DatasetReader.read
or through a WarpedVRT; each result goes as a whole from memory through GDAL's own COG driver. Scenes have no file of
dataMask: it is what B02's nodata value says. Arrays must be equal, overviews too. Both run in one process, in turns.

    python benchmarks/rasters.py [--repeats N]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from common import BANDS, CLOUDY_SHARE, START, machine, ratios, spread
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry import box

from localhub.archive import DATA_MASK, Scene
from localhub.engine import Output, Plan
from localhub.payload import CogParameters, Data
from localhub.raster import RasterStack
from localhub.render import Selection, sample_blocks
from tasks.grid import Tile

SIDE_PX, BLOCK_PX = 1000, 512
SCENES, DATES, OUTPUTS = 6, 24, 3
ALIGNED = Tile("aligned", 32633, (500_000.0, 5_000_000.0, 510_000.0, 5_010_000.0), SIDE_PX, SIDE_PX)
NEXT_ZONE = Tile("next zone", 32634, (29_000.0, 5_017_000.0, 39_000.0, 5_027_000.0), SIDE_PX, SIDE_PX)
GOAL = 1.3

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """The same work done by localhub and by GDAL alone."""

    name: str
    ours: Callable[[], Any]
    alone: Callable[[], Any]
    check: Callable[[Any, Any], None]
    """Fails where both results differ."""


def landscape(seed: int, side: int = SIDE_PX) -> NDArray[np.uint16]:
    """Hills with noise, and a corner without data; DEFLATE makes of it what it makes of real bands."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    hills = 1500 + 1000 * np.sin(rows / 90) * np.cos(columns / 70)
    values: NDArray[np.uint16] = (hills + random.integers(0, 200, (side, side))).astype(np.uint16)
    values[: side // 8, : side // 3] = 0
    return values


def write_scenes(folder: Path, pixel_m: float) -> list[Scene]:
    """Scenes with 2 km around the tile, as Sentinel-2's COGs are: 1024 x 1024 blocks, DEFLATE with a predictor."""
    side = int(14_000 / pixel_m)
    transform = Affine(pixel_m, 0, 498_000, 0, -pixel_m, 5_012_000)
    scenes = []
    for number in range(SCENES):
        assets = {}
        for band in (*BANDS, "CLM"):
            path = folder / f"{pixel_m:g}-{number}-{band}.tif"
            values = landscape(number, side)
            if band == "CLM":
                values = (values % 100 < 100 * CLOUDY_SHARE).astype(np.uint16)
            write_band(path, values.astype("uint8" if band == "CLM" else "uint16"), transform)
            assets[band] = str(path)
        scenes.append(Scene(f"{number}", "sentinel-2-l2a", START, 0.0, box(0, 0, 1, 1), assets, {}))
    return scenes


def write_band(path: Path, values: NDArray[Any], transform: Affine) -> None:
    """Write one band; 0 of reflectance is no data."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=len(values),
        width=len(values),
        count=1,
        dtype=values.dtype,
        crs="EPSG:32633",
        transform=transform,
        nodata=0 if values.dtype == np.uint16 else None,
        tiled=True,
        blockxsize=1024,
        blockysize=1024,
        compress="DEFLATE",
        predictor=2,
    ) as dataset:
        dataset.write(values, 1)


def ours_read(scenes: list[Scene], tile: Tile, rows: int) -> list[Arrays]:
    """Read as `localhub.render` does, with memory for so many rows at a time."""
    data = Data.model_validate({"type": "sentinel-2-l2a", "processing": {"upsampling": "BILINEAR"}})
    names = (*BANDS, "CLM", DATA_MASK)
    plan = Plan((tuple((index,) for index in range(len(scenes))),), (dict.fromkeys(names, 1.0),), ())
    block_bytes = rows * tile.width * len(scenes) * len(names) * 2
    return [bands for _, (bands,) in sample_blocks(plan, [Selection(data, tuple(scenes))], tile, block_bytes)]


def alone_read(scenes: list[Scene], tile: Tile, opened: Callable[[str, Tile], "Opened"]) -> Arrays:
    """Read each band of each scene once."""
    shape = (len(scenes), tile.height, tile.width)
    arrays: Arrays = {band: np.empty(shape, "uint16") for band in BANDS}
    arrays |= {band: np.empty(shape, "uint8") for band in ("CLM", DATA_MASK)}
    for number, scene in enumerate(scenes):
        for band, path in scene.assets.items():
            with opened(path, tile) as (dataset, window):
                dataset.read(1, window=window, out=arrays[band][number])
                if band == "B02":
                    arrays[DATA_MASK][number] = dataset.read_masks(1, window=window) != 0
    return arrays


Opened = AbstractContextManager[tuple[Any, Window]]
"""A dataset, and the tile's window in it."""


@contextmanager
def copied(path: str, tile: Tile) -> Iterator[tuple[Any, Window]]:
    """Open a file on whose grid the tile's pixels lie."""
    with rasterio.open(path) as dataset:
        yield dataset, dataset.window(*tile.bounds).round_offsets().round_lengths()


@contextmanager
def warped(path: str, tile: Tile) -> Iterator[tuple[Any, Window]]:
    """Open a file on another grid; classes are not interpolated."""
    resampling = Resampling.nearest if path.endswith("CLM.tif") else Resampling.bilinear
    grid = {"crs": f"EPSG:{tile.epsg}", "transform": tile.transform, "width": tile.width, "height": tile.height}
    with rasterio.open(path) as dataset, WarpedVRT(dataset, resampling=resampling, add_alpha=True, **grid) as vrt:
        yield vrt, Window(0, 0, tile.width, tile.height)


def same_arrays(blocks: list[Arrays], theirs: Arrays) -> None:
    """Compare all bands."""
    assert all(block.keys() == theirs.keys() for block in blocks)
    for name, values in theirs.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks], axis=1), values, name)


def ours_write(folder: Path, outputs: Sequence[Output], values: Arrays, rows: int) -> list[Path]:
    """Write as `localhub.worker` does: blocks of rows onto scratch, then COGs."""
    with RasterStack(folder, ALIGNED, outputs) as stack:
        for row in range(0, SIDE_PX, rows):
            stack.write(row, {name: array[:, row : row + rows] for name, array in values.items()})
    parameters = CogParameters.model_validate({"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX})
    return list(stack.export(parameters).values())


def alone_write(folder: Path, values: Arrays) -> list[Path]:
    """Write each array by GDAL's COG driver."""
    options = {"COMPRESS": "DEFLATE", "LEVEL": 1, "PREDICTOR": "YES", "OVERVIEW_RESAMPLING": "AVERAGE"}
    return [alone_cog(folder / f"{name}.alone.tif", array, options) for name, array in values.items()]


def alone_cog(path: Path, array: NDArray[Any], options: dict[str, Any]) -> Path:
    """Write one array."""
    count, height, width = array.shape
    grid = {"crs": f"EPSG:{ALIGNED.epsg}", "transform": ALIGNED.transform, "nodata": 0}
    with rasterio.open(
        "", "w", driver="MEM", count=count, height=height, width=width, dtype=array.dtype, **grid
    ) as dataset:
        dataset.write(array)
        copy(dataset, path, driver="COG", BLOCKSIZE=BLOCK_PX, **options)
    return path


def same_rasters(ours: list[Path], theirs: list[Path]) -> None:
    """Compare pixels and overviews."""
    for mine, other in zip(ours, theirs, strict=True):
        with rasterio.open(mine) as a, rasterio.open(other) as b:
            assert a.overviews(1) == b.overviews(1)
            np.testing.assert_array_equal(a.read(), b.read())
            levels = range(len(a.overviews(1)))
        for level in levels:
            with rasterio.open(mine, overview_level=level) as a, rasterio.open(other, overview_level=level) as b:
                np.testing.assert_array_equal(a.read(), b.read())


def cases(folder: Path) -> Iterator[Case]:
    """Make what is measured."""
    fine, coarse = write_scenes(folder, 10), write_scenes(folder, 20)
    for rows in (SIDE_PX, SIDE_PX // 4):
        at_once = "at once" if rows == SIDE_PX else f"{rows} rows at a time"
        for name, scenes, tile, opened in (
            ("read, same grid", fine, ALIGNED, copied),
            ("warp, 20 m, next UTM zone, bilinear", coarse, NEXT_ZONE, warped),
        ):
            ours, alone = partial(ours_read, scenes, tile, rows), partial(alone_read, scenes, tile, opened)
            yield Case(f"{name}, {at_once}", ours, alone, same_arrays)
    outputs = [Output(f"{number}", DATES, "UINT16", 0.0) for number in range(OUTPUTS)]
    values = {o.id: np.stack([landscape(100 * n + k) for k in range(DATES)]) for n, o in enumerate(outputs)}
    yield Case(
        f"{OUTPUTS} COGs of {DATES} bands, UINT16",
        partial(ours_write, folder, outputs, values, SIDE_PX // 4),
        partial(alone_write, folder, values),
        same_rasters,
    )


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Return CPU and wall-clock seconds."""
    begin_cpu, begin = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begin_cpu, time.perf_counter() - begin


def table_row(case: Case, repeats: int) -> str:
    """Measure: CPU seconds of both, and the ratios by CPU and wall clock."""
    case.check(case.ours(), case.alone())  # also warms up
    turns = [(seconds(case.ours), seconds(case.alone)) for _ in range(repeats)]
    (cpu, wall), (cpu_alone, wall_alone) = (zip(*(turn[side] for turn in turns), strict=True) for side in (0, 1))
    columns = [spread(cpu, 2), spread(cpu_alone, 2), spread(ratios(cpu, cpu_alone), 2)]
    return f"| {case.name} | {' | '.join(columns)} | {spread(ratios(wall, wall_alone), 2)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    print(f"{machine()}; rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")
    print(f"CPU seconds, median (range) of {options.repeats} turns; goal of the ratio {GOAL}")
    print("| work | localhub | GDAL alone | ratio, CPU | ratio, wall |", "|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            print(table_row(case, options.repeats), flush=True)


if __name__ == "__main__":
    main()
