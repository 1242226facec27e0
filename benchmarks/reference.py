"""Reference polygons of a country against eo-learn: `VectorImportTask`, `VectorToRasterTask` and `SaveTask`.

The country is a mosaic of polygons, generated: some 2,000 of 33 points for each tile of 1000 x 1000 pixels at 10 m, in
EPSG:3035, across the border of two UTM zones; a GeoPackage with a spatial index, in the order of rows. Both sides save
LULC and LULC_REFERENCE of a tile into an EOPatch on the local disk. eo-learn is measured on a sample of the tiles; ours
does all of them, and what preparing the file costs is shared out among them. Labels are equal in every pixel, or the
benchmark fails.

    python benchmarks/reference.py [--tiles 100] [--sample 10] [--polygons 1000000] [--repeats 5]
"""

import argparse
import gzip
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from common import machine, ratios, spread
from eolearn.core import EOPatch, FeatureType, OverwritePermission, SaveTask
from eolearn.geometry import VectorToRasterTask
from eolearn.io import VectorImportTask
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from pyproj import Transformer
from sentinelhub import CRS, BBox

from tasks.grid import Tile
from tasks.reference import PreparedReference, Reference, prepare_reference, rasterise_tile
from tasks.storage import Storage

CENTRE = (12.0, 47.0)
"""Longitude and latitude: the border of UTM zones 32 and 33."""
CELL_M, EDGE_POINTS = 223.6, 8
SIDE_PX, RESOLUTION_M = 1000, 10.0
POLYGONS, LULC = (FeatureType.VECTOR_TIMELESS, "LULC_REFERENCE"), (FeatureType.MASK_TIMELESS, "LULC")
GOAL = 10.0
FILES = LocalFileSystem()


# ---- the country ----


def country(side: int) -> gpd.GeoDataFrame:
    """A mosaic of side x side polygons with crooked edges, which fit each other; classes 1 to 10 at random."""
    random = np.random.default_rng(1)
    centre = Transformer.from_crs(4326, 3035, always_xy=True).transform(*CENTRE)
    grid = np.stack(np.meshgrid(np.arange(side + 1), np.arange(side + 1)), -1) - side / 2
    nodes = centre + CELL_M * (grid + random.uniform(-0.25, 0.25, grid.shape))
    across, along = _edges(nodes[:, :-1], nodes[:, 1:], random), _edges(nodes[:-1], nodes[1:], random)
    sides = [across[:-1], along[:, 1:], _turned(across[1:], nodes[1:, 1:]), _turned(along[:, :-1], nodes[1:, :-1])]
    ring = np.concatenate(sides, axis=2)
    rings = np.concatenate([ring, ring[:, :, :1]], axis=2).reshape(side * side, -1, 2)
    classes = random.integers(1, 11, side * side)
    return gpd.GeoDataFrame({"LULC_ID": classes}, geometry=shapely.polygons(rings), crs=3035)


def _edges(begin: NDArray[np.float64], end: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Points of edges without their ends, (row, column, point, 2)."""
    steps = (np.arange(EDGE_POINTS) / EDGE_POINTS)[:, np.newaxis]
    edges = begin[:, :, np.newaxis] + (end - begin)[:, :, np.newaxis] * steps
    edges[:, :, 1:] += random.uniform(-0.04, 0.04, edges[:, :, 1:].shape) * CELL_M
    return edges


def _turned(edges: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same edges from the other end."""
    return np.concatenate([end[:, :, np.newaxis], edges[:, :, :0:-1]], axis=2)


def tiles_around(count: int) -> list[Tile]:
    """So many tiles, half of them in each zone, those next to the centre first."""
    found = []
    for epsg, direction in ((32632, -1), (32633, 1)):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(*CENTRE)
        size = SIDE_PX * RESOLUTION_M
        rows = max(2, round((count / 2) ** 0.5))
        for number in range(count // 2):
            column, row = divmod(number, rows)
            west = round(x, -4) + direction * column * size - (size if direction < 0 else 0)
            south = round(y, -4) + (row - rows / 2) * size
            bounds = (west, south, west + size, south + size)
            found.append(Tile(f"{epsg}_{column}_{row}", epsg, bounds, SIDE_PX, SIDE_PX))
    return found


# ---- the two sides ----


def eolearn(path: Path, tile: Tile, folder: Path) -> None:
    """Label one tile with eo-learn's tasks."""
    load = VectorImportTask(POLYGONS, str(path))
    burn = VectorToRasterTask(
        POLYGONS, LULC, values_column="LULC_ID", raster_shape=(SIDE_PX, SIDE_PX), raster_dtype=np.uint8
    )
    permission = OverwritePermission.OVERWRITE_FEATURES
    save = SaveTask(str(folder), features=[POLYGONS, LULC], overwrite_permission=permission)
    save(burn(load(EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg))))), eopatch_folder=tile.name)


