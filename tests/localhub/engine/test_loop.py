import numpy as np
import pytest

from tests.localhub.engine.engine_runs import run, scenes_on

SETUP = """//VERSION=3
function setup() { return { input: ["B04"], output: { bands: 1, sampleType: "UINT8" }, mosaicking: "ORBIT" }; }
const firstDay = (scenes) => new Date(scenes.orbits[0].dateFrom).getUTCDate();
"""


@pytest.mark.parametrize(
    "function",
    [
        "function evaluatePixel(samples, scenes) { DAMAGE }",
        "function evaluatePixel(samples) { const scenes = arguments[1]; DAMAGE }",
        "function evaluatePixel() { const scenes = arguments[1]; DAMAGE }",
        "function evaluatePixel(samples) { const scenes = eval('argu' + 'ments')[1]; DAMAGE }",
        "function evaluatePixel(samples, scenes = null) { DAMAGE }",
        "function evaluatePixel(...all) { const [, scenes] = all; DAMAGE }",
        "var evaluatePixel = (samples, { orbits }) => { const scenes = { orbits }; DAMAGE };",
        "const evaluatePixel = (function (samples, scenes) { DAMAGE }).bind(null);",
        "const evaluatePixel = new Proxy(function (samples, scenes) { DAMAGE }, {});",
        "const { evaluatePixel } = { evaluatePixel(samples, scenes) { DAMAGE } };",
    ],
)
def test_scenes_are_in_order_for_each_pixel_by_whatever_way_a_script_reaches_and_reverses_them(function: str) -> None:
    damaging = "const day = firstDay(scenes); scenes.orbits.reverse(); return [day];"
    values = np.ones((2, 3, 50), "uint16")
    result = run(SETUP + function.replace("DAMAGE", damaging), {"B04": values}, scenes_on(6, 2)).values["default"]
    np.testing.assert_array_equal(result, np.full((1, 3, 50), 7))


@pytest.mark.parametrize("pixels", [1, 31, 32, 33, 300_000])
def test_any_number_of_pixels_comes_back_in_its_order(pixels: int) -> None:
    source = (
        SETUP.replace("UINT8", "UINT16").replace("ORBIT", "SIMPLE").replace('"B04"', '{ bands: ["B04"], units: "DN" }')
    )
    values = np.random.default_rng(3).integers(0, 65_536, (1, 1, pixels), "uint16")
    result = run(source + "function evaluatePixel(sample) { return [sample.B04]; }", {"B04": values}).values["default"]
    np.testing.assert_array_equal(result, values)
