"""Generates the loop over pixels as JavaScript source for one script, so that V8 compiles it to straight-line code.

Property names stand in the source as literals and the sample objects keep one hidden class; a generic loop with
computed names is six times slower (two bands, 60 scenes: 3.8 against 0.62 million pixels a second).

Arrays cross between Python and V8 in blocks of ``LANES`` pixels, laid out ``(block, plane, lane)``, a plane being a
sample of an input band or a band of an output. Copying them in and out moves whole runs of pixels, and what one pixel
needs still lies close together.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from localhub.engine.errors import ENGINE_NAME, NAMING
from localhub.engine.setup import Output

LANES: Final = 32
"""Pixels in a block: runs long enough to copy fast, and a pixel's samples still close together."""

ARRAY_TYPES: Final = {
    "uint8": "Uint8Array",
    "int8": "Int8Array",
    "uint16": "Uint16Array",
    "int16": "Int16Array",
    "int32": "Int32Array",
    "float32": "Float32Array",
    "float64": "Float64Array",
}
"""NumPy dtype → JavaScript array, for what files may store."""

_CONVERSIONS: Final = {
    "AUTO": "v < 0 ? 0 : v > 1 ? 255 : v * 255 + 0.5",
    "UINT8": "v < 0 ? 0 : v > 255 ? 255 : v + 0.5",
    "UINT16": "v < 0 ? 0 : v > 65535 ? 65535 : v + 0.5",
    "INT8": "v < -128 ? -128 : v > 127 ? 127 : floor(v + 0.5)",
    "INT16": "v < -32768 ? -32768 : v > 32767 ? 32767 : floor(v + 0.5)",
    "FLOAT32": "v",
}
"""Sample type → expression for the stored number. Arrays of integers drop what follows the point, which rounds down
where nothing is negative, and store 0 for NaN; with ``floor`` among its cases a number costs V8 15 ns."""

_SAMPLES_ONLY: Final = (
    r"/^(?:function\s*[\w$]*\s*)?(?:\(\s*[\w$]+\s*\)|[\w$]+)\s*(?:=>|\{)(?![^]*\b(?:arguments|eval)\b)/"
)
"""JavaScript's pattern for the text of a function that takes one argument and has no way to another. It never meets the
scenes, which otherwise are compared with what they should be at each pixel: a quarter of the time of a short script."""


@dataclass(frozen=True, slots=True)
class BandInput:
    """A band as the loop reads it."""

    name: str
    dtype: np.dtype[np.generic]
    """As stored; a key of ``ARRAY_TYPES`` by name."""
    factor: float
    """From stored numbers to what the script sees."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A dataset as the loop reads it."""

    key: str | None
    """Under which the script finds it; None = there is one dataset only."""
    bands: tuple[BandInput, ...]
    samples: int
    """How many samples a pixel has."""
    simple: bool
    """Mosaicking SIMPLE: the script gets one object instead of an array, where there is one dataset only."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel's samples."""
        return self.samples * sum(band.dtype.itemsize for band in self.bands)


def loop_source(layouts: Sequence[Layout], outputs: Sequence[Output], *, reuse: bool, blocks: int) -> str:
    """JavaScript of a function body, from what ``prelude.js`` gives to ``{inputs, outputs, run, wrongLengths}``.

    Args:
        layouts: of the datasets, in the order of the program's ``inputs``.
        outputs: in the order of the program's ``outputs``.
        reuse: keep the sample objects from pixel to pixel; see ``may_reuse_samples``.
        blocks: capacity, in blocks of ``LANES`` pixels.
    """
    inputs = [(band, layout.samples) for layout in layouts for band in layout.bands]
    firsts = list(accumulate((len(layout.bands) for layout in layouts), initial=0))
    samples = "".join(_sample_code(d, layout, firsts[d], reuse=reuse) for d, layout in enumerate(layouts))
    return f"""
"use strict"; // else a stack frame would hand its function and its object, with the buffers, to the script
const {{ evaluatePixel, context, restoreScenes, isList, arrayExpected, fill, floor }} = given;
const {{ scenes, inputMetadata, customData, outputMetadata }} = context;
const {{ {", ".join(ARRAY_TYPES.values())} }} = given.arrays;
{_declare("input", ((ARRAY_TYPES[band.dtype.name], samples * LANES * blocks) for band, samples in inputs))}
{_declare("output", ((ARRAY_TYPES[output.dtype.name], output.bands * LANES * blocks) for output in outputs))}
const wrongLengths = [{", ".join("0" for _ in outputs)}];
const takesScenes = {_takes_scenes(layouts)};
{samples}
{"".join(_store_code(k, output) for k, output in enumerate(outputs))}
function evaluateOne(block, lane) {{
  const samples = {_first_argument(layouts)};
  if (takesScenes) restoreScenes();
  const result = evaluatePixel(samples, scenes, inputMetadata, customData, outputMetadata);
  if (result === undefined) return;
  {" ".join(_pick_code(k, output, alone=len(outputs) == 1) for k, output in enumerate(outputs))}
}}
function run(pixels) {{
  {" ".join(f"fill(output{k}, 0);" for k in range(len(outputs)))}
  for (let pixel = 0; pixel < pixels; pixel++) {{
    const block = (pixel / {LANES}) | 0;
    evaluateOne(block, pixel - block * {LANES});
  }}
}}
return {{ inputs: [{_numbered("input", inputs)}], outputs: [{_numbered("output", outputs)}], run, wrongLengths }};
{NAMING}{ENGINE_NAME}
"""


