"""Every documented example of the functions that evalscripts find, and what scripts rely on beyond that."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from py_mini_racer import mini_racer

from localhub.engine import Evalscript
from tests.localhub.engine.engine_runs import dataset

SCRIPT = """//VERSION=3
function setup() {{ return {{input: ["B04"], output: {{bands: 1}}}}; }}
function evaluatePixel() {{ return [0]; }}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {{ outputMetadata.userData = [{}]; }}
"""


def values_of(*expressions: str) -> list[Any]:
    """What the expressions are worth inside of a script."""
    with Evalscript(SCRIPT.format(", ".join(f"({expression})" for expression in expressions))) as script:
        script.prepare([dataset()])
        return list(script.user_data())


def value_of(expression: str) -> Any:
    return values_of(expression)[0]


FIVE = "[-10, -5, 0, 5, 10], [-1000, -50, 0, 50, 1000]"
MAP = "new ColorMapVisualizer([[200, 0xff0000], [300, 0x0000ff]])"
RAMP = "new ColorRampVisualizer([[200, 0xFF0000], [300, 0x0000FF]])"
RAMP_OF_ARRAYS = "new ColorRampVisualizer([[200, [1, 0, 0]], [300, [0, 0, 1]]])"
COMPRESS = "new HighlightCompressVisualizer(0.1, 0.4)"
TRIPLETS = "[[0,0,0],[0.1,0.2,0.5],[0.25,0.4,0.5],[0.4,0.6,0.5],[0.75,0.8,0.5],[1,1,0.5]]"

DOCUMENTED = {
    f"{MAP}.process(199)": [1, 0, 0],
    f"{MAP}.process(200)": [1, 0, 0],
    f"{MAP}.process(250)": [1, 0, 0],
    f"{MAP}.process(299)": [1, 0, 0],
    f"{MAP}.process(300)": [0, 0, 1],
    f"{RAMP}.process(199)": [1, 0, 0],
    f"{RAMP}.process(200)": [1, 0, 0],
    f"{RAMP}.process(250)": [0.4980392156862745, 0, 0.4980392156862745],
    f"{RAMP}.process(299)": [0.00784313725490196, 0, 0.9882352941176471],
    f"{RAMP}.process(300)": [0, 0, 1],
    f"{RAMP_OF_ARRAYS}.process(199)": [1, 0, 0],
    f"{RAMP_OF_ARRAYS}.process(200)": [1, 0, 0],
    f"{RAMP_OF_ARRAYS}.process(250)": [0.4980392156862745, 0, 0.4980392156862745],
    f"{RAMP_OF_ARRAYS}.process(299)": [0.00784313725490196, 0, 0.9882352941176471],
    f"{RAMP_OF_ARRAYS}.process(300)": [0, 0, 1],
    "ColorRampVisualizer.createRedTemperature(0.0, 1.0).process(0.0)": [0, 0, 0],
    "ColorRampVisualizer.createRedTemperature(0.0, 1.0).process(0.3)": [1, 0.43137254901960786, 0],
    "ColorRampVisualizer.createRedTemperature(0.0, 1.0).process(0.5)": [1, 0.5137254901960784, 0],
    "ColorRampVisualizer.createRedTemperature(0.0, 1.0).process(0.8)": [1, 0.8, 0.5764705882352941],
    "ColorRampVisualizer.createRedTemperature(0.0, 1.0).process(1.0)": [1, 1, 1],
    "ColorRampVisualizer.createWhiteGreen(0.0, 1.0).process(0.0)": [0, 0, 0],
    "ColorRampVisualizer.createWhiteGreen(0.0, 1.0).process(0.3)": [0, 0.4, 0],
    "ColorRampVisualizer.createWhiteGreen(0.0, 1.0).process(0.5)": [0.3333333333333333, 0.6, 0],
    "ColorRampVisualizer.createWhiteGreen(0.0, 1.0).process(0.8)": [
        0.7490196078431373,
        0.8509803921568627,
        0.4980392156862745,
    ],
    "ColorRampVisualizer.createWhiteGreen(0.0, 1.0).process(1.0)": [1, 1, 1],
    "ColorRampVisualizer.createBlueRed(0.0, 1.0).process(0.0)": [0, 0, 0.5019607843137255],
    "ColorRampVisualizer.createBlueRed(0.0, 1.0).process(0.3)": [0, 0.6980392156862745, 1],
    "ColorRampVisualizer.createBlueRed(0.0, 1.0).process(0.5)": [0.4980392156862745, 1, 0.4980392156862745],
    "ColorRampVisualizer.createBlueRed(0.0, 1.0).process(0.8)": [1, 0.2980392156862745, 0],
    "ColorRampVisualizer.createBlueRed(0.0, 1.0).process(1.0)": [0.5019607843137255, 0, 0],
    "ColorGradientVisualizer.createRedTemperature(0.0, 1.0).process(0.0)": [0, 0, 0],
    "ColorGradientVisualizer.createRedTemperature(0.0, 1.0).process(0.3)": [0.43137254901960786, 0, 0],
    "ColorGradientVisualizer.createRedTemperature(0.0, 1.0).process(0.5)": [
        0.7176470588235294,
        0.047058823529411764,
        0,
    ],
    "ColorGradientVisualizer.createRedTemperature(0.0, 1.0).process(0.8)": [1, 0.6196078431372549, 0.2],
    "ColorGradientVisualizer.createRedTemperature(0.0, 1.0).process(1.0)": [1, 1, 1],
    "ColorGradientVisualizer.createWhiteGreen(0.0, 1.0).process(0.0)": [0, 0, 0],
    "ColorGradientVisualizer.createWhiteGreen(0.0, 1.0).process(0.3)": [0, 0.2980392156862745, 0],
    "ColorGradientVisualizer.createWhiteGreen(0.0, 1.0).process(0.5)": [0.16862745098039217, 0.5019607843137255, 0],
    "ColorGradientVisualizer.createWhiteGreen(0.0, 1.0).process(0.8)": [0.6666666666666666, 0.8, 0.3333333333333333],
    "ColorGradientVisualizer.createWhiteGreen(0.0, 1.0).process(1.0)": [1, 1, 1],
    "ColorGradientVisualizer.createBlueRed(0.0, 1.0).process(0.0)": [0, 0, 0.5019607843137255],
    "ColorGradientVisualizer.createBlueRed(0.0, 1.0).process(0.3)": [0, 0.7019607843137254, 1],
    "ColorGradientVisualizer.createBlueRed(0.0, 1.0).process(0.5)": [0.5019607843137255, 1, 0.5019607843137255],
    "ColorGradientVisualizer.createBlueRed(0.0, 1.0).process(0.8)": [1, 0.2980392156862745, 0],
    "ColorGradientVisualizer.createBlueRed(0.0, 1.0).process(1.0)": [0.5019607843137255, 0, 0],
    f"{COMPRESS}.process(0)": 0,
    f"{COMPRESS}.process(0.1)": 0,
    f"{COMPRESS}.process(0.25)": 0.5,
    f"{COMPRESS}.process(0.376)": 0.92,
    f"{COMPRESS}.process(0.4)": 0.9259259259259259,
    f"{COMPRESS}.process(0.7)": 1,
    f"{COMPRESS}.process(1.1)": 1,
    "int2rgb(255)": [0, 0, 255],
    "int2rgb(256)": [0, 1, 0],
    "int2rgb(65537)": [1, 0, 1],
    "rgb2int([0, 0, 255])": 255,
    "rgb2int([0, 1, 0])": 256,
    "rgb2int([1, 0, 1])": 65537,
    "combine([100, 0, 0], [0, 100, 0], 1)": [100, 0, 0],
    "combine([100, 0, 0], [0, 100, 0], 0)": [0, 100, 0],
    "combine([100, 0, 0], [0, 100, 0], 0.5)": [50, 50, 0],
    "index(0.6, 0.4)": 0.2,
    "index(0.5, -0.5)": 0.0,
    "inverse(2.0)": 0.5,
    "inverse(5.0)": 0.2,
    "inverse(0)": 1.7976931348623157e308,
    "valueMap(5, [1, 3, 5, 7, 10], [100, 300, 500, 700, 900])": 500,
    "valueMap(1, [1, 3, 5, 7, 10], [100, 300, 500, 700, 900])": 100,
    "valueMap(2, [1, 3, 5, 7, 10], [100, 300, 500, 700, 900])": 300,
    "valueMap(12, [1, 3, 5, 7, 10], [100, 300, 500, 700, 900])": 900,
    "valueMap(50)": 50,
    f"valueInterpolate(0, {FIVE})": 0,
    f"valueInterpolate(-10, {FIVE})": -1000,
    f"valueInterpolate(9, {FIVE})": 810,
    "valueInterpolate(50)": 50,
    f"valueInterpolate(0.1, [0, 0.2, 0.4, 0.6, 0.8, 1], {TRIPLETS})": [0.05, 0.1, 0.25],
    "decodeL8C2Qa(55052)": {
        "cirrus": 1,
        "cirrusConfidence": 3,
        "clear": 0,
        "cloud": 1,
        "cloudConfidence": 3,
        "cloudShadow": 0,
        "cloudShadowConfidence": 1,
        "dilatedCloud": 0,
        "fill": 0,
        "snow": 0,
        "snowIceConfidence": 1,
        "water": 0,
    },
}
"""Expression → value: all that the documentation's "Utility Functions" print, without those in tables."""

