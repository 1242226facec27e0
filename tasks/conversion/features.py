"""A tile's numbers become features: values, axes, dates and masks, part by part.

The numbers of a feature are held as they were delivered; values exist for a few rows at a time, while they are written.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.arrayfiles import ArraySource
from tasks.conversion.delivery import Dates, Delivery
from tasks.conversion.mapping import FeatureMapping, FeatureRule
from tasks.conversion.planes import Planes, Rooms
from tasks.errors import TileError
from tasks.grid import Tile

FILES_AT_ONCE = 3
"""Of one tile: while one is decoded, others arrive from the network."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature that is written as it is made.

    Attributes:
        feature_type: eo-learn's word, which is also the folder's name.
        name: its name.
        source: its values.
    """

    feature_type: str
    name: str
    source: ArraySource


def decode(
    numbers: NDArray[Any], rule: FeatureRule, out: NDArray[Any] | None = None, unseen: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Turn delivered numbers into a feature's values: ``number * scale + offset``, 0 where there is no data.

    Args:
        numbers: any shape; integers are scaled in double precision.
        rule: scale, offset, no-data number and type of the result.
        out: where the values go; an array of that shape and the rule's type, not that of the numbers.
        unseen: true where values do not count and need not fit the type; of a shape that fits the numbers'.

    Raises:
        ValueError: a value does not fit the rule's type.
    """
    result = np.empty(numbers.shape, rule.dtype) if out is None else out
    values = _scaled(numbers, rule, result)
    missing = None if numbers.dtype.kind in "iu" else ~np.isfinite(values)
    if rule.no_data is not None:
        missing = numbers == rule.no_data if missing is None else missing | (numbers == rule.no_data)
    if missing is not None and missing.any():
        values = np.where(missing, values.dtype.type(0), values)
    if result.dtype.kind != "f" and values.dtype.kind == "f":
        values = np.rint(values)
    if result.dtype.kind != "f" and not np.can_cast(values.dtype, result.dtype):
        values = values if unseen is None else np.where(unseen, values.dtype.type(0), values)
        _check_range(values, result.dtype)
    if values is not result:
        np.copyto(result, values, casting="unsafe")
    return result


def _scaled(numbers: NDArray[Any], rule: FeatureRule, result: NDArray[Any]) -> NDArray[Any]:
    """Give ``number * scale + offset``, in ``result`` if that is of floats, whose last operation rounds to its type."""
    if (rule.scale, rule.offset) == (1.0, 0.0):
        return numbers
    divisor = _divisor(numbers.dtype, rule.scale) if rule.offset == 0.0 and result.dtype == np.float32 else None
    if divisor is not None:
        np.divide(numbers, divisor, out=result, dtype=np.float32)
        return result
    precise = np.result_type(numbers, 1.0)  # double for integers
    values = result if result.dtype.kind == "f" else np.empty(numbers.shape, precise)
    if rule.offset == 0.0:
        np.multiply(numbers, rule.scale, out=values, dtype=precise, casting="unsafe")
        return values
    products = np.multiply(numbers, rule.scale, dtype=precise)
    np.add(products, rule.offset, out=values, dtype=precise, casting="unsafe")
    return values


@cache
def _divisor(dtype: np.dtype[Any], scale: float) -> np.float32 | None:
    """What numbers may be divided by in single precision, twice as fast; None unless each gets the same value so."""
    if dtype.kind not in "iu" or dtype.itemsize > 2 or not 1e-9 < abs(scale) < 1:
        return None
    limits, divisor = np.iinfo(dtype), np.float32(round(1 / scale))
    every = np.arange(limits.min, limits.max + 1).astype(dtype)
    same = np.array_equal(np.divide(every, divisor, dtype=np.float32), (every * scale).astype(np.float32))
    return divisor if same else None


