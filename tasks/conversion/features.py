"""A tile's numbers become features: values, axes, dates and masks, part by part.

The numbers of a feature are held as they were delivered; values exist for a few rows at a time, while they are written.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.arrayfiles import ArraySource
from tasks.conversion.delivery import Dates, Delivery
from tasks.conversion.mapping import FeatureMapping, FeatureRule
from tasks.conversion.planes import Planes
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


def decode(numbers: NDArray[Any], rule: FeatureRule) -> NDArray[Any]:
    """Turn delivered numbers into a feature's values: ``number * scale + offset``, 0 where there is no data.

    Args:
        numbers: any shape; integers are scaled in double precision.
        rule: scale, offset, no-data number and type of the result.

    Raises:
        ValueError: a value does not fit the rule's type.
    """
    dtype = np.dtype(rule.dtype)
    values = _scaled(numbers, rule, dtype)
    missing = None if numbers.dtype.kind in "iu" else ~np.isfinite(values)
    if rule.no_data is not None:
        missing = numbers == rule.no_data if missing is None else missing | (numbers == rule.no_data)
    if missing is not None and missing.any():
        values = np.where(missing, values.dtype.type(0), values)
    if dtype.kind != "f" and values.dtype.kind == "f":
        values = np.rint(values)
    if dtype.kind != "f" and not np.can_cast(values.dtype, dtype):
        _check_range(values, dtype)
    return values.astype(dtype, copy=False)


def _scaled(numbers: NDArray[Any], rule: FeatureRule, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give ``number * scale + offset``; the last operation rounds to the result's type without another array."""
    if (rule.scale, rule.offset) == (1.0, 0.0):
        return numbers
    precise = np.result_type(numbers, 1.0)  # double for integers
    result = np.empty(numbers.shape, dtype if dtype.kind == "f" else precise)
    if rule.offset == 0.0:
        np.multiply(numbers, rule.scale, out=result, dtype=precise, casting="unsafe")
        return result
    products = np.multiply(numbers, rule.scale, dtype=precise)
    np.add(products, rule.offset, out=result, dtype=precise, casting="unsafe")
    return result


def _check_range(values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    limits, low, high = np.iinfo(dtype), values.min(), values.max()
    if low < limits.min or high > limits.max:
        raise ValueError(f"values from {low} to {high} do not fit {dtype}; change the rule's scale, offset or dtype")


def read_quality(delivery: Delivery, mapping: FeatureMapping, dates: Dates) -> Planes | None:
    """The quality output as delivered, its dates in the files' order; None without one, or without dates."""
    if mapping.quality_output is None or not dates.order:
        return None
    return delivery.planes(mapping.quality_output, len(dates.order), together=_most_outputs(mapping))


def _most_outputs(mapping: FeatureMapping) -> int:
    """Outputs of the largest feature; it decides for all files of the tile whether they go to memory or to scratch."""
    return max(len(rule.outputs) for rule in mapping.features)


def features(delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> Iterator[Feature]:
    """Give every feature of a tile with data; the files of the next one are decoded meanwhile.

    Raises:
        TileError: a file is missing, damaged, or not the tile's.
    """
    with _Loader(delivery, mapping, dates, quality) as loader:
        for place, rule in enumerate(mapping.features):
            source = _source(delivery.tile, rule, loader.planes(place), dates, quality)
            yield Feature(rule.feature_type, rule.name, loader.ahead(place, source))
            del source  # its memory is free before the next one is waited for
    yield from _quality_masks(mapping, dates, quality)


def empty_features(tile: Tile, mapping: FeatureMapping, dates: Dates) -> Iterator[Feature]:
    """Give every feature of a tile without data: zeros; a timeless feature gets one band per output."""
    shape = (len(dates.timestamps), tile.height, tile.width)
    for rule in mapping.features:
        rule_shape = (*shape[0 if rule.temporal else 1 :], len(rule.outputs) * rule.bands_per_date)
        yield Feature(rule.feature_type, rule.name, _zeros(rule_shape, np.dtype(rule.dtype), temporal=rule.temporal))
    if mapping.quality_output is not None:
        for name in ("IS_DATA", "IS_VALID"):
            yield Feature("mask", name, _zeros((*shape, 1), np.dtype(bool), temporal=True))


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], *, temporal: bool) -> ArraySource:
    frame = shape[1:] if temporal else shape
    return ArraySource(shape, dtype, temporal, lambda _, first, last: np.zeros((last - first, *frame[1:]), dtype))