MAPPED = "[-10, -5, 0, 5, 10], [-100, -50, 0, 50, 100]"
JUST_ABOVE = 1e-9
MAPPINGS = {
    **{f"valueMap({v}, {MAPPED})": -100 for v in (-1e9, -10)},
    **{f"valueMap({v}, {MAPPED})": -50 for v in (-10 + JUST_ABOVE, -5)},
    **{f"valueMap({v}, {MAPPED})": 0 for v in (-5 + JUST_ABOVE, 0)},
    **{f"valueMap({v}, {MAPPED})": 50 for v in (JUST_ABOVE, 5)},
    **{f"valueMap({v}, {MAPPED})": 100 for v in (5 + JUST_ABOVE, 10, 1e9)},
    **{f"valueInterpolate({v}, {FIVE})": -1000 for v in (-1e9, -10)},
    **{f"valueInterpolate({v}, {FIVE})": 1000 for v in (10, 1e9)},
    **dict(zip((f"valueInterpolate({v}, {FIVE})" for v in (-5, 0, 5)), (-50, 0, 50), strict=True)),
    **dict(zip((f"valueInterpolate({v}, {FIVE})" for v in (-7.5, -2.5, 2.5, 7.5)), (-525, -25, 25, 525), strict=True)),
}
"""The tables "defines the following mapping" of both functions: the ends of each interval, and halfway between them."""

