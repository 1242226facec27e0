"""The compiled loop with its buffers: copies arrays into V8's memory, runs the script, and copies results out."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localhub.engine.isolate import Isolate
from localhub.engine.loop import ARRAY_TYPES, LANES, Layout, loop_source
from localhub.engine.setup import Output

BUFFER_BYTES: Final = 16_000_000
"""All input and output buffers together: 10 to 100 thousand pixels of usual scripts."""
MAX_BLOCKS: Final = 8192
"""262,144 pixels: a call into V8 costs up to half a millisecond, as much as 15,000 pixels of a short script."""


class Program:
    """One loop for given datasets and outputs. Its buffers live in V8, as long as the isolate is open.

    Args:
        isolate: with the script loaded and prepared.
        layouts: of the datasets' samples.
        outputs: what to collect.
        reuse: keep sample objects from pixel to pixel.
    """

    def __init__(self, isolate: Isolate, layouts: Sequence[Layout], outputs: Sequence[Output], *, reuse: bool) -> None:
        for band in (band for layout in layouts for band in layout.bands):
            if band.dtype.name not in ARRAY_TYPES:
                raise ValueError(
                    f"Band '{band.name}' came as {band.dtype}; convert it to one of {', '.join(ARRAY_TYPES)}."
                )
        self.dtypes = [{band.name: band.dtype for band in layout.bands} for layout in layouts]
        self._isolate = isolate
        self._outputs = outputs
        self._layouts = layouts
        self._blocks = _blocks_for(sum(layout.pixel_bytes for layout in layouts), outputs)
        isolate.call("compile", loop_source(layouts, outputs, reuse=reuse, blocks=self._blocks))
        numbers = count()
        self._inputs = [
            {band.name: self._view("input", next(numbers), band.dtype, layout.samples) for band in layout.bands}
            for layout in layouts
        ]
        self._results = [self._view("output", k, output.dtype, output.bands) for k, output in enumerate(outputs)]

    def run(self, bands: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Evaluate every pixel.

        Args:
            bands: for each dataset, band → array (samples, height, width).

        Returns:
            Output id → array (bands, height, width).
        """
        height, width = self._common_shape(bands)
        pixels = height * width
        pairs = [
            (given[name].reshape(layout.samples, pixels), view)
            for layout, given, views in zip(self._layouts, bands, self._inputs, strict=True)
            for name, view in views.items()
        ]
        results = {output.id: np.empty((output.bands, pixels), output.dtype) for output in self._outputs}
        for start in range(0, pixels, self._blocks * LANES):
            chunk = slice(start, min(start + self._blocks * LANES, pixels))
            for planes, view in pairs:
                _to_blocks(planes[:, chunk], view)
            self._isolate.call("run", chunk.stop - chunk.start)
            for output, view in zip(self._outputs, self._results, strict=True):
                _from_blocks(view, results[output.id][:, chunk])
        return {output.id: results[output.id].reshape(output.bands, height, width) for output in self._outputs}

    def wrong_lengths(self) -> dict[str, int]:
        """Output id → pixels whose array had another length than declared; only those outputs where there were any."""
        counts = json.loads(self._isolate.call("wrongLengths"))
        return {output.id: count for output, count in zip(self._outputs, counts, strict=True) if count}

    def _view(self, method: str, index: int, dtype: np.dtype[Any], planes: int) -> NDArray[Any]:
        """Array (block, plane, lane) over V8's memory, without a copy; the loop's closure keeps the memory alive."""
        if planes == 0:
            return np.empty((self._blocks, 0, LANES), dtype)
        return np.frombuffer(self._isolate.call(method, index), dtype).reshape(self._blocks, planes, LANES)

    def _common_shape(self, bands: Sequence[Mapping[str, NDArray[Any]]]) -> tuple[int, int]:
        """Height and width of every band, after a check of all."""
        found = [
            (layout.samples, given[band.name].shape)
            for layout, given in zip(self._layouts, bands, strict=True)
            for band in layout.bands
        ]
        height, width = found[0][1][-2:]
        for samples, shape in found:
            if shape != (samples, height, width):
                raise ValueError(f"Bands must have the shape ({samples} samples, height, width); {shape} came.")
        return height, width


def _blocks_for(input_bytes: int, outputs: Sequence[Output]) -> int:
    output_bytes = sum(output.bands * output.dtype.itemsize for output in outputs)
    return max(1, min(MAX_BLOCKS, BUFFER_BYTES // (LANES * (input_bytes + output_bytes))))


def _to_blocks(planes: NDArray[Any], view: NDArray[Any]) -> None:
    """Copy (plane, pixel) into (block, plane, lane); the last block may stay partly unused."""
    whole = planes.shape[1] // LANES
    _runs(view)[:whole] = _runs(planes[:, : whole * LANES]).T
    rest = planes[:, whole * LANES :]
    if rest.shape[1]:
        view[whole, :, : rest.shape[1]] = rest


def _from_blocks(view: NDArray[Any], planes: NDArray[Any]) -> None:
    """Copy (block, plane, lane) into (plane, pixel)."""
    whole = planes.shape[1] // LANES
    _runs(planes[:, : whole * LANES])[:] = _runs(view)[:whole].T
    rest = planes[:, whole * LANES :]
    if rest.shape[1]:
        rest[:] = view[whole, :, : rest.shape[1]]


def _runs(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as runs of LANES pixels, (…, runs): NumPy moves a run faster than its numbers one by one."""
    runs = array.view(f"V{LANES * array.itemsize}")
    return runs[:, :, 0] if array.ndim == 3 else runs
