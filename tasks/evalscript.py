"""Evalscripts before they are sent: the built-in one rendered with its parameters, and ``setup`` of any read in V8."""

import importlib.resources
import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self, get_args

from py_mini_racer import JSEvalException, MiniRacer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.errors import InvalidInput

Collection = Literal["sentinel-2-l1c", "sentinel-2-l2a"]
CloudMask = Literal["s2cloudless", "scl"]
SampleType = Literal["AUTO", "UINT8", "INT8", "UINT16", "INT16", "FLOAT32"]
"""Sample types of outputs (Sentinel Hub, "Evalscript V3", output object); AUTO is delivered as UINT8."""
Output = tuple[str, int, SampleType]
"""An output of an evalscript as ``setup`` declares it: id, number of bands, sample type."""
Band = Literal["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]

CONSTANT = "const PARAMETERS = "
"""What stands before the JSON object of parameters in a script of ours."""
SETUP_SECONDS = 10.0

GLOBALS = """
var Mosaicking = {SIMPLE: "SIMPLE", ORBIT: "ORBIT", TILE: "TILE"};
var SampleType = {AUTO: "AUTO", UINT8: "UINT8", INT8: "INT8", UINT16: "UINT16", INT16: "INT16", FLOAT32: "FLOAT32"};
"""
"""The constants that ``setup`` may use (Sentinel Hub, Evalscript V3)."""


class Imagery(BaseModel):
    """What is asked of the satellite."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Imagery")

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
        default=("B02", "B03", "B04", "B08", "B11", "B12"),
        title="Bands",
        description="Reflectances, in the order they get in BANDS.",
        examples=[["B02", "B03", "B04", "B08"]],
        min_length=1,
    )
    indices: dict[str, tuple[Band, Band]] = Field(
        default={"NDVI": ("B08", "B04"), "NDWI": ("B03", "B08"), "NDBI": ("B11", "B08")},
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
        outputs: what ``setup`` declares: id, number of bands, sample type.
        input_bands: names of the bands it reads, ``dataMask`` included.
        built_in: whether it is ours, so that outputs and dates are known.
    """

    source: str
    outputs: tuple[Output, ...]
    input_bands: tuple[str, ...]
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
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The evalscript {path} cannot be read: {error}.") from error


def _read_setup(source: str, name: str, *, built_in: bool) -> Script:
    declared = _run_setup(source, name)
    try:
        outputs, bands = _outputs(declared.get("output")), _input_bands(declared.get("input"))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InvalidInput(f"setup() of the evalscript {name} is not as V3 wants it: {error}.") from error
    return Script(source=source, outputs=outputs, input_bands=bands, built_in=built_in)


def _run_setup(source: str, name: str) -> dict[str, Any]:
    engine = MiniRacer()
    try:
        engine.eval(GLOBALS)
        engine.eval(source, timeout_sec=SETUP_SECONDS)
        if engine.eval("typeof setup") != "function" or engine.eval("typeof evaluatePixel") != "function":
            raise InvalidInput(f"The evalscript {name} lacks a function setup or evaluatePixel; both are needed in V3.")
        declared = json.loads(str(engine.eval("JSON.stringify(setup()) || 'null'", timeout_sec=SETUP_SECONDS)))
    except JSEvalException as error:
        raise InvalidInput(f"The evalscript {name} does not run: {_first_lines(error)}") from error
    finally:
        engine.close()
    if not isinstance(declared, dict):
        raise InvalidInput(
            f"setup() of the evalscript {name} returns {declared!r}; an object with input and output is needed."
        )
    return declared


def _first_lines(error: JSEvalException) -> str:
    """Place and kind of a JavaScript error, without its stack."""
    lines = [line.strip() for line in str(error).replace("<anonymous>", "line").splitlines() if line.strip()]
    return " ".join(lines[:3])


def _outputs(declared: Any) -> tuple[Output, ...]:
    listed = declared if isinstance(declared, list) else [declared]
    if not listed or not all(isinstance(one, dict) for one in listed):
        raise ValueError("output must be an object or a list of objects")
    return tuple((one.get("id", "default"), _band_count(one["bands"]), _sample_type(one)) for one in listed)


def _sample_type(output: dict[str, Any]) -> SampleType:
    found = next((known for known in get_args(SampleType) if known == output.get("sampleType", "AUTO")), None)
    if found is None:
        raise ValueError(f"sampleType {output['sampleType']!r} is not one of {', '.join(get_args(SampleType))}")
    return found  # type: ignore[no-any-return]


def _band_count(declared: Any) -> int:
    return len(declared) if isinstance(declared, list) else int(declared)


def _input_bands(declared: Any) -> tuple[str, ...]:
    listed = declared if isinstance(declared, list) else [declared]
    groups = [[one] if isinstance(one, str) else one["bands"] for one in listed]
    return tuple(dict.fromkeys(band for group in groups for band in group))
