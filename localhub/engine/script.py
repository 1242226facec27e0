"""Evalscripts V3 as they stand, run in V8 over whole arrays."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from localhub.engine.errors import EvalscriptError, invalid
from localhub.engine.isolate import Isolate
from localhub.engine.loop import BandInput, Layout, may_reuse_samples
from localhub.engine.program import Program
from localhub.engine.scenes import Dataset, describe_samples, group_scenes
from localhub.engine.setup import Output, Source, band_count, parse_setup
from localhub.engine.simple import as_function, bands_named, is_simple

_VERSION_3: Final = re.compile(r"^[\s\ufeff]*//.*\bVERSION\s*=\s*3\b", re.MULTILINE)
_LIST_NAMES: Final = {"ORBIT": "orbits", "TILE": "tiles"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the script wants of a feature's scenes."""

    samples: tuple[tuple[tuple[int, ...], ...], ...]
    """For each dataset, and each sample that evaluatePixel gets of it, in order: indices of the scenes that mosaic into
    it, preferred first."""
    bands: tuple[Mapping[str, float], ...]
    """For each dataset: bands that the script reads → factor from stored numbers to the unit it asked for."""
    outputs: tuple[Output, ...]
    """What ``evaluate`` returns, after updateOutput; in the script's order."""

    @property
    def has_floats(self) -> bool:
        """Whether any output is FLOAT32, which doubles the price."""
        return any(output.sample_type == "FLOAT32" for output in self.outputs)


def is_version_3(source: str) -> bool:
    """Tell whether a text says that it is an evalscript of version 3, in a line of its own."""
    return _VERSION_3.search(source) is not None


