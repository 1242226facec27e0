"""One request of the Process API, from scenes to encoded images. Runs in a worker process."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from localhub.archive import ArchiveSource
from localhub.engine import Evalscript, Output
from localhub.engine.errors import invalid, ran_longer_than, stopped
from localhub.pricing import process_cost
from localhub.process_payload import Format, ProcessBody, Response
from localhub.raster import RasterStack
from localhub.render import check_bands, notes_on, open_archive, prepare, reads_of, render, select

LIMIT_SECONDS = 60.0
"""Time that a request may take. Ours: the service's is not published."""
BLOCK_BYTES = 32 * 2**20
"""Samples and results that are held at a time; small, because the time is looked at between blocks."""

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/tiff": "tif", "application/json": "json"}

Write = Callable[[int, Mapping[str, NDArray[Any]]], None]
"""Takes the first row of a block, and its values by output."""

_HELD = {
    "image/png": ({"AUTO", "UINT8", "UINT16"}, {1, 2, 3, 4}),
    "image/jpeg": ({"AUTO", "UINT8"}, {1, 3}),
}
"""Sample types and numbers of bands that a format holds (the service's page "Evalscript V3", sampleType and bands)."""


@dataclass(frozen=True, slots=True)
class ProcessTask:
    """What a worker needs to know about a request."""

    body: ProcessBody
    responses: tuple[Response, ...]
    """The files to make."""
    archive: ArchiveSource
    reading: str
    """Requests with the same one see the same scenes."""
    scratch: Path
    seconds: float = LIMIT_SECONDS


@dataclass(frozen=True, slots=True)
class File:
    """One file of the answer."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Processed:
    """A request that was processed."""

    files: tuple[File, ...]
    cost_pu: float
    notes: tuple[str, ...]
    """What the script's author should know, a line an output."""


def process(task: ProcessTask) -> Processed:
    """Compute one request.

    Raises:
        EvalscriptError: the script is wrong, failed, or took too long; or a format cannot hold its output.
        UnknownCollection: the archive has no scene of the collection.
        ArchiveError: a scene cannot be read.
    """
    end = time.monotonic() + task.seconds
    collections, tile = task.body.input.data, task.body.tile
    archive = open_archive(task.archive, task.reading)
    with (
        Evalscript(task.body.evalscript, timeout_seconds=task.seconds) as script,
        tempfile.TemporaryDirectory(dir=task.scratch) as folder,
    ):
        check_bands(script.setup, collections, archive)
        selections = select(archive, collections, tile)
        formats = {response.identifier: response.format for response in task.responses}
        plan = prepare(script, selections, formats.keys() - {"userdata"})
        stack = RasterStack(Path(folder), tile, _stored(plan.outputs, formats))
        with stack:
            write = _until(end, task.seconds, stack)
            render(script, plan, selections, tile, BLOCK_BYTES, write, Path(folder))
        files = tuple(_file(response, stack, script) for response in task.responses)
        cost_pu = process_cost(tile, reads_of(plan), float_output=plan.has_floats)
        return Processed(files, cost_pu, notes_on(script, plan))


def _stored(outputs: Iterable[Output], formats: Mapping[str, Format]) -> list[Output]:
    """Check that each output fits its format; only TIFFs tell a no-data value."""
    return [_fitting(output, formats[output.id]) for output in outputs]


def _fitting(output: Output, image: Format) -> Output:
    if image.type not in _HELD:
        return output
    types, bands = _HELD[image.type]
    if output.sample_type not in types or output.bands not in bands:
        raise invalid(
            f"Output '{output.id}' has {output.bands} bands of {output.sample_type}, which {image.type} does not hold; "
            f"it holds {', '.join(map(str, sorted(bands)))} of {', '.join(sorted(types))}. Choose image/tiff."
        )
    return replace(output, nodata_value=None)


def _until(end: float, seconds: float, stack: RasterStack) -> Write:
    """Return the stack's `write` with a look at the time."""

    def write(first_row: int, values: Mapping[str, NDArray[Any]]) -> None:
        if time.monotonic() > end:
            raise stopped(ran_longer_than(seconds))
        stack.write(first_row, values)

    return write


def _file(response: Response, stack: RasterStack, script: Evalscript) -> File:
    name = f"{response.identifier}.{EXTENSIONS[response.format.type]}"
    if response.identifier == "userdata":
        return File(name, json.dumps(script.user_data()).encode())
    driver, options = _encoding(response.format)
    return File(name, stack.encode(response.identifier, driver, **options))


def _encoding(image: Format) -> tuple[str, dict[str, Any]]:
    """Return GDAL's driver and its options. No predictor: readers that the vendor's client uses lack one for floats."""
    match image.type:
        case "image/png":
            return "PNG", {"ZLEVEL": 1}
        case "image/jpeg":
            return "JPEG", {"QUALITY": max(1, image.quality)}
    return "GTiff", {"COMPRESS": "DEFLATE", "ZLEVEL": 1, "INTERLEAVE": "PIXEL"}