class _Loader:
    """Reads the files of each feature in turn, those of the next one when the present one has been written by half.

    By then the present one has given half of its memory back. A context manager: it gives up what was not waited for.
    """

    def __init__(self, delivery: Delivery, mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> None:
        self._delivery, self._mapping, self._dates, self._quality = delivery, mapping, dates, quality
        self._threads = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="load")
        self._lock = threading.Lock()
        self._begun: list[list[Future[Planes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def planes(self, place: int) -> list[Planes]:
        """The files of a feature by its place in the mapping, when all of them are there."""
        self._begin(place)
        futures, self._begun[place] = self._begun[place], []
        return [future.result() for future in futures]

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
                self._begun.append([self._threads.submit(self._load, rule, output) for output in rule.outputs])

    def _load(self, rule: FeatureRule, output: str) -> Planes:
        if self._quality is not None and output == self._mapping.quality_output:
            return self._quality
        dates, together = len(self._dates.order) if rule.temporal else None, _most_outputs(self._mapping)
        return self._delivery.planes(output, dates, rule.sample_type, per_date=rule.bands_per_date, together=together)


def _source(
    tile: Tile, rule: FeatureRule, planes: Sequence[Planes], dates: Dates, quality: Planes | None
) -> ArraySource:
    """The values of a feature; the one place where GeoTIFF's axes become eo-learn's.

    Files are (date, row, column), or have several bands for each date, and become (time, height, width, band), time
    ascending, the bands of all files in a row. Files of timeless features are (band, row, column) and become (height,
    width, band) likewise.
    """

    def read(frame: int, first: int, last: int) -> NDArray[Any]:
        numbers = np.empty((last - first, tile.width, bands), np.result_type(*(file.numbers for file in planes)))
        for band, layer in enumerate(layer for file in planes for layer in file.numbers[positions(frame)]):
            numbers[:, :, band] = layer[first:last]
        values = _decoded(tile, numbers, rule)
        if rule.temporal and quality is not None:
            missing = quality.numbers[dates.order[frame], first:last] == 0
            if missing.any():
                values[missing] = 0
        for file in used:
            file.release()
        return values

    def finished(frame: int) -> None:
        for file in own:
            file.forget(positions(frame))

    def positions(frame: int) -> slice:
        return rule.positions(dates.order[frame], len(dates.order)) if rule.temporal else slice(None)

    used = set(planes) if quality is None else {*planes, quality}
    own = used - {quality} if rule.temporal else set()  # the quality is needed by all features
    bands = len(planes) * rule.bands_per_date if rule.temporal else sum(len(file.numbers) for file in planes)
    time = (len(dates.order),) if rule.temporal else ()
    return ArraySource((*time, tile.height, tile.width, bands), np.dtype(rule.dtype), rule.temporal, read, finished)


def _decoded(tile: Tile, numbers: NDArray[Any], rule: FeatureRule) -> NDArray[Any]:
    try:
        return decode(numbers, rule)
    except ValueError as error:
        raise TileError(f"Tile {tile.name}: feature {rule.name}: {error}.") from error


def _quality_masks(mapping: FeatureMapping, dates: Dates, quality: Planes | None) -> Iterator[Feature]:
    if mapping.quality_output is None or quality is None:
        return

    def mask(name: str, true_for: Callable[[NDArray[Any]], NDArray[Any]]) -> Feature:
        def read(frame: int, first: int, last: int) -> NDArray[Any]:
            values = true_for(quality.numbers[dates.order[frame], first:last, :, np.newaxis])
            quality.release()
            return values

        shape = (*quality.numbers.shape, 1)
        return Feature("mask", name, ArraySource(shape, np.dtype(bool), temporal=True, read=read))

    yield mask("IS_DATA", lambda numbers: numbers > 0)
    yield mask("IS_VALID", lambda numbers: numbers == 1)
