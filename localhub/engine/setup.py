"""What an evalscript's ``setup()`` declares, as values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rasterio.dtypes import in_dtype_range

from localhub.engine.bands import unit_factor
from localhub.engine.errors import invalid, objection

MOSAICKINGS: Final = ("SIMPLE", "ORBIT", "TILE")
MOST_BANDS: Final = 65535
"""Of an output: what a TIFF can say (TIFF 6.0, SamplesPerPixel)."""
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "AUTO": np.dtype("uint8"),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("uint16"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("int16"),
    "FLOAT32": np.dtype("float32"),
}
"""Sample type → what the delivered file stores. AUTO: values 0..1 stretched to 0..255."""


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of ``setup().input``."""

    datasource: str | None
    """Id in the request's ``input.data``; None where the script names none."""
    bands: tuple[str, ...]
    """Names as declared, without repetition; ``dataMask`` is among them when the script asks for it."""
    units: tuple[str | None, ...]
    """One per band, as declared; None = the band's default unit."""
    mosaicking: str | None
    """Overrides the script's own; None = the script's."""
    bounds: bool = False
    """``metadata: ["bounds"]``: tiles shall say where their data lie."""


@dataclass(frozen=True, slots=True)
class Output:
    """One entry of ``setup().output``."""

    id: str
    """The identifier of ``output.responses[]``."""
    bands: int
    """Number of bands of the file, at least 1 once planned."""
    sample_type: str
    """One of ``DTYPES``."""
    nodata_value: float | None
    """GDAL no-data tag; None = no tag."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the file stores."""
        return DTYPES[self.sample_type]


@dataclass(frozen=True, slots=True)
class Source:
    """What a script reads of one collection of the request."""

    key: str | None
    """Under which the script finds its samples; None = there is one collection only."""
    units: Mapping[str, str | None]
    """Band → unit as declared, None = the band's default; empty = the script reads nothing of it."""
    mosaicking: str
    """SIMPLE, ORBIT or TILE."""
    bounds: bool = False
    """Whether the script wants to know where the data of each tile lie."""

    def factors(self, collection: str) -> dict[str, float]:
        """Band → factor from stored numbers to what the script asked for.

        Raises:
            EvalscriptError: a band or a unit is not offered.
        """
        return {band: unit_factor(collection, band, unit) for band, unit in self.units.items()}


