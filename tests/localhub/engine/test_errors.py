import os
import subprocess
import sys

import numpy as np
import pytest

from localhub.engine import Evalscript, EvalscriptError
from tests.localhub.engine.engine_runs import dataset, run, scenes_on

SETUP = 'function setup() { return {input: ["B04"], output: {bands: 1}, mosaicking: "ORBIT"}; }\n'


def message(source: str) -> str:
    with pytest.raises(EvalscriptError) as error:
        run(source, {"B04": [1, 2]}, scenes_on(1, 2))
    return str(error.value)


def test_an_error_in_a_pixel_names_the_line_of_the_users_own_file() -> None:
    text = message(f"//VERSION=3\n{SETUP}function evaluatePixel(samples) {{\n  return samples[7].B04;\n}}")
    assert text.startswith(
        "Failed to evaluate script!\nevalscript.js:4: TypeError: Cannot read properties of undefined (reading 'B04')\n"
        "  return samples[7].B04;"
    )
    assert "at evaluatePixel (evalscript.js:4:21)" in text
    assert "localhub" not in text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("//VERSION=3\nlet = = 1;\n\n", "evalscript.js:2: SyntaxError: "),
        ("//VERSION=3\nfunction setup( {}", "evalscript.js:3: SyntaxError: Unexpected end of input"),
        ("//VERSION=3\n/* unfinished", "evalscript.js:"),
        ("//VERSION=3\n\nmissing();", "evalscript.js:3: ReferenceError: missing is not defined"),
        (
            "//VERSION=3\nfunction evaluatePixel() {}\nfunction setup() {\n  return x; }",
            "evalscript.js:4: ReferenceError",
        ),
        (f"//VERSION=3\n{SETUP}function evaluatePixel() {{ throw 'my own' }}", "evalscript.js:3: my own"),
        (f"//VERSION=3\n{SETUP}function evaluatePixel() {{}}\nfunction updateOutput() {{ a.b }}", "evalscript.js:4: "),
        (
            f"//VERSION=3\n{SETUP}function evaluatePixel() {{}}\nfunction preProcessScenes() {{ a.b }}",
            "evalscript.js:4",
        ),
    ],
)
def test_every_stage_reports_its_line(source: str, text: str) -> None:
    assert message(source).startswith(f"Failed to evaluate script!\n{text}")


PIXEL = "function evaluatePixel() {}\n"
FORMS = {
    "top_level_code": f"missing;\n//VERSION=3\n{SETUP}{PIXEL}",
    "setup": f"//VERSION=3\nfunction setup() {{ missing }}\n{PIXEL}",
    "an_assigned_setup": f"//VERSION=3\nvar setup = () => missing;\n{PIXEL}",
    "preProcessScenes": f"//VERSION=3\nfunction preProcessScenes() {{ missing }}\n{SETUP}{PIXEL}",
    "filterScenes": f"//VERSION=3\nfunction filterScenes() {{ missing }}\n{SETUP}{PIXEL}",
    "updateOutput": f"//VERSION=3\nfunction updateOutput() {{ missing }}\n{SETUP}{PIXEL}",
    "evaluatePixel": f"//VERSION=3\n{SETUP}function evaluatePixel() {{\n  missing }}\n",
    "an_assigned_evaluatePixel": f"//VERSION=3\n{SETUP}const evaluatePixel = (samples) =>\n  missing;\n",
    "updateOutputMetadata": f"//VERSION=3\n{SETUP}{PIXEL}function updateOutputMetadata() {{ missing }}\n",
    "the_simple_form": "//VERSION=3\nlet a = B04 && missing;\nreturn [a];",
    "the_first_line_of_the_simple_form": "let a = B04 && missing;\n//VERSION=3\nreturn [a];",
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("form", FORMS)
def test_the_line_is_the_users_own_in_every_form(form: str, line_end: str) -> None:
    source = FORMS[form]
    line = source[: source.index("missing")].count("\n") + 1
    text = message(source.replace("\n", line_end))
    assert text.startswith(
        f"Failed to evaluate script!\nevalscript.js:{line}: ReferenceError: missing is not defined\n"
    )
    assert "localhub" not in text


def test_an_error_in_a_later_pixel_of_the_simple_form_names_its_line() -> None:
    with pytest.raises(EvalscriptError, match=r"evalscript\.js:3: ReferenceError: missing is not defined"):
        run("//VERSION=3\nlet a = B04;\nif (a > 0.5) missing();\nreturn [a];", {"B04": [9000]})


def test_a_missing_function_is_named() -> None:
    assert message("//VERSION=3\n" + SETUP).endswith("The script has no function evaluatePixel.")
    assert message("//VERSION=3\nfunction evaluatePixel() {}").endswith("The script has no function setup.")


def test_a_script_without_the_mark_of_version_3_is_refused() -> None:
    assert "//VERSION=3" in message(SETUP)


@pytest.mark.parametrize("value", ["5", "null", "'text'", "{}", "{default: 5}"])
def test_a_result_that_is_no_array_is_an_error(value: str) -> None:
    text = message(f"//VERSION=3\n{SETUP}function evaluatePixel() {{ return {value}; }}")
    assert text == "Failed to evaluate script!\nScript must return an array."


@pytest.mark.parametrize("returned", ["undefined", "{}", "{scenes: {orbits: 1}}"])
def test_pre_process_scenes_must_return_scenes(returned: str) -> None:
    text = message(
        f"//VERSION=3\n{SETUP}function evaluatePixel() {{}}\nfunction preProcessScenes() {{ return {returned}; }}"
    )
    assert text.endswith("preProcessScenes must return collections with an array scenes.orbits.")


def test_pre_process_scenes_cannot_invent_scenes() -> None:
    text = message(
        f"//VERSION=3\n{SETUP}function evaluatePixel() {{}}\n"
        "function preProcessScenes(c) { c.scenes.orbits.push({__idx: 99}); return c; }"
    )
    assert "scenes they were given" in text


def test_a_script_that_does_not_end_is_stopped() -> None:
    endless = f"//VERSION=3\n{SETUP}function evaluatePixel() {{ for (;;); }}"
    with Evalscript(endless, timeout_seconds=0.2) as script:
        script.prepare([dataset(scenes_on(1))])
        with pytest.raises(EvalscriptError, match=r"ran longer than 0.2 s"):
            script.evaluate([{"B04": np.ones((1, 1, 1), "uint16")}])


def test_top_level_code_that_does_not_end_is_stopped() -> None:
    with pytest.raises(EvalscriptError, match="longer"):
        Evalscript("//VERSION=3\nwhile (true);", timeout_seconds=0.2)


def test_a_script_that_takes_all_memory_is_stopped() -> None:
    with pytest.raises(EvalscriptError, match="used more than 1 GB"):
        Evalscript("//VERSION=3\nconst kept = []; while (true) kept.push(new Array(100000).fill(kept.length + 0.5));")


@pytest.mark.parametrize("zone", ["America/New_York", None])
def test_dates_without_a_zone_are_utc_whatever_the_machine_says(zone: str | None) -> None:
    code = """
import os, time
from localhub.engine import Evalscript
before = os.environ.get("TZ")
with Evalscript('''//VERSION=3
const hours = new Date(2020, 6, 1).getTime() / 3600000 % 24;
function setup() { return {input: ["B04"], output: {bands: hours + 1}}; }
function evaluatePixel() {}''') as script:
    assert script.setup.outputs[0].bands == 1, script.setup.outputs
assert os.environ.get("TZ") == before
"""
    environment = {key: value for key, value in os.environ.items() if key != "TZ"} | ({"TZ": zone} if zone else {})
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