def _first_argument(layouts: Sequence[Layout]) -> str:
    """What evaluatePixel gets: the samples of the only dataset, or those of each by its key."""
    calls = [f"samples{d}(block * {layout.samples * LANES} + lane)" for d, layout in enumerate(layouts)]
    if layouts[0].key is None:
        return calls[0]
    return (
        "{ "
        + ", ".join(f"{json.dumps(layout.key)}: {call}" for layout, call in zip(layouts, calls, strict=True))
        + " }"
    )


def _takes_scenes(layouts: Sequence[Layout]) -> str:
    """Whether evaluatePixel can reach the scenes' arrays; SIMPLE has none."""
    return "false" if all(layout.simple for layout in layouts) else f"!{_SAMPLES_ONLY}.test(evaluatePixel)"


def may_reuse_samples(source: str, bands: Iterable[str]) -> bool:
    """Tell whether sample objects can be kept from pixel to pixel, which is two to three times faster than fresh ones.

    Every pixel writes all bands anew, so a script may change them, and reorder or shorten the array. Kept objects would
    show only where a script adds or removes properties of its own: it assigns to a name other than a band, or names
    ``delete``, ``Object.assign`` or the like. One way passes unseen, because it looks like writing to an array:
    ``sample[name] = value``; such a property still has the last pixel's value when the next one starts.
    """
    harmless = {*bands, "userData", "bands", "length"}
    assigned = {match["name"] for match in _ASSIGNED_PROPERTY.finditer(source)}
    return assigned <= harmless and not _OTHER_CHANGE.search(source)


_ASSIGNMENT: Final = r"\s*(?:(?:[-+*/%&|^]|\*\*|<<|>>>?|&&|\|\||\?\?)?=(?![=>])|\+\+|--)"
_ASSIGNED_PROPERTY: Final = re.compile(r"\.\s*(?P<name>[A-Za-z_$][\w$]*)" + _ASSIGNMENT)
_OTHER_CHANGE: Final = re.compile(
    r"\bdelete\b|\b(?:Object|Reflect)\s*\.\s*(?:assign|define\w*|set\w*|delete\w*|freeze|seal|preventExtensions)\b"
    r"|(?:\[\s*[\"'`][^\]]*\]|\]\s*\[[^\]]*\]+)" + _ASSIGNMENT
)


def _declare(prefix: str, arrays: Iterable[tuple[str, int]]) -> str:
    return "\n".join(f"const {prefix}{k} = new {kind}({length});" for k, (kind, length) in enumerate(arrays))


def _numbered(prefix: str, items: Sequence[object]) -> str:
    return ", ".join(f"{prefix}{k}" for k in range(len(items)))


def _sample_code(d: int, layout: Layout, first_input: int, *, reuse: bool) -> str:
    """A function that gives a pixel's samples of a dataset, from where its first sample's numbers are.

    A single object is made for each pixel: where V8 inlines a short script it is never allocated.
    """
    bands, samples = layout.bands, layout.samples
    values = [f"input{first_input + k}[at]{_times(band.factor)}" for k, band in enumerate(bands)]
    names = [json.dumps(band.name) for band in bands]
    fresh = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    if layout.simple and layout.key is None:
        return f"function samples{d}(at) {{ return {{ {fresh} }}; }}"
    if not reuse:
        return f"""
function samples{d}(at) {{
  const samples = [];
  for (let s = 0; s < {samples}; s++, at += {LANES}) samples.push({{ {fresh} }});
  return samples;
}}"""
    writes = " ".join(f"sample[{name}] = {value};" for name, value in zip(names, values, strict=True))
    first = ", ".join(f"{name}: {_representative(band)}" for name, band in zip(names, bands, strict=True))
    return f"""
const pool{d} = [];
for (let s = 0; s < {samples}; s++) pool{d}.push({{ {first} }});
const reused{d} = pool{d}.slice();
function samples{d}(at) {{
  for (let s = 0; s < {samples}; s++, at += {LANES}) {{
    const sample = pool{d}[s];
    {writes}
    if (reused{d}[s] !== sample) reused{d}[s] = sample;
  }}
  if (reused{d}.length !== {samples}) reused{d}.length = {samples};
  return reused{d};
}}"""


def _times(factor: float) -> str:
    return "" if factor == 1 else f" * {factor!r}"


def _representative(band: BandInput) -> str:
    """A first value of the right kind: V8 lays an object out by what it sees first, integer or fractional."""
    return "0" if band.factor == 1 and band.dtype.kind in "iu" else "0.5"


def _pick_code(k: int, output: Output, *, alone: bool) -> str:
    named = f"result && result[{json.dumps(output.id)}]"
    return (
        f"store{k}({f'isList(result) ? result : {named}' if alone else named}, block * {output.bands * LANES} + lane);"
    )


def _store_code(k: int, output: Output) -> str:
    """A function for each output: the arrays that one receives are of one kind, and V8 compiles for that kind."""
    return f"""
function store{k}(values, at) {{
  if (!isList(values)) throw arrayExpected();
  const length = values.length;
  if (length !== {output.bands}) wrongLengths[{k}]++;
  const end = length < {output.bands} ? length : {output.bands};
  for (let i = 0; i < end; i++, at += {LANES}) {{
    const v = {"values[i]" if output.sample_type == "FLOAT32" else "+values[i]"};
    output{k}[at] = {_CONVERSIONS[output.sample_type]};
  }}
}}"""