def ours(prepared: PreparedReference, tile: Tile, folder: Path) -> None:
    """Label one tile with the flow's function."""
    rasterise_tile(prepared, tile, FILES, str(folder / "eopatches" / tile.name), "npy.gz")


def label_all(prepared: PreparedReference, tiles: Sequence[Tile], folder: Path) -> None:
    """Label tiles one after the other."""
    for tile in tiles:
        ours(prepared, tile, folder)


def make_patch(tile: Tile, folder: Path) -> None:
    """An EOPatch that says it has been converted."""
    patch = folder / "eopatches" / tile.name
    EOPatch(bbox=BBox(tile.bounds, CRS(tile.epsg))).save(str(patch))
    (patch / "meta_info").mkdir()
    (patch / "meta_info" / "BATCH.json.gz").write_bytes(gzip.compress(json.dumps({}).encode()))


def make_patches(tiles: Sequence[Tile], folder: Path) -> None:
    """Make EOPatches anew, so that no turn replaces what the last one left."""
    shutil.rmtree(folder, ignore_errors=True)
    for tile in tiles:
        make_patch(tile, folder)


def check(tile: Tile, theirs: Path, mine: Path) -> None:
    """Labels are equal, and eo-learn reads ours."""
    a, b = EOPatch.load(str(theirs / tile.name)), EOPatch.load(str(mine / "eopatches" / tile.name))
    np.testing.assert_array_equal(a[LULC], b[LULC])
    touching = a[POLYGONS][a[POLYGONS].intersects(shapely.box(*tile.bounds))]
    assert len(touching) == len(b[POLYGONS])
    assert sorted(touching["LULC_ID"]) == sorted(b[POLYGONS]["LULC_ID"])  # eo-learn reads in the order of the index


Seconds = tuple[float, float]
"""CPU and wall-clock."""


def seconds(work: Callable[[], object]) -> Seconds:
    """Measure."""
    begin_cpu, begin = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begin_cpu, time.perf_counter() - begin


def prepare(path: Path, tiles: Sequence[Tile], folder: Path) -> PreparedReference:
    """As the flow does, once for all tiles."""
    return prepare_reference(Reference(file=str(path)), Storage(), tiles, folder)


