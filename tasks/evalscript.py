"""Evalscripts before they are sent: the built-in one rendered with its parameters, and ``setup`` of any read in V8."""

import importlib.resources
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self, get_args

from py_mini_racer import JSEvalException, MiniRacer
from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.errors import InvalidInput
from tasks.form import FormModel

Collection = Literal["sentinel-2-l1c", "sentinel-2-l2a"]
CloudMask = Literal["s2cloudless", "scl"]
SampleType = Literal["AUTO", "UINT8", "INT8", "UINT16", "INT16", "FLOAT32"]
"""Sample types of outputs (Sentinel Hub, "Evalscript V3", output object); AUTO is delivered as UINT8."""
Output = tuple[str, int, SampleType]
"""An output of an evalscript as ``setup`` declares it: id, number of bands, sample type."""
Tried = dict[str, int]
"""Number of bands of each output after ``updateOutput``."""
Band = Literal["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]

LAND_COVER_BANDS: tuple[Band, ...] = ("B02", "B03", "B04", "B08", "B11", "B12")
"""Bands of BANDS in the order of eo-learn's SI_LULC example."""
CONSTANT = "const PARAMETERS = "
"""What stands before the JSON object of parameters in a script of ours."""
VERSION_3 = re.compile(r"^\s*//.*\bVERSION\s*=\s*3\b", re.MULTILINE)
"""The comment by which the service knows the version; without it a script is taken for version 1."""
USERDATA = "userdata"
"""Output id under which the service delivers what ``updateOutputMetadata`` returns: a JSON file."""
OTHER_OUTPUTS = ("QUALITY", "VALID_COUNT", USERDATA)
"""Outputs of the built-in script besides bands and indices."""
SETUP_SECONDS = 10.0
SETUP_BYTES = 1_000_000_000
"""Below V8's own limit, at which it ends the whole process."""

FUNCTIONS = ("setup", "evaluatePixel", "preProcessScenes", "updateOutput", "updateOutputMetadata")
"""Functions of a script that matter before it is sent."""
TRIED_SCENES = (5, 12)
"""Numbers of made-up scenes with which ``updateOutput`` is tried."""
TRY_UPDATE_OUTPUT = """
((outputs, inputs, count) => {
  const scenes = Array.from({length: count}, (_, i) => ({date: new Date(Date.UTC(2020, 0, 1 + 5 * i))}));
  const collections = inputs.map((input, i) => [input.datasource || i, {scenes}]);
  updateOutput(outputs, Object.assign(Object.fromEntries(collections), {scenes}));
  return JSON.stringify(outputs);
})
"""
"""Gives the outputs as a script sets them: its argument is {id: {bands}}, and scenes with their dates."""

GLOBALS = """
var Mosaicking = {SIMPLE: "SIMPLE", ORBIT: "ORBIT", TILE: "TILE"};
var SampleType = {AUTO: "AUTO", UINT8: "UINT8", INT8: "INT8", UINT16: "UINT16", INT16: "INT16", FLOAT32: "FLOAT32"};
"""
"""The constants that ``setup`` may use (Sentinel Hub, Evalscript V3)."""


class Imagery(FormModel):
    """What is asked of the satellite."""

    model_config = ConfigDict(title="Imagery")

    collection: Collection = Field(
        default="sentinel-2-l1c",
        title="Collection",
        description="L1C is top of atmosphere, L2A bottom of atmosphere.",
        examples=["sentinel-2-l2a"],
    )
    cloud_mask: CloudMask = Field(
        default="s2cloudless",
        title="Cloud mask",
        description="s2cloudless (band CLM) exists on Sentinel Hub's AWS endpoints; scl, the scene classification, "
        "comes with L2A everywhere, Copernicus Data Space included.",
        examples=["scl"],
    )
    bands: tuple[Band, ...] = Field(
        default=LAND_COVER_BANDS,
        title="Bands",
        description="Reflectances, in the order they get in BANDS.",
        examples=[["B02", "B03", "B04", "B08"]],
        min_length=1,
    )
    indices: dict[str, tuple[Band, Band]] = Field(
        default={"NDBI": ("B11", "B08"), "NDVI": ("B08", "B04"), "NDWI": ("B03", "B08")},
        title="Indices",
        description="Normalised differences (first - second) / (first + second) of interpolated bands, by name.",
        examples=[{"NDVI": ["B08", "B04"], "NBR": ["B08", "B12"]}],
    )
    max_cloud_coverage: int = Field(
        default=100,
        title="Cloud cover at most",
        description="Scenes with more clouds are left out, in percent. Fewer scenes are cheaper.",
        examples=[80],
        ge=0,
        le=100,
    )
    evalscript: str | None = Field(
        default=None,
        title="Own evalscript",
        description="File with an evalscript (V3) of your own instead of the built-in one; bands, indices and cloud "
        "mask are then the script's business.",
        examples=["my_script.js"],
    )

    @field_validator("bands")
    @classmethod
    def _no_band_twice(cls, value: tuple[Band, ...]) -> tuple[Band, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"bands {', '.join(value)} has one twice; name each once")
        return value

    @field_validator("indices")
    @classmethod
    def _names_are_free(cls, value: dict[str, tuple[Band, Band]]) -> dict[str, tuple[Band, Band]]:
        taken = {name.lower() for name in (*get_args(Band), *OTHER_OUTPUTS, "BANDS", "IS_DATA", "IS_VALID")}
        for name in value:
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name.lower() in taken:
                raise ValueError(
                    f"index {name!r} cannot be the name of an output; use letters, digits and _, and no name of a band "
                    "or of another output"
                )
        return dict(sorted(value.items()))  # Prefect's server does not keep their order: it must not make other work

    @model_validator(mode="after")
    def _bands_exist(self) -> Self:
        asked = {*self.bands, *(band for pair in self.indices.values() for band in pair)}
        if self.evalscript is None and self.collection == "sentinel-2-l2a" and "B10" in asked:
            raise ValueError("band B10 comes with sentinel-2-l1c, not with sentinel-2-l2a; leave it out")
        return self

    @model_validator(mode="after")
    def _mask_exists(self) -> Self:
        if self.evalscript is None and self.cloud_mask == "scl" and self.collection != "sentinel-2-l2a":
            raise ValueError(
                f"cloud mask 'scl' comes with sentinel-2-l2a, not with {self.collection}; choose one of each"
            )
        return self


@dataclass(frozen=True, slots=True)
class Script:
    """An evalscript that is ready to be sent.

    Attributes:
        source: the text, as the service gets it.
        outputs: what ``setup`` declares, or ``updateOutput`` sets in its stead: id, number of bands, sample type.
        bands_per_scene: of the outputs whose number of bands ``updateOutput`` makes grow with the number of scenes; 0
            where they do not grow in proportion, or where it cannot be tried.
        input_bands: names of the bands it reads, ``dataMask`` included.
        mosaicking: SIMPLE (one sample a pixel), ORBIT or TILE (one a day or scene, and so many times the price).
        drops_scenes: whether it has ``preProcessScenes``, which may leave out scenes; they cost nothing then.
        gives_dates: whether it has ``updateOutputMetadata``, which can tell the dates of its outputs.
        built_in: whether it is ours, so that outputs and dates are known.
    """

    source: str
    outputs: tuple[Output, ...]
    bands_per_scene: Mapping[str, int]
    input_bands: tuple[str, ...]
    mosaicking: str
    drops_scenes: bool
    gives_dates: bool
    built_in: bool


def output_dates(start: date, end: date, step_days: int) -> list[date]:
    """The uniform dates that series are interpolated onto: ``start + k · step_days``, not after ``end``."""
    return [start + timedelta(days=k) for k in range(0, (end - start).days + 1, step_days)]


def load_script(imagery: Imagery, start: date, end: date, step_days: int) -> Script:
    """Give the evalscript of an order: the built-in one with its parameters, or the user's own as it stands.

    Raises:
        InvalidInput: the file cannot be read, the script does not parse, or ``setup`` is not as V3 wants it.
    """
    if imagery.evalscript is not None:
        return _read_setup(_read(imagery.evalscript), imagery.evalscript, built_in=False)
    template = importlib.resources.files("evalscripts").joinpath("land_cover.js").read_text(encoding="utf-8")
    parameters = {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "stepDays": step_days,
        "bands": imagery.bands,
        "indices": imagery.indices,
        "cloudMask": imagery.cloud_mask,
    }
    return _read_setup(render(template, parameters), "land_cover.js", built_in=True)


def render(template: str, parameters: dict[str, Any]) -> str:
    """Put ``parameters`` in the place of the script's constant ``PARAMETERS``, as JSON.

    Raises:
        InvalidInput: the script has no such constant, or it is not one JSON object.
    """
    before, found, rest = template.partition(CONSTANT)
    if not found:
        raise InvalidInput(f"The script has no line that begins with '{CONSTANT}'; there is nothing to fill in.")
    try:
        _, length = json.JSONDecoder().raw_decode(rest)
    except ValueError as error:
        raise InvalidInput(f"What follows '{CONSTANT}' in the script is not JSON: {error}.") from error
    return before + CONSTANT + json.dumps(parameters, indent=2) + rest[length:]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The evalscript {path} cannot be read: {error}.") from error


def _read_setup(source: str, name: str, *, built_in: bool) -> Script:
    if not VERSION_3.search(source):
        raise InvalidInput(f"The evalscript {name} does not say that it is V3; let it begin with //VERSION=3.")
    with ThreadPoolExecutor(1) as aside:  # V8's time limit does not work in a thread that has an event loop: notebooks
        declared, functions, tries = aside.submit(_run_setup, source, name).result()
    try:
        outputs = _outputs(declared.get("output"))
        return Script(
            source=source,
            outputs=tuple((output, _fixed(output, bands, tries), kind) for output, bands, kind in outputs),
            bands_per_scene=_bands_per_scene([output for output, _, _ in outputs], tries),
            input_bands=_input_bands(declared.get("input")),
            mosaicking=_mosaicking(declared),
            drops_scenes="preProcessScenes" in functions,
            gives_dates="updateOutputMetadata" in functions,
            built_in=built_in,
        )
    except ValueError as error:
        raise InvalidInput(f"setup() of the evalscript {name} is not as V3 wants it: {error}.") from error


def _run_setup(source: str, name: str) -> tuple[dict[str, Any], set[str], list[Tried]]:
    """What ``setup`` returns, which of the functions of V3 the script has, and what ``updateOutput`` sets."""
    engine = MiniRacer()
    engine.set_hard_memory_limit(SETUP_BYTES)
    try:
        engine.eval(GLOBALS)
        engine.eval(source, timeout_sec=SETUP_SECONDS)
        functions = {function for function in FUNCTIONS if engine.eval(f"typeof {function}") == "function"}
        if not functions >= {"setup", "evaluatePixel"}:
            raise InvalidInput(f"The evalscript {name} lacks a function setup or evaluatePixel; both are needed in V3.")
        declared = json.loads(str(engine.eval("JSON.stringify(setup()) || 'null'", timeout_sec=SETUP_SECONDS)))
        tries = [_tried(engine, declared, count) for count in TRIED_SCENES if "updateOutput" in functions]
    except JSEvalException as error:
        raise InvalidInput(f"The evalscript {name} does not run: {_first_lines(error)}") from error
    finally:
        engine.close()
    if not isinstance(declared, dict):
        raise InvalidInput(
            f"setup() of the evalscript {name} returns {declared!r}; an object with input and output is needed."
        )
    return declared, functions, tries


def _tried(engine: MiniRacer, declared: Any, scenes: int) -> Tried:
    """What ``updateOutput`` makes of the numbers of bands; nothing where it fails, which made-up scenes may cause."""
    try:
        listed = declared["output"] if isinstance(declared["output"], list) else [declared["output"]]
        outputs = {one.get("id", "default"): {"bands": one["bands"]} for one in listed}
        inputs = declared["input"] if isinstance(declared["input"], list) else [declared["input"]]
        call = f"{TRY_UPDATE_OUTPUT}({json.dumps(outputs)}, {json.dumps(inputs)}, {scenes})"
        told = json.loads(str(engine.eval(call, timeout_sec=SETUP_SECONDS)))
        return {output: int(one["bands"]) for output, one in told.items()}
    except (JSEvalException, AttributeError, KeyError, TypeError, ValueError):
        return {}


def _fixed(output: str, declared: int, tries: list[Tried]) -> int:
    """The number of bands that ``updateOutput`` sets whatever the scenes, else the declared one."""
    counts = {tried.get(output, 0) for tried in tries}
    return max(counts) if len(counts) == 1 and max(counts) > 0 else declared


def _bands_per_scene(outputs: list[str], tries: list[Tried]) -> dict[str, int]:
    """See :class:`Script`."""
    found = {}
    for output in outputs:
        counts = [tried.get(output, 0) for tried in tries]
        if len(set(counts)) > 1 or 0 in counts:
            a_scene = {count / scenes for count, scenes in zip(counts, TRIED_SCENES, strict=True)}
            found[output] = int(max(a_scene)) if len(a_scene) == 1 and max(a_scene) % 1 == 0 else 0
    return found


def _first_lines(error: JSEvalException) -> str:
    """Place and kind of a JavaScript error, without its stack."""
    lines = [line.strip() for line in str(error).replace("<anonymous>", "line").splitlines() if line.strip()]
    return " ".join(lines[:3])


def _outputs(declared: Any) -> tuple[Output, ...]:
    listed = declared if isinstance(declared, list) else [declared]
    if not listed or not all(isinstance(one, dict) for one in listed):
        raise ValueError("output must be an object or a list of objects")
    outputs = tuple((str(one.get("id", "default")), _band_count(one), _sample_type(one)) for one in listed)
    ids = [output for output, _, _ in outputs]
    if len(set(ids)) < len(ids):
        raise ValueError(f"the outputs {', '.join(ids)} must have different ids")
    if USERDATA in ids:
        raise ValueError(f"an output is named {USERDATA}, which is the service's file of metadata; name it otherwise")
    return outputs


def _sample_type(output: dict[str, Any]) -> SampleType:
    found = next((known for known in get_args(SampleType) if known == output.get("sampleType", "AUTO")), None)
    if found is None:
        raise ValueError(f"sampleType {output['sampleType']!r} is not one of {', '.join(get_args(SampleType))}")
    return found  # type: ignore[no-any-return]


def _band_count(output: dict[str, Any]) -> int:
    declared = output.get("bands")
    count = len(declared) if isinstance(declared, list) else declared
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"bands of an output must be a number above 0, not {declared!r}")
    return count


def _input_bands(declared: Any) -> tuple[str, ...]:
    listed = declared if isinstance(declared, list) else [declared]
    groups = [[one] if isinstance(one, str) else one.get("bands") if isinstance(one, dict) else None for one in listed]
    if not groups or not all(isinstance(group, list) and group for group in groups):
        raise ValueError("input must be a list of band names, or objects with bands")
    return tuple(dict.fromkeys(str(band) for group in groups for band in group or ()))


def _mosaicking(declared: dict[str, Any]) -> str:
    inputs = declared["input"] if isinstance(declared["input"], list) else [declared["input"]]
    given = [one.get("mosaicking") for one in inputs if isinstance(one, dict)] + [declared.get("mosaicking")]
    found = next((one for one in given if one is not None), "SIMPLE")
    if found not in ("SIMPLE", "ORBIT", "TILE"):
        raise ValueError(f"mosaicking {found!r} is not one of SIMPLE, ORBIT, TILE")
    return str(found)