def _check_range(values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    limits, low, high = np.iinfo(dtype), values.min(), values.max()
    if low < limits.min or high > limits.max:
        raise ValueError(f"values from {low} to {high} do not fit {dtype}; change the rule's scale, offset or dtype")


def read_quality(delivery: Delivery, mapping: FeatureMapping, dates: Dates) -> Planes | None:
    """The quality output as delivered, its dates in the files' order; None without one, or without dates."""
    if mapping.quality_output is None or not dates.order:
        return None
    output = mapping.quality_output
    sample_type = next((rule.sample_type for rule in mapping.features if output in rule.outputs), None)
    return delivery.planes(output, _rooms(delivery, mapping, 1), len(dates.order), sample_type)


def check_nothing_seen(delivery: Delivery, mapping: FeatureMapping) -> None:
    """Check that files without dates are those of a script that saw no scene: no quality, the same for all pixels.

    Raises:
        TileError: there is data, and its dates are not known.
    """
    outputs = {output for rule in mapping.features if rule.temporal for output in rule.outputs}
    for output in sorted(outputs) if mapping.quality_output is None else [mapping.quality_output]:
        planes = delivery.planes(output, _rooms(delivery, mapping, 1))
        for layer in planes.numbers:
            same = np.broadcast_to(layer[0, 0], layer.shape)
            is_quality = output == mapping.quality_output
            if (layer > 0).any() if is_quality else not np.array_equal(layer, same, equal_nan=True):
                raise delivery.fault(
                    delivery.delivered.outputs[output],
                    f"has data in its {len(planes.numbers)} bands, but {delivery.delivered.userdata} names no dates; "
                    "let the script's updateOutputMetadata return them as timestamps",
                )
            planes.release()
        planes.forget(slice(None))


def _rooms(delivery: Delivery, mapping: FeatureMapping, files: int) -> Rooms:
    return Rooms(delivery.pool, delivery.scratch, files, max(len(rule.outputs) for rule in mapping.features))


def features(
    delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: Planes | None
) -> Generator[Feature, None, None]:
    """Give every feature of a tile with data; the files of the next one are decoded meanwhile, until it is closed.

    Raises:
        TileError: a file is missing, damaged, or not the tile's.
    """
    with _Loader(delivery, mapping, dates, quality) as loader:
        for place, rule in enumerate(mapping.features):
            source = _source(delivery.tile, rule, loader.planes(place), dates, quality)
            yield Feature(rule.feature_type, rule.name, loader.ahead(place, source))
    yield from _quality_masks(mapping, dates, quality)


def empty_features(tile: Tile, mapping: FeatureMapping, dates: Dates) -> Generator[Feature, None, None]:
    """Give every feature of a tile without data: zeros, as many bands as the rule knows."""
    shape = (len(dates.timestamps), tile.height, tile.width)
    for rule in mapping.features:
        rule_shape = (*shape[0 if rule.temporal else 1 :], rule.depth)
        yield Feature(rule.feature_type, rule.name, _zeros(rule_shape, np.dtype(rule.dtype), temporal=rule.temporal))
    if mapping.quality_output is not None:
        for name in ("IS_DATA", "IS_VALID"):
            yield Feature("mask", name, _zeros((*shape, 1), np.dtype(bool), temporal=True))


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], *, temporal: bool) -> ArraySource:
    return ArraySource(shape, dtype, temporal, lambda *part: part[-1].fill(0))