class Evalscript:
    """An evalscript V3 in a V8 context of its own; a context manager that closes it.

    Call ``prepare`` once, ``evaluate`` for each block of rows from top to bottom, ``user_data`` last. Globals of the
    script live through all of it. Sample objects are reused where ``may_reuse_samples`` finds that a script cannot
    tell, unless it keeps references to them beyond the pixel.

    Args:
        source: the script's text.
        timeout_seconds: how long any one call into the script may take: loading, each hook, each chunk of pixels;
            None = as long as the limits of this process say, which also hold for its memory.
        strict: refuse arrays that are shorter or longer than declared, instead of filling and cutting them.

    Raises:
        EvalscriptError: not version 3, does not parse, fails in its top-level code or in ``setup()``, or declares
            something that does not exist.
    """

    def __init__(self, source: str, *, timeout_seconds: float | None = None, strict: bool = False) -> None:
        if not is_version_3(source):
            raise invalid("Only evalscripts of version 3 are supported; start the script with //VERSION=3.")
        self._source = source
        self._strict = strict
        self._program: Program | None = None
        self._wrong_lengths = Counter[str]()
        self._empty: frozenset[str] = frozenset()
        self._plan: Plan | None = None
        self._sources: tuple[Source, ...] = ()
        self._user_data: str | None = None
        self._isolate = Isolate(timeout_seconds)
        try:
            self.setup = parse_setup(self._load_simple() if is_simple(source) else self._load())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free V8's memory. The arrays that ``evaluate`` returned stay valid: they are copies."""
        self._program = None  # first the views, then the buffers that they look at
        self._isolate.close()

    def prepare(self, datasets: Sequence[Dataset], *, requested: Collection[str] | None = None) -> Plan:
        """Group the scenes into samples and let the script choose among them and size its outputs.

        Runs preProcessScenes, or else filterScenes (not for SIMPLE, which knows no scenes), then updateOutput. With
        several datasets the script gets samples, scenes and collections by dataset (data fusion).

        Args:
            datasets: in the request's order.
            requested: ids of the outputs to return, others are computed and dropped; None = all.

        Raises:
            EvalscriptError: the script failed, returned no scenes, has no output of a requested id, or asks for a
                dataset or a unit that there is not.
        """
        sources = self.setup.sources([dataset.id for dataset in datasets])
        factors = tuple(source.factors(dataset.collection) for source, dataset in zip(sources, datasets, strict=True))
        groups = [_grouped(source, dataset) for source, dataset in zip(sources, datasets, strict=True)]
        request = {
            "datasets": [_described(*parts) for parts in zip(sources, datasets, groups, strict=True)],
            "bands": {output.id: output.bands for output in self.setup.outputs},
        }
        answer = _parsed(self._isolate.call("prepare", json.dumps(request)))
        samples = _chosen(groups, answer)
        self._program = None
        self._sources = sources
        sized = self._sized_outputs(_field(answer, "outputs"), requested)
        self._empty = frozenset(output.id for output in sized if output.bands == 0)
        # an output of no bands becomes one band of zeros: a file needs one
        outputs = tuple(replace(output, bands=max(1, output.bands)) for output in sized)
        self._plan = Plan(samples, factors, outputs)
        return self._plan

    def evaluate(self, bands: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Run evaluatePixel over a block of rows.

        Args:
            bands: for each dataset, and each band of the plan, numbers as stored (DN), shape (samples, height, width);
                one sample for SIMPLE.

        Returns:
            Output id → values of the output's dtype, shape (bands, height, width).

        Raises:
            EvalscriptError: the script failed in a pixel, or returned a wrong number of values to a strict engine.
            ValueError: a band is missing, or its shape or dtype is not as planned.
        """
        plan = self._planned()
        for wanted, given in zip(plan.bands, bands, strict=True):
            if missing := sorted(wanted.keys() - given.keys()):
                raise ValueError(f"The evalscript reads {sorted(wanted)}; {missing} did not come.")
        arrays = [
            {name: _native(given[name]) for name in wanted} for wanted, given in zip(plan.bands, bands, strict=True)
        ]
        dtypes = [{name: array.dtype for name, array in group.items()} for group in arrays]
        if self._program is None or self._program.dtypes != dtypes:
            self._wrong_lengths = Counter(self.wrong_lengths())
            self._program = None
            self._program = self._compiled(plan, dtypes)
        results = self._program.run(arrays)
        if self._strict:
            self._refuse_wrong_lengths(plan)
        return results

    def _refuse_wrong_lengths(self, plan: Plan) -> None:
        declared = {output.id: output.bands for output in plan.outputs}
        for name, pixels in self.wrong_lengths().items():
            raise EvalscriptError(
                f"Failed to evaluate script!\nScript must return an array of {declared[name]} values for the output "
                f"'{name}'; {pixels} pixels returned another number."
            )

    def _compiled(self, plan: Plan, dtypes: Sequence[Mapping[str, np.dtype[Any]]]) -> Program:
        layouts = [
            Layout(source.key, tuple(_band_inputs(factors, stored)), len(samples), simple=source.mosaicking == "SIMPLE")
            for source, factors, stored, samples in zip(self._sources, plan.bands, dtypes, plan.samples, strict=True)
        ]
        reuse = may_reuse_samples(self._source, {name for group in plan.bands for name in group})
        return Program(self._isolate, layouts, plan.outputs, reuse=reuse)

    def wrong_lengths(self) -> dict[str, int]:
        """Output id → pixels so far whose array was shorter (rest 0) or longer (rest dropped) than declared.

        Of outputs of no bands nothing can be wrong.
        """
        counts = self._wrong_lengths + Counter(self._program.wrong_lengths() if self._program else {})
        return {name: pixels for name, pixels in counts.items() if name not in self._empty}

    def messages(self) -> list[str]:
        """What the script has printed to the console so far: the first 100 messages, 1000 characters of each."""
        printed = _parsed(self._isolate.call("messages"))
        return [str(message) for message in printed] if isinstance(printed, list) else []

    def user_data(self) -> Any:
        """What belongs into ``userdata.json``: runs updateOutputMetadata, once; {} where the script sets nothing.

        Raises:
            EvalscriptError: the script failed.
        """
        if self._user_data is None:
            self._user_data = str(self._isolate.call("finish"))
        return _parsed(self._user_data)

    def _load(self) -> Any:
        self._isolate.load(self._source)
        return _parsed(self._isolate.call("setup"))

    def _load_simple(self) -> Any:
        bands = bands_named(self._source)
        if not bands:
            raise invalid("The script has no functions setup and evaluatePixel, and names no band.")
        self._isolate.load(as_function(self._source, bands))
        return _parsed(self._isolate.call("simpleSetup", json.dumps(bands)))

    def _planned(self) -> Plan:
        if self._plan is None:
            raise ValueError("evaluate() needs to know the scenes: call prepare() first.")
        return self._plan

    def _sized_outputs(self, sizes: Any, requested: Collection[str] | None) -> tuple[Output, ...]:
        ids = [output.id for output in self.setup.outputs]
        if unknown := sorted(set(requested or ()) - set(ids)):
            raise invalid(f"The request names outputs {unknown} that the script does not have; its outputs are {ids}.")
        return tuple(
            replace(output, bands=band_count(_field(_field(sizes, output.id), "bands")))
            for output in self.setup.outputs
            if requested is None or output.id in requested
        )


def _parsed(text: Any) -> Any:
    """Read what a script has given; None where that is nothing. A script may even have its say in how it is written."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (RecursionError, ValueError) as error:
        raise invalid(f"It returned what cannot be read ({error}).") from error


def _field(answer: Any, name: str) -> Any:
    return answer.get(name) if isinstance(answer, dict) else None


def _chosen(groups: Sequence[Sequence[tuple[int, ...]]], answer: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the samples at the positions that the script chose, for each dataset."""
    positions = _field(answer, "positions")
    try:
        return tuple(tuple(found[at] for at in kept) for found, kept in zip(groups, positions, strict=True))
    except (IndexError, TypeError, ValueError) as error:
        raise invalid("It does not say which of its scenes to keep.") from error


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the machine's byte order and in C order, as V8's arrays are; a copy only where it is not yet."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _band_inputs(factors: Mapping[str, float], dtypes: Mapping[str, np.dtype[Any]]) -> Iterator[BandInput]:
    for name, factor in factors.items():
        yield BandInput(name, dtypes[name], factor)


def _grouped(source: Source, dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    """The scenes of each sample; with data fusion SIMPLE has one sample only where it has scenes."""
    if source.key is not None and not dataset.scenes:
        return ()
    return group_scenes(dataset.scenes, source.mosaicking)


def _described(source: Source, dataset: Dataset, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A dataset as ``prelude.js`` takes it; without a kind of list for SIMPLE, which has no choice among scenes."""
    return {
        "key": source.key,
        "kind": _LIST_NAMES.get(source.mosaicking),
        "list": describe_samples(dataset.scenes, groups, source.mosaicking, bounds=source.bounds),
        "samples": len(groups),
        "from": _iso(dataset.time_from),
        "to": _iso(dataset.time_to),
    }


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
