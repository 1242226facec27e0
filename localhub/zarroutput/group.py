"""A request's group in its bucket: the folder is taken at analysis, and each tile adds its chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localhub.engine import EvalscriptError, Output
from localhub.errors import RequestFailed
from localhub.objectstore import Access, Bucket
from localhub.payload import CreateRequest, ZarrOutput
from localhub.raster import RasterStack
from localhub.results import ResultFile
from localhub.zarroutput.compression import DEFAULT, decoded, encoded
from localhub.zarroutput.documents import ATTRIBUTES, Period, group_attributes, group_objects
from localhub.zarroutput.frame import check_chunks, first_pixel, frame_of
from localhub.zarroutput.parameters import ArrayLayout
from tasks.grid import Tile


@dataclass(frozen=True, slots=True)
class ZarrGroup:
    """Where a request's group is and how its arrays are stored."""

    request_id: str
    bucket: Bucket
    prefix: str
    """What all keys of the group start with: empty, or ending in a slash."""
    output: ZarrOutput
    layouts: tuple[ArrayLayout, ...]
    period: Period

    @property
    def url(self) -> str:
        """Address of the group."""
        return f"s3://{self.bucket.name}/{self.prefix}".rstrip("/")

    def write(self, tiles: Sequence[Tile]) -> None:
        """Take the folder: write all of the group but its chunks. Again for the same request is no harm.

        Raises:
            RequestFailed: the folder holds files, or the tiles do not fit into one group.
            StoreError: the bucket cannot be read or written.
        """
        try:
            frame = frame_of(tiles, bottom_left=self.output.bottom_left)
            check_chunks(frame, tiles, self.layouts)
        except ValueError as error:
            raise RequestFailed(str(error)) from error
        self._refuse_occupied()
        attributes = group_attributes(frame, self.period, self.request_id, datetime.now(UTC))
        attributes |= self.output.group.custom_attributes
        for key, content in group_objects(frame, self.layouts, self.period, attributes).items():
            self.bucket.write(self.prefix + key, content)

    def _refuse_occupied(self) -> None:
        """Refuse a folder with files other than the request's own: its metadata, and its group from before a crash."""
        keys = (key for key in self.bucket.keys(self.prefix) if self.request_id not in key.removeprefix(self.prefix))
        foreign = next(keys, None)
        if foreign is not None and not self._is_own():
            raise RequestFailed(
                f"File s3://{self.bucket.name}/{foreign} exists already; a Zarr group needs a folder without files. "
                "Choose another path, or put <requestId> into it."
            )

    def _is_own(self) -> bool:
        key = self.prefix + ATTRIBUTES
        return key in self.bucket.keys(key) and self.request_id.encode() in self.bucket.read(key)

    def chunk_files(self, tile: Tile, stack: RasterStack, folder: Path) -> list[ResultFile]:
        """Write a tile's chunks below `folder`, but for those that hold the fill value only. Close the stack first.

        Raises:
            EvalscriptError: an output has not one band, which a script may decide as late as here.
            StoreError: the group cannot be read.
        """
        for layout in self.layouts:
            check_output(stack.outputs[layout.name], layout)
        origin = (self._first_coordinate("x"), self._first_coordinate("y"))
        first = first_pixel(origin, tile, bottom_left=self.output.bottom_left)
        return [
            self._written(number, layout, index, values, folder)
            for number, layout in enumerate(self.layouts)
            for index, values in _chunks(stack, tile, layout, first, bottom_left=self.output.bottom_left)
        ]

    def _first_coordinate(self, name: str) -> float:
        chunk = self.bucket.read(f"{self.prefix}{name}/0")
        return float(np.frombuffer(decoded(chunk, DEFAULT), "<f8")[0])

    def _written(
        self, number: int, layout: ArrayLayout, index: tuple[int, int], values: NDArray[Any], folder: Path
    ) -> ResultFile:
        name = f"0.{index[0]}.{index[1]}"
        path = folder / f"{number}.{name}"
        path.write_bytes(encoded(values, layout.compressor))
        return ResultFile(layout.name, f"{self.prefix}{layout.name}/{name}", path)


def group_of(request: CreateRequest, request_id: str, access: Access) -> ZarrGroup:
    """Return the group that a request with zarr output delivers."""
    if not isinstance(request.output, ZarrOutput):
        raise TypeError(f"Output of type {request.output.type} delivers no group.")
    template = request.template
    prefix = template.key.replace("<requestId>", request_id)
    bucket = Bucket(template.bucket, access)
    return ZarrGroup(request_id, bucket, prefix, request.output, request.arrays, _period(request))


def _period(request: CreateRequest) -> Period:
    ranges = [data.data_filter.time_range for data in request.process_request.input.data]
    return Period(min(wanted.from_ for wanted in ranges), max(wanted.to for wanted in ranges))


def check_output(output: Output, layout: ArrayLayout) -> None:
    """Check that an array can take an output of the script.

    Raises:
        EvalscriptError: it has several bands, or a sample type that the array does not hold.
    """
    if output.bands != 1:
        raise EvalscriptError(f"Output '{output.id}' has {output.bands} bands; zarr/array takes outputs of one band.")
    if not layout.holds(output.sample_type):
        raise EvalscriptError(
            f"Output '{output.id}' has the sampleType {output.sample_type}, which an array of dtype {layout.dtype} "
            "does not hold; change one of them."
        )


def _chunks(
    stack: RasterStack, tile: Tile, layout: ArrayLayout, first: tuple[int, int], *, bottom_left: bool
) -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
    """Yield row and column, among the chunks of the array, of a tile's chunks, and their values as they are stored."""
    for row, column, values in stack.blocks(layout.name, layout.chunk_height, layout.chunk_width):
        chunk = np.ascontiguousarray(values[0, ::-1] if bottom_left else values[0], layout.dtype)
        if not _is_fill(chunk, layout.fill):
            down = tile.height - layout.chunk_height - row if bottom_left else row
            yield ((first[0] + down) // layout.chunk_height, (first[1] + column) // layout.chunk_width), chunk


def _is_fill(chunk: NDArray[Any], fill: NDArray[Any]) -> bool:
    return bool(np.isnan(chunk).all() if np.isnan(fill) else (chunk == fill).all())