DEFAULT_MAP = {
    -1.0: 0x000000, -0.2: 0xFF0000, -0.1: 0x9A0000, 0.0: 0x660000, 0.1: 0xFFFF33, 0.2: 0xCCCC33, 0.3: 0x666600,
    0.4: 0x33FFFF, 0.5: 0x33CCCC, 0.6: 0x006666, 0.7: 0x33FF33, 0.8: 0x33CC33, 0.9: 0x006600,
}  # fmt: skip
OCEAN = {
    0.0: (147, 0, 108), 0.0471: (111, 0, 144), 0.098: (72, 0, 183), 0.149: (33, 0, 222), 0.2: (0, 10, 255),
    0.2471: (0, 74, 255), 0.298: (0, 144, 255), 0.349: (0, 213, 255), 0.4: (0, 255, 215), 0.4471: (0, 255, 119),
    0.498: (0, 255, 15), 0.549: (96, 255, 0), 0.6: (200, 255, 0), 0.6471: (255, 235, 0), 0.698: (255, 183, 0),
    0.749: (255, 131, 0), 0.8: (255, 79, 0), 0.8471: (255, 31, 0), 0.898: (230, 0, 0), 0.949: (165, 0, 0),
    1.0: (105, 0, 0),
}  # fmt: skip
CONSTANTS = {
    "JAVA_DOUBLE_MAX_VAL": 1.7976931348623157e308,
    "blueRed": [[1, 0x000080], [0.875, 0x0000FF], [0.625, 0x00FFFF], [0.375, 0xFFFF00], [0.125, 0xFF0000],
                [0, 0x800000]],
    "redTemperature": [[1, 0x000000], [0.525, 0xAE0000], [0.3, 0xFF6E00], [0.25, 0xFF8600], [0, 0xFFFFFF]],
    "greenWhite": [[1, 0x000000], [0.6, 0x006600], [0.3, 0x80B300], [0, 0xFFFFFF]],
    "oceanColor": [[position, [part / 255 for part in color]] for position, color in OCEAN.items()],
    "SampleType": {name: name for name in ("INT8", "UINT8", "INT16", "UINT16", "FLOAT32", "AUTO")},
    "Mosaicking": {name: name for name in ("SIMPLE", "ORBIT", "TILE")},
    "Object.keys(decodeS3OLCIQualityFlags(0)).filter((name) => !name.startsWith('saturated')).sort()": [
        "bright", "coastline", "cosmetic", "dubious", "duplicated", "fresh_inland_water", "invalid", "land",
        "straylight_risk", "sun_glint_risk", "tidal_region",
    ],
    "Object.keys(decodeS3OLCIQualityFlags(0)).filter((name) => name.startsWith('saturated'))": [
        f"saturatedB{band:02d}" for band in range(1, 22)
    ],
}  # fmt: skip
"""The documented constants, and the keys that are documented of what a function returns."""