def against_eolearn(path: Path, tiles: Sequence[Tile], sample: int, repeats: int, folder: Path) -> Iterator[str]:
    """Rows of the first table."""
    sampled = tiles[:: max(1, len(tiles) // sample)][:sample]
    theirs, mine = folder / "theirs", folder / "mine"
    turns: dict[str, list[Seconds]] = {"eo-learn": [], "ours": [], "prepare": []}
    for number in range(repeats):
        work = folder / f"work-{number}"
        prepared = prepare(path, tiles, work)  # the file is in the machine's memory from here on, for both sides
        turns["prepare"].append(seconds(partial(prepare, path, tiles, folder / f"again-{number}")))
        make_patches(tiles, mine)
        shutil.rmtree(theirs, ignore_errors=True)
        turns["ours"].append(seconds(partial(label_all, prepared, tiles, mine)))
        turns["eo-learn"].append(seconds(lambda: [eolearn(path, tile, theirs) for tile in sampled]))
    for tile in sampled:
        check(tile, theirs, mine)
    for name, kind in (("CPU", 0), ("wall", 1)):
        eo = [turn[kind] / len(sampled) for turn in turns["eo-learn"]]
        prepared_s = [turn[kind] for turn in turns["prepare"]]
        own = [turn[kind] / len(tiles) for turn in turns["ours"]]
        whole = [a + b / len(tiles) for a, b in zip(own, prepared_s, strict=True)]
        columns = [[1000 * x for x in eo], [1000 * x for x in own], prepared_s, [1000 * x for x in whole]]
        digits = (0, 1, 2, 1)
        cells = [spread(column, places) for column, places in zip(columns, digits, strict=True)]
        yield f"| {name} | {' | '.join(cells)} | {spread(ratios(eo, own), 1)} | {spread(ratios(eo, whole), 1)} |"


def growth(paths: dict[int, Path], repeats: int, folder: Path) -> Iterator[str]:
    """Rows of the second table: the same tiles with more and more polygons outside."""
    tiles = tiles_around(4)
    mine = folder / "growth"
    for polygons, path in paths.items():
        work = folder / f"growth-{polygons}"
        prepared = prepare(path, tiles, work)
        once = [seconds(partial(prepare, path, tiles, work / str(turn)))[0] for turn in range(repeats)]
        times = []
        for _ in range(repeats):
            make_patches(tiles, mine)
            times.append(1000 * seconds(partial(label_all, prepared, tiles, mine))[0] / len(tiles))
        yield f"| {polygons:,} | {spread(times, 1)} | {spread(once, 2)} |"


def peak_memory(path: Path, tiles: int) -> float:
    """Megabytes that a process of its own needs to prepare the file, less those that it has after its imports."""
    command = [sys.executable, __file__, "--memory-of", str(path), "--tiles", str(tiles)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(path: Path, tiles: int) -> None:
    """Print what :func:`peak_memory` reads."""
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        prepare(path, tiles_around(tiles), Path(folder))
    print(resident("VmHWM") - before)


def resident(kind: str) -> float:
    """Megabytes that this process has (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100, help="EOPatches")
    parser.add_argument("--sample", type=int, default=10, help="EOPatches that eo-learn labels")
    parser.add_argument("--polygons", type=int, default=1_000_000, help="polygons in the country")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # eo-learn reprojects for each patch, and says so
    logging.getLogger("fiona").setLevel(logging.CRITICAL)
    if options.memory_of:
        measure_memory(options.memory_of, options.tiles)
        return
    versions = f"shapely {shapely.__version__} (GEOS {shapely.geos_version_string}), pyogrio {pyogrio.__version__}"
    print(f"{machine()}; {versions}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = sorted({min(10_000, options.polygons), min(100_000, options.polygons), options.polygons})
        paths = {count: folder / f"country-{count}.gpkg" for count in counts}
        for count, path in paths.items():
            pyogrio.write_dataframe(country(round(count**0.5)), path)
        tiles = tiles_around(options.tiles)
        print(
            f"\n{options.tiles} tiles, {options.polygons:,} polygons, eo-learn on {options.sample} of the tiles;",
            end=" ",
        )
        print(f"{options.repeats} turns; goal of the ratio {GOAL:g}")
        print("| time | eo-learn, ms a tile | ours, ms a tile | prepare once, s | ours, prepare shared out", end=" ")
        print("| ratio | ratio, prepare shared out |", "|---|---|---|---|---|---|---|", sep="\n")
        for row in against_eolearn(paths[options.polygons], tiles, options.sample, options.repeats, folder):
            print(row, flush=True)
        print("\n| polygons in the file | CPU ms a tile | prepare, CPU s once |\n|---|---|---|")
        for row in growth(paths, options.repeats, folder):
            print(row, flush=True)
        memory = peak_memory(paths[options.polygons], options.tiles)
        print(f"\nPreparing {options.tiles} tiles takes at most {memory:,.0f} MB of memory")


if __name__ == "__main__":
    main()