@dataclass(frozen=True, slots=True)
class Setup:
    """What ``setup()`` returned."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    mosaicking: str
    """SIMPLE, ORBIT or TILE, where an input has none of its own."""

    def sources(self, ids: Sequence[str | None]) -> tuple[Source, ...]:
        """Pair the inputs with the request's collections, by datasource or else by position.

        Args:
            ids: of the request's ``input.data``, in order; None where it gives none.

        Returns:
            One for each of ``ids``. Inputs of the same datasource are merged. Of several collections each has the key
            that its inputs give as datasource, or else its number, whatever the request calls it (page "Data Fusion").

        Raises:
            EvalscriptError: an input fits none of the collections. A second one without datasource never fits a
                request of one collection, in the service's own words, which several users report.
        """
        keys = [name or str(position) for position, name in enumerate(ids)]
        groups: dict[str, list[Input]] = {key: [] for key in keys}
        for position, declared in enumerate(self.inputs):
            groups[self._key(declared, position, keys, alone=len(ids) == 1 and ids[0] is None)].append(declared)
        if len(keys) == 1:
            return (self._source(None, groups[keys[0]]),)
        return tuple(
            self._source(_fusion_key(position, key, groups[key]), groups[key]) for position, key in enumerate(keys)
        )

    def _key(self, declared: Input, position: int, keys: Sequence[str], *, alone: bool) -> str:
        named = declared.datasource
        if named is not None and named in keys:
            return named
        if named is None:
            return self._key_at(position, keys)
        if alone and len({entry.datasource for entry in self.inputs}) == 1:
            return keys[0]
        raise invalid(f"setup().input asks for datasource '{named}'; the request has [{', '.join(keys)}].")

    def _key_at(self, position: int, keys: Sequence[str]) -> str:
        """Key of the collection for an input without datasource: the service goes by position, and merges none."""
        if position < len(keys):
            return keys[position]
        raise objection(
            f"Dataset with id: {position} not found. setup().input has {len(self.inputs)} entries, each for a "
            f"collection of its own; the request has {len(keys)}. Put all bands of a collection into one entry, with "
            "an array of units."
        )

    def _source(self, key: str | None, inputs: Sequence[Input]) -> Source:
        units = {band: unit for entry in inputs for band, unit in zip(entry.bands, entry.units, strict=True)}
        own = next((entry.mosaicking for entry in inputs if entry.mosaicking), None)
        return Source(key, units, own or self.mosaicking, any(entry.bounds for entry in inputs))


def _fusion_key(position: int, key: str, inputs: Sequence[Input]) -> str:
    """Key of a collection's samples; where the script reads nothing of it, the request's."""
    return next((entry.datasource for entry in inputs if entry.datasource), str(position) if inputs else key)


def parse_setup(declared: Any) -> Setup:
    """Read what ``setup()`` returned, as JSON.

    Accepts every form in use: bands as strings or in objects, one input or output or an array of them.

    Raises:
        EvalscriptError: a part is missing, has the wrong type, or is not supported here.
    """
    if not isinstance(declared, Mapping):
        raise invalid(f"setup() must return an object with input and output, not {declared!r}.")
    inputs = _parse_inputs(declared.get("input"))
    return Setup(inputs, _parse_outputs(declared.get("output")), _mosaicking(declared) or "SIMPLE")


def _parse_inputs(declared: Any) -> tuple[Input, ...]:
    entries = declared if isinstance(declared, list) else [declared]
    if entries and all(isinstance(entry, str) for entry in entries):
        entries = [{"bands": entries}]
    if not entries:
        raise invalid("setup().input names no band.")
    return tuple(_parse_input(entry) for entry in entries)


def _parse_input(declared: Any) -> Input:
    if not isinstance(declared, Mapping):
        raise invalid(f"setup().input must hold band names or objects with bands, not {declared!r}.")
    bands = declared.get("bands")
    if not isinstance(bands, list) or not bands or not all(isinstance(band, str) for band in bands):
        raise invalid(f"setup().input[].bands must be an array of band names, not {bands!r}.")
    units = declared.get("units")
    per_band = units if isinstance(units, list) else [units] * len(bands)
    if len(per_band) != len(bands) or not all(unit is None or isinstance(unit, str) for unit in per_band):
        raise invalid(f"setup().input[].units must be one unit or one per band ({len(bands)}), not {units!r}.")
    unit_of = dict(zip(bands, per_band, strict=True))
    mosaicking, bounds = _mosaicking(declared), "bounds" in _metadata(declared)
    return Input(_text(declared, "datasource"), tuple(unit_of), tuple(unit_of.values()), mosaicking, bounds)


def _text(declared: Mapping[str, Any], name: str) -> str | None:
    text = declared.get(name)
    if text is not None and not isinstance(text, str):
        raise invalid(f"{name} must be a string, not {text!r}.")
    return text


def _metadata(declared: Mapping[str, Any]) -> list[Any]:
    """What the script wants to know of tiles; only ``bounds`` is documented."""
    names = declared.get("metadata") or []
    if not isinstance(names, list):
        raise invalid(f"setup().input[].metadata must be an array of names, not {names!r}.")
    return names


def _mosaicking(declared: Mapping[str, Any]) -> str | None:
    named = declared.get("mosaicking")
    name = None if named is None else str(named).upper()  # published scripts have "Tile"
    if name is not None and name not in MOSAICKINGS:
        raise invalid(f"Unknown mosaicking {named!r}; choose one of {', '.join(MOSAICKINGS)}.")
    return name


def _parse_outputs(declared: Any) -> tuple[Output, ...]:
    entries = declared if isinstance(declared, list) else [declared]
    if not entries:
        raise invalid("setup().output declares nothing.")
    outputs = tuple(_parse_output(entry) for entry in entries)
    _refuse_repeated(output.id for output in outputs)
    return outputs


def _refuse_repeated(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for output_id in ids:
        if output_id in seen:
            raise invalid(f"setup().output declares the id '{output_id}' twice.")
        seen.add(output_id)


def _parse_output(declared: Any) -> Output:
    if not isinstance(declared, Mapping):
        raise invalid(f"setup().output must be an object with bands, or an array of them, not {declared!r}.")
    named = declared.get("sampleType", "AUTO")
    sample_type = str(named).upper()  # published scripts have "Auto"
    if sample_type not in DTYPES:
        raise invalid(f"Unknown sampleType {named!r}; choose one of {', '.join(DTYPES)}.")
    if old := {"componentCount", "components"} & declared.keys():
        raise invalid(f"'{min(old)}' of an output belongs to version 2; say how many bands it has as 'bands'.")
    return Output(
        id=_text(declared, "id") or "default",
        bands=band_count(declared.get("bands")),
        sample_type=sample_type,
        nodata_value=_nodata_value(declared.get("nodataValue"), DTYPES[sample_type]),
    )


def _nodata_value(declared: Any, dtype: np.dtype[Any]) -> float | None:
    """The number, which comes as a string where JSON has no way to write it: NaN and the infinities.

    None where no pixel can have it, such as -9999 in bytes: GDAL does not write such a tag, and it would mark nothing.
    """
    try:
        value = None if declared is None else float(declared)
    except (TypeError, ValueError):
        raise invalid(f"nodataValue of an output must be a number, not {declared!r}.") from None
    return value if value is not None and in_dtype_range(value, dtype.name) else None


def band_count(declared: Any) -> int:
    """Number of bands from ``bands``: a count, or the array of names that the Statistical API knows.

    Raises:
        EvalscriptError: neither.
    """
    count = len(declared) if isinstance(declared, list) else declared
    if isinstance(count, bool) or not isinstance(count, int | float) or count != int(count) or count < 0:
        raise invalid(f"bands of an output must be a whole number, not {declared!r}.")
    if count > MOST_BANDS:
        raise invalid(f"An output can have {MOST_BANDS} bands at most, not {count:.6g}.")
    return int(count)
