"""Runs an evalscript on a made-up window and tells what it reads, what it makes and what it costs, or why it fails."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localhub.engine import Dataset, Evalscript, EvalscriptError, Output, Plan
from localhub.engine.bands import default_unit, no_band
from localhub.engine.errors import SCRIPT_NAME
from localhub.engine.setup import Setup, Source
from localhub.engine.simple import is_simple
from localhub.pricing import Read, feature_cost, process_cost
from localhub.trial.window import Window, made_window, samples_of
from tasks.grid import Tile

SENTINEL_2: Final = ("sentinel-2-l2a", "sentinel-2-l1c")
"""Collections that a script may be for, in order of preference."""
OWN_COLLECTION: Final = "byoc"
"""A collection of somebody's own, with whatever bands."""
TILE_PIXELS: Final = 1000
"""Side of the tile that prices are for: 10 km at 10 m."""
_MOST_MESSAGES: Final = 3
_MOST_IN_LINE: Final = 200
_FUNCTION: Final = re.compile(r"\b(?:setup|evaluatePixel|preProcessScenes|filterScenes|updateOutput(?:Metadata)?)\b")
_DAY: Final = re.compile(r"\b(?:19|20)\d\d-\d\d-\d\d\b")


@dataclass(frozen=True, slots=True)
class Trial:
    """With what a script is tried.

    Attributes:
        end: day of the last made-up acquisition, unless the script itself names a later day.
        acquisitions: how many days of the year before have one.
        own_bands: bands of a collection of somebody's own, in place of Sentinel-2; empty for Sentinel-2.
    """

    end: date
    acquisitions: int = 12
    own_bands: tuple[str, ...] = ()


def days_of(source: str, trial: Trial) -> list[date]:
    """Return the days of the acquisitions: spread over a year, and those that the script names as YYYY-MM-DD.

    Published scripts compare two days, for example, and say so in their text; users order a period with these days.
    """
    spread = {
        trial.end - timedelta(days=round(365 * number / trial.acquisitions)) for number in range(trial.acquisitions)
    }
    return sorted(spread | set(_named_days(source)))


def _named_days(source: str) -> Iterator[date]:
    for text in _DAY.findall(source):
        with suppress(ValueError):  # 2019-02-30
            yield date.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a script reads of one collection.

    Attributes:
        datasource: its name in the script; None where there is one collection only.
        collection: the type of collection that has what the script reads.
        mosaicking: SIMPLE, ORBIT or TILE.
        units: unit of each band, by name.
        samples: how many a pixel had in the window.
    """

    datasource: str | None
    collection: str
    mosaicking: str
    units: Mapping[str, str]
    samples: int


@dataclass(frozen=True, slots=True)
class Report:
    """How a script fared.

    Attributes:
        error: why it fails; empty when it runs, and then the rest is told.
        simple: whether it has the form without ``setup``.
        readings: one a collection.
        outputs: as sized by ``updateOutput``.
        batch_pu: price of a tile of 1000 x 1000 pixels by Batch, for one acquisition where it reads several.
        process_pu: the same by the Process API.
        user_data_bytes: size of userdata.json.
        notes: what its author should know.
    """

    error: str = ""
    simple: bool = False
    readings: tuple[Reading, ...] = ()
    outputs: tuple[Output, ...] = ()
    batch_pu: float = 0.0
    process_pu: float = 0.0
    user_data_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def per_acquisition(self) -> bool:
        """Whether the price is that of one acquisition."""
        return any(reading.mosaicking != "SIMPLE" for reading in self.readings)


def check(source: str, trial: Trial) -> Report:
    """Run a script as the service would, on a window of `trial`; what goes wrong is told, not raised."""
    try:
        with Evalscript(source) as script:
            return _checked(script, source, trial)
    except EvalscriptError as error:
        return Report(error=_located(str(error), source))


def _located(error: str, source: str) -> str:
    """Add the script's own line where an error has none: what it quotes or the function that it names stands there."""
    if f"{SCRIPT_NAME}:" in error:
        return error
    quoted = [rf"[\"'`]{re.escape(text)}[\"'`]" for text in re.findall(r"'([^'\n]+)'", error)]
    functions = [rf"\b{name}\b" for name in re.findall(_FUNCTION, error)]
    lines = source.splitlines()
    for pattern in (*quoted, *functions, *([r"\bevaluatePixel\b"] if "Script must return" in error else [])):
        for number, line in enumerate(lines, 1):
            if re.search(pattern, line):
                return f"{error}\n{SCRIPT_NAME}:{number}: {line.strip()[:_MOST_IN_LINE]}"
    return error