class _Loader:
    """Reads the files of each feature in turn, those of the next one when the present one has been written by half.

    By then the present one has given half of its memory back. A context manager: when it is left, nothing is at work.
    """

    def __init__(self, delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> None:
        self._delivery, self._mapping, self._dates, self._quality = delivery, mapping, dates, quality
        self._threads = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="load")
        self._lock = threading.Lock()
        self._begun: list[tuple[Rooms, list[Future[Planes]]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def planes(self, place: int) -> list[Planes]:
        """The files of a feature by its place in the mapping, when all of them are there."""
        self._begin(place)
        rooms, futures = self._begun[place]
        self._begun[place] = rooms, []
        planes = [future.result() for future in futures]
        rooms.settle()
        return planes

    def ahead(self, place: int, source: ArraySource) -> ArraySource:
        """The same source; once it is half written, the next feature is begun."""
        half = len(self._dates.order) // 2 if source.temporal else 0

        def finished(frame: int) -> None:
            source.finished(frame)
            if frame == half:
                self._begin(place + 1)

        return replace(source, finished=finished)

    def _begin(self, place: int) -> None:
        with self._lock:
            if len(self._begun) <= place < len(self._mapping.features):
                rule = self._mapping.features[place]
                rooms = _rooms(self._delivery, self._mapping, sum(not self._is_there(one) for one in rule.outputs))
                futures = [self._threads.submit(self._load, rule, output, rooms) for output in rule.outputs]
                self._begun.append((rooms, futures))

    def _is_there(self, output: str) -> bool:
        return self._quality is not None and output == self._mapping.quality_output

    def _load(self, rule: FeatureRule, output: str, rooms: Rooms) -> Planes:
        if self._quality is not None and self._is_there(output):
            return self._quality
        dates = len(self._dates.order) if rule.temporal else None
        return self._delivery.planes(output, rooms, dates, rule.sample_type, per_date=rule.bands_per_date)


def _source(
    tile: Tile, rule: FeatureRule, planes: Sequence[Planes], dates: Dates, quality: Planes | None
) -> ArraySource:
    """The values of a feature."""
    frames = _Frames(tile, rule, planes, dates, quality)
    time = (len(dates.order),) if rule.temporal else ()
    bands = len(planes) * rule.bands_per_date if rule.temporal else sum(len(file.numbers) for file in planes)
    shape = (*time, tile.height, tile.width, bands)
    return ArraySource(shape, np.dtype(rule.dtype), rule.temporal, frames.read, frames.view, frames.finished)


class _Frames:
    """The values of a feature, frame by frame; the one place where GeoTIFF's axes become eo-learn's.

    Files are (date, row, column), or have several bands for each date, and become (time, height, width, band), time
    ascending, the bands of all files in a row. Files of timeless features are (band, row, column) and become (height,
    width, band) likewise.

    Args:
        tile: of the error messages.
        rule: what the numbers mean.
        planes: numbers of the files.
        dates: of the files.
        quality: where it is 0, values with dates are; None where there is none.
    """

    def __init__(
        self, tile: Tile, rule: FeatureRule, planes: Sequence[Planes], dates: Dates, quality: Planes | None
    ) -> None:
        self._tile, self._rule, self._planes, self._dates = tile, rule, planes, dates
        self._quality = quality if rule.temporal else None
        self._dtype = np.result_type(*(file.numbers for file in planes))
        self._as_delivered = self._dtype == rule.dtype and self._dtype.kind in "iu" and rule.keeps_numbers
        self._used = set(planes) if self._quality is None else {*planes, self._quality}
        self._own = set(planes) - {quality}  # which is needed by all features

    def read(self, frame: int, first: int, last: int, rows: NDArray[Any]) -> None:
        """Make rows of a frame."""
        layers = list(self._layers(frame))
        if len(layers) == 1 and not self._as_delivered:
            numbers = layers[0][first:last, :, np.newaxis]
        else:
            numbers = rows if self._as_delivered else np.empty(rows.shape, self._dtype)
            for band, layer in enumerate(layers):
                numbers[:, :, band] = layer[first:last]
        unseen = None
        if self._quality is not None:
            unseen = ~(self._quality.numbers[self._dates.order[frame], first:last] > 0)  # as IS_DATA has it, NaN too
            unseen = unseen if unseen.any() else None
        if not self._as_delivered:
            _decode(self._tile, numbers, self._rule, rows, unseen)
        if unseen is not None:
            rows[unseen] = 0
        for file in self._used:
            file.release()

    def view(self, frame: int) -> NDArray[Any] | None:
        """Give a frame where it lies in a file's numbers as it is to be stored."""
        if not self._as_delivered or self._quality is not None:
            return None
        layers = list(self._layers(frame))
        return layers[0][:, :, np.newaxis] if len(layers) == 1 else None

    def finished(self, frame: int) -> None:
        """Give back the memory of a frame."""
        for file in self._own:
            file.forget(self._positions(frame))
        for file in self._used:
            file.release()

    def _layers(self, frame: int) -> Iterator[NDArray[Any]]:
        return (layer for file in self._planes for layer in file.numbers[self._positions(frame)])

    def _positions(self, frame: int) -> slice:
        if not self._rule.temporal:
            return slice(None)
        return self._rule.positions(self._dates.order[frame], len(self._dates.order))


def _decode(
    tile: Tile, numbers: NDArray[Any], rule: FeatureRule, rows: NDArray[Any], unseen: NDArray[Any] | None
) -> None:
    try:
        decode(numbers, rule, rows, None if unseen is None else unseen[:, :, np.newaxis])
    except ValueError as error:
        raise TileError(f"Tile {tile.name}: feature {rule.name}: {error}.") from error


def _quality_masks(mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> Iterator[Feature]:
    if mapping.quality_output is None or quality is None:
        return

    def mask(name: str, true_for: Callable[[NDArray[Any]], NDArray[Any]]) -> Feature:
        def read(frame: int, first: int, last: int, rows: NDArray[Any]) -> None:
            rows[...] = true_for(quality.numbers[dates.order[frame], first:last, :, np.newaxis])
            quality.release()

        shape = (*quality.numbers.shape, 1)
        return Feature("mask", name, ArraySource(shape, np.dtype(bool), temporal=True, read=read))

    yield mask("IS_DATA", lambda numbers: numbers > 0)
    yield mask("IS_VALID", lambda numbers: numbers == 1)