OLCI_FLAGS = (
    *(f"saturatedB{band:02d}" for band in range(21, 0, -1)),
    *("dubious", "sun_glint_risk", "duplicated", "cosmetic", "invalid", "straylight_risk", "bright", "tidal_region"),
    *("fresh_inland_water", "coastline", "land"),
)
"""From the lowest bit on, as in the products of Sentinel-3."""
LANDSAT_8_FLAGS = {
    0: "designatedFill", 1: "terrainOcclusion", 2: "radiometricSaturation", 4: "cloud", 5: "cloudConfidence",
    7: "cloudShadowConfidence", 9: "snowIceConfidence", 11: "cirrusConfidence",
}  # fmt: skip
"""Lowest bit → name, in quality bands of Landsat 8's first collection."""
PAIRED = ("ColorMapVisualizer", "ColorRampVisualizer")

RELIED_UPON = {
    "normalizeRGB([0, 51, 255])": [0, 0.2, 1],
    "combine(0x640000, 0x006400, 0.5)": 0x323200,
    "colorBlend(0.5, [0, 1], [[0, 0, 0], [1, 0.5, 0]])": [0.5, 0.25, 0],
    "colorBlend(7, [0, 1], [[0, 0, 0], [1, 0.5, 0]])": [1, 0.5, 0],
    "colorMap(0.5, [0, 1, 2], [10, 20, 30])": 20,
    "colorMap(1, [0, 1, 2], [10, 20, 30])": 30,
    "colorMap(5, [0, 1, 2], [10, 20, 30])": 30,
    "new ColorMapVisualizer([[0, [9, 8, 7]]]).process(1)": [9, 8, 7],
    "new ColorMapVisualizer([[0, 0xff], [1, 0xff00]]).getColorFromValue(1)": 0xFF00,
    "ColorMapVisualizer.createDefaultColorMap().process(-5)": [0, 0, 0],
    "ColorMapVisualizer.createDefaultColorMap().process(0.05)": [0.4, 0, 0],
    "ColorMapVisualizer.createDefaultColorMap().process(0.95)": [0, 0.4, 0],
    "new ColorRampVisualizer([[1, [0, 0, 200]], [0, [100, 0, 0]]]).process(0.25)": [75, 0, 50],
    "new ColorRampVisualizer([[0, 0], [1, 0xffffff]], 10, 20).process(15)": [127 / 255] * 3,
    "new ColorRampVisualizer([[0, 0], [2, 0xffffff]], undefined, 4).process(2)": [127 / 255] * 3,
    f"{RAMP}.inverse().process(200)": [0, 0, 1],
    f"{RAMP}.inverse().inverse().process(299)": [2 / 255, 0, 252 / 255],
    f"{RAMP}.process(NaN)": [1, 0, 0],
    f"{RAMP}.processList([200, 300])": [[1, 0, 0], [0, 0, 1]],
    "ColorRampVisualizer.createOceanColor(0, 1).process(0)": [147 / 255, 0, 108 / 255],
    "ColorRampVisualizer.createOceanColor(0, 1).process(1)": [105 / 255, 0, 0],
    "new DefaultVisualizer(0, 2).process(1)": 0.5,
    "new DefaultVisualizer(0, 1, 2, 0.1).process(0.2)": 0.5,
    "new DefaultVisualizer(0, 1).process(3)": 1,
    "new DefaultVisualizer(0, 1, 1, 0, 2).process(3)": 9,
    "new DefaultVisualizer(0, 1, 1, 0, 2).process(-3)": 0,
    "new HighlightCompressVisualizer(0, 1).process(0.95)": 0.95,
    "new HighlightCompressVisualizerSingle(0.1, 0.4).process(0.25)": [0.5],
    "new HighlightCompressVisualizer(0, 0.5).processList([0, 0.25])": [0, 0.5],
    "new Identity().process([1, 2])": [1, 2],
    "new Identity().process(3)": [3],
    "decodeLs8Qa(0b1101101010111).cloudConfidence": 0b10,
    "decodeLs8Qa(0b1101101010111).cirrusConfidence": 0b11,
    "decodeS3OLCIQualityFlags(2 ** 31).land": 1,
    "decodeS3OLCIQualityFlags(2 ** 31).coastline": 0,
    "decodeS3OLCIQualityFlags(2 ** 20).saturatedB01": 1,
    "decodeS3OLCIQualityFlags(1).saturatedB21": 1,
    **{f"decodeS3OLCIQualityFlags(2 ** {bit}).{name}": 1 for bit, name in enumerate(OLCI_FLAGS)},
    **{f"decodeLs8Qa(2 ** {bit}).{name}": 1 for bit, name in LANDSAT_8_FLAGS.items()},
    **{f"new {name}([[0, [0, 0, 0]], [1, [9, 9, 9]]]).processList([0, 1])[1]": [9, 9, 9] for name in PAIRED},
    "new DefaultVisualizer().processList([0.25, 2])": [0.25, 1],
    "new Identity().processList([1, 2])": [[1], [2]],
    "valueMap(3, undefined, [1])": 3,
    "valueMap(3, [1])": 3,
    "valueInterpolate(3, [1])": 3,
    "colorMap(3, [1])": 3,
}
"""What the documentation does not print and published scripts rely on (research note evalscript-v3, section 8)."""