def _checked(script: Evalscript, source: str, trial: Trial) -> Report:
    names = _datasources(script.setup)
    sources = script.setup.sources(names)
    collections = [_collection_for(wanted, trial.own_bands) for wanted in sources]
    days = days_of(source, trial)
    window = made_window(days)
    plan = script.prepare([_dataset(*pair, window, days) for pair in zip(names, collections, strict=True)])
    values = _evaluate(script, plan, window, days)
    user_data = script.user_data()
    readings = [_reading(*parts) for parts in zip(sources, collections, plan.samples, strict=True)]
    batch_pu, process_pu = _prices(plan)
    return Report(
        simple=is_simple(source),
        readings=tuple(readings),
        outputs=plan.outputs,
        batch_pu=batch_pu,
        process_pu=process_pu,
        user_data_bytes=len(json.dumps(user_data)) if user_data else 0,
        notes=tuple(_notes(script, plan, window, values)),
    )


def _datasources(setup: Setup) -> list[str | None]:
    """Return the names of the request's collections that fit the script; None for those that have only a number."""
    names = list(dict.fromkeys(entry.datasource for entry in setup.inputs if entry.datasource))
    return [*names] if names else [None] * len(setup.inputs)


def _collection_for(source: Source, own_bands: Sequence[str]) -> str:
    """Return the first collection that offers all bands, in the units that the script asks for.

    Where there are own bands, a script of one collection is for them; one of several may read Sentinel-2 besides.

    Raises:
        EvalscriptError: none does; the reason is that of the collection that lacks the least.
    """
    missing = [band for band in source.units if band not in {*own_bands, "dataMask"}]
    if own_bands and not missing:
        source.factors(OWN_COLLECTION)
        return OWN_COLLECTION
    if own_bands and source.key is None:
        raise no_band(OWN_COLLECTION, missing[0])
    refusals: dict[EvalscriptError, int] = {}
    for collection in SENTINEL_2:
        try:
            source.factors(collection)
        except EvalscriptError as error:
            refusals[error] = _refused(source, collection)
        else:
            return collection
    raise min(refusals, key=lambda error: refusals[error])


def _refused(source: Source, collection: str) -> int:
    """Count the bands that a collection does not offer as asked for."""
    count = 0
    for band, unit in source.units.items():
        try:
            Source(None, {band: unit}, source.mosaicking).factors(collection)
        except EvalscriptError:
            count += 1
    return count


def _dataset(name: str | None, collection: str, window: Window, days: Sequence[date]) -> Dataset:
    start, end = (datetime.combine(day, moment, UTC) for day, moment in ((days[0], time.min), (days[-1], time.max)))
    return Dataset(window.scenes, start, end, collection, name)


def _evaluate(script: Evalscript, plan: Plan, window: Window, days: Sequence[date]) -> dict[str, NDArray[Any]]:
    pairs = list(zip(plan.samples, plan.bands, strict=True))
    try:
        return script.evaluate([samples_of(window, members, bands) for members, bands in pairs])
    except EvalscriptError as error:
        if any(members for members, _ in pairs):
            raise
        raise EvalscriptError(
            f"{error}\nIt keeps none of the acquisitions from {days[0]} to {days[-1]}; choose another last day."
        ) from error


def _reading(source: Source, collection: str, samples: Sequence[object]) -> Reading:
    units = {band: unit.upper() if unit else default_unit(collection, band) for band, unit in source.units.items()}
    return Reading(source.key, collection, source.mosaicking, units, len(samples))


def _prices(plan: Plan) -> tuple[float, float]:
    """Return the price of a tile of one acquisition by Batch, and by the Process API."""
    tile = Tile("tile", 32633, (0.0, 0.0, 10.0 * TILE_PIXELS, 10.0 * TILE_PIXELS), TILE_PIXELS, TILE_PIXELS)
    reads = [Read(bands, 1) for bands in plan.bands]
    return (
        feature_cost(tile, reads, float_output=plan.has_floats),
        process_cost(tile, reads, float_output=plan.has_floats),
    )


def _notes(script: Evalscript, plan: Plan, window: Window, values: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    declared = {output.id: output.bands for output in plan.outputs}
    pixels = window.kind.size
    for name, count in script.wrong_lengths().items():
        yield (
            f"output '{name}': {count:,} of {pixels:,} pixels returned another number of values than the declared "
            f"{declared[name]}; missing ones become 0, surplus ones are dropped"
        )
    if all(_is_even(bands) for bands in values.values()):
        yield "every pixel is the same here; do the script's dates and units fit?"
    if _datasources(script.setup).count(None) > 1:
        yield (
            "each entry of setup().input is for a collection of its own; a request for only one is answered with "
            "'Dataset with id: 1 not found.'"
        )
    if plan.has_floats:
        yield "FLOAT32 doubles the price"
    messages = script.messages()
    for message in messages[:_MOST_MESSAGES]:
        yield f"it prints: {message[:200]}"
    if len(messages) > _MOST_MESSAGES:
        yield f"it prints {len(messages) - _MOST_MESSAGES} more messages"


def _is_even(bands: NDArray[Any]) -> bool:
    """Tell whether all pixels of (bands, rows, columns) are the same."""
    return bool(
        np.array_equal(bands, np.broadcast_to(bands[:, :1, -1:], bands.shape), equal_nan=bands.dtype.kind == "f")
    )
