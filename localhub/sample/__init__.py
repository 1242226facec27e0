"""The synthetic sample archive: a year of Sentinel-2-like scenes of an invented landscape, and its land cover.

Everything is drawn from a seed, so that two builds are the same, and everything says that it is synthetic.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from localhub.sample.acquisitions import Acquisition, acquisitions
from localhub.sample.landscape import Extent, build_landscape
from localhub.sample.render import Stage, cloud_share, render, set_stage
from localhub.sample.writing import README, write_band, write_items, write_reference

__all__ = ["SAMPLE_AREA", "SAMPLE_PERIOD", "SampleError", "SampleInfo", "build_sample"]

SAMPLE_AREA = (15.795, 46.335, 16.02, 46.475)
"""West, south, east, north in degrees: meets four tiles of tiling grid 1 (33TWM_6_5, 6_6, 7_5 and 7_6), all covered."""

SAMPLE_PERIOD = (date(2019, 1, 1), date(2019, 12, 31))
"""First and last day of the scenes' year."""

SAMPLE_EXTENT = Extent(558900, 5151100, 22200)
"""Four tiles of 10 km and a margin of 1.1 km around them."""

_VERSION = 2
"""To be raised with every change of what a seed gives."""
_MARKER = ".sample"
_LANDSCAPE_SHARE = 0.15
"""Of the time of a build."""


class SampleError(RuntimeError):
    """The sample cannot be written where it was asked for."""


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """A complete sample."""

    folder: Path
    """The archive: STAC items below `scenes`, `reference.gpkg`, `README.txt`."""
    reference: Path
    """Land-cover polygons."""
    acquisitions: int
    """Each is a scene of both collections."""
    size_bytes: int
    """Of all files."""
    reused: bool
    """It was there already."""


def build_sample(
    folder: Path,
    *,
    seed: int = 7,
    progress: Callable[[float], None] | None = None,
    extent: Extent = SAMPLE_EXTENT,
    count: int | None = None,
) -> SampleInfo:
    """Write the sample into `folder`, or find that it is there already.

    It is built beside `folder` and moved there when it is complete. A sample of another seed or version, or one that
    lost files, is replaced.

    Args:
        folder: made by this function; may be empty or a sample.
        seed: of everything that is random.
        progress: is told the share that is done, from 0 to 1, now and then, from the calling thread.
        extent: the square to fill, for a smaller sample than usual.
        count: only the first acquisitions of the year.

    Raises:
        SampleError: `folder` holds something else.
    """
    folder = folder.absolute()
    report = progress or (lambda _share: None)
    recipe = {
        "version": _VERSION,
        "seed": seed,
        "west": extent.west,
        "north": extent.north,
        "size_m": extent.size_m,
        "count": count,
    }
    reused = _is_complete(folder, recipe)
    if not reused:
        _refuse_foreign(folder)
        with _replacing(folder) as target:
            _build(target, seed, extent, acquisitions(seed, count), report)
            (target / _MARKER).write_text(_certificate(target, recipe))
    report(1.0)
    files = _files(folder)
    scenes = sum(name.endswith("sentinel-2-l1c.json") for name in files)
    return SampleInfo(folder, folder / "reference.gpkg", scenes, sum(files.values()), reused)


def _files(folder: Path) -> dict[str, int]:
    """Size in bytes of every file but the marker, by its path below `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MARKER
    }


def _is_complete(folder: Path, recipe: dict[str, Any]) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text() == _certificate(folder, recipe)


def _certificate(folder: Path, recipe: dict[str, Any]) -> str:
    """What the marker of a complete sample holds."""
    return json.dumps(recipe | {"files": _files(folder)})


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SampleError(f"The sample cannot be written to {folder}: it holds something else. Give a new folder.")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` if the block ends well, and is removed if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        target = Path(scratch) / "new"
        target.mkdir()
        yield target
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        target.rename(folder)


def _build(folder: Path, seed: int, extent: Extent, passes: list[Acquisition], report: Callable[[float], None]) -> None:
    landscape = build_landscape(seed, extent)
    report(_LANDSCAPE_SHARE / 2)
    stage = set_stage(landscape, seed)
    (folder / "README.txt").write_text(README)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # numpy and GDAL release the lock
        tasks = [pool.submit(_write_acquisition, folder, stage, entry, seed, extent) for entry in passes]
        write_reference(folder / "reference.gpkg", landscape)
        for done, task in enumerate(as_completed(tasks), start=1):
            task.result()
            report(_LANDSCAPE_SHARE + (1 - _LANDSCAPE_SHARE) * done / len(tasks))


def _write_acquisition(folder: Path, stage: Stage, acquisition: Acquisition, seed: int, extent: Extent) -> None:
    scene = folder / "scenes" / acquisition.name
    scene.mkdir(parents=True)
    for band, values in render(stage, acquisition, seed):
        write_band(scene / f"{band}.tif", values, extent)
        if band == "SCL":
            write_items(scene, acquisition, extent, cloud_share(stage, acquisition, values))