@pytest.fixture(scope="module")
def computed() -> dict[str, Any]:
    """All expressions, in one context."""
    expressions = [*DOCUMENTED, *MAPPINGS, *CONSTANTS, *RELIED_UPON]
    return dict(zip(expressions, values_of(*expressions), strict=True))


def approximately(value: Any) -> Any:
    """Equal to a double's last digits: the documentation rounds some of its values."""
    return value if isinstance(value, dict) or np.ndim(value) > 1 else pytest.approx(value, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("expression", DOCUMENTED)
def test_documented_examples_give_the_documented_values(expression: str, computed: dict[str, Any]) -> None:
    assert computed[expression] == approximately(DOCUMENTED[expression])


@pytest.mark.parametrize("expression", MAPPINGS)
def test_documented_mappings_hold_at_the_ends_of_their_intervals(expression: str, computed: dict[str, Any]) -> None:
    assert computed[expression] == pytest.approx(MAPPINGS[expression], abs=1e-9)


@pytest.mark.parametrize("expression", CONSTANTS)
def test_documented_constants_have_the_documented_values(expression: str, computed: dict[str, Any]) -> None:
    assert computed[expression] == CONSTANTS[expression]


def test_the_default_colour_map_has_the_documented_stops() -> None:
    found = value_of(f"{list(DEFAULT_MAP)}.map((v) => ColorMapVisualizer.createDefaultColorMap().getColorFromValue(v))")
    assert found == list(DEFAULT_MAP.values())


def test_the_ocean_ramp_shows_its_stops_as_they_are() -> None:
    ramp = "ColorRampVisualizer.createOceanColor(0, 1)"
    found = value_of(f"{list(OCEAN)}.map((v) => {ramp}.process(v).map((part) => Math.round(part * 255)))")
    assert found == [list(color) for color in OCEAN.values()]


@pytest.mark.parametrize("expression", RELIED_UPON)
def test_what_published_scripts_rely_on_is_there(expression: str, computed: dict[str, Any]) -> None:
    assert computed[expression] == approximately(RELIED_UPON[expression])


def names_provided() -> list[str]:
    """What a script finds in its global scope besides what V8 puts there."""
    names = set(value_of("Object.getOwnPropertyNames(globalThis)")) - {"setup", "evaluatePixel", "updateOutputMetadata"}
    with mini_racer() as plain:
        return sorted(
            names - set(json.loads(str(plain.eval("JSON.stringify(Object.getOwnPropertyNames(globalThis))"))))
        )


@pytest.mark.parametrize(
    "declaration",
    [
        "let {} = {};",
        "const {} = {};",
        "var {} = {};",
        "{} = {};",
        "class {0} {{ static [Symbol.toPrimitive]() {{ return {1}; }} }};",
    ],
)
def test_a_script_may_declare_every_name_of_ours_itself(declaration: str) -> None:
    names = names_provided()
    own = "".join(declaration.format(name, number) + "\n" for number, name in enumerate(names))
    used = ", ".join(f"+{name}" for name in names)
    with Evalscript(SCRIPT.format(used).replace("function setup", own + "function setup")) as script:
        script.prepare([dataset()])
        assert script.user_data() == list(range(len(names)))


def test_a_script_may_declare_functions_of_every_name_of_ours() -> None:
    names = names_provided()
    own = "".join(f"function {name}() {{ return {number}; }}\n" for number, name in enumerate(names))
    with Evalscript(SCRIPT.format(", ".join(f"{name}()" for name in names)) + own) as script:
        script.prepare([dataset()])
        assert script.user_data() == list(range(len(names)))


def test_interpolating_leaves_the_scripts_own_colours_alone() -> None:
    colours = [[0, 0, 0], [1, 1, 1]]
    source = f"(() => {{ const colours = {colours}; valueInterpolate(0.5, [0, 1], colours)[0] = 9; "
    edges = (
        "valueInterpolate(0, [0, 1], colours)[0] = 9; valueInterpolate(1, [0, 1], colours)[0] = 9; return colours; })()"
    )
    assert value_of(source + edges) == colours


@given(
    points=st.lists(
        st.tuples(st.integers(-50, 50), st.floats(-1e3, 1e3)), min_size=2, max_size=6, unique_by=lambda p: p[0]
    ),
    values=st.lists(st.floats(-60, 60), min_size=1, max_size=8),
)
def test_interpolation_equals_numpys(points: list[tuple[int, float]], values: list[float]) -> None:
    positions, heights = zip(*sorted(points), strict=True)
    limits = f"{json.dumps(positions)}, {json.dumps(heights)}"
    found = values_of(*(f"valueInterpolate({value!r}, {limits})" for value in values))
    assert found == pytest.approx(np.interp(values, positions, heights).tolist(), rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(0, 0xFFFFFF), min_size=1, max_size=5))
def test_colours_survive_the_way_to_triplets_and_back(colours: list[int]) -> None:
    assert values_of(*(f"rgb2int(int2rgb({colour}))" for colour in colours)) == colours


@given(st.floats(-0.5, 1.5), st.sampled_from(["RedTemperature", "WhiteGreen", "BlueRed", "OceanColor"]))
def test_ramps_stay_within_colours_whatever_the_value(value: float, name: str) -> None:
    colour = value_of(f"ColorRampVisualizer.create{name}(0, 1).process({value!r})")
    assert len(colour) == 3
    assert all(math.isfinite(part) and 0 <= part <= 1 for part in colour)
