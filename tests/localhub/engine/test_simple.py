"""Scripts in the simple form: the file is the body of a function of one pixel."""

import pytest

from localhub.engine import Evalscript, EvalscriptError, Input, Output
from localhub.engine.simple import bands_named, is_simple
from tests.localhub.engine.engine_runs import run

NDVI = """//VERSION=3
// B01 is only spoken of here, "B05" too
let index = (B08 - B04) / (B08 + B04); /* B12 */
return [index, "B03".length, dataMask];
"""


def test_bands_are_the_names_in_the_code_and_the_output_has_what_is_returned() -> None:
    with Evalscript(NDVI) as script:
        assert script.setup.inputs == (Input(None, ("B08", "B04", "dataMask"), (None, None, None), None),)
        assert script.setup.outputs == (Output("default", 3, "AUTO", None),)
        assert script.setup.mosaicking == "SIMPLE"


def test_every_pixel_is_computed_from_reflectances() -> None:
    result = run(NDVI, {"B08": [7500], "B04": [2500], "dataMask": [1]})
    assert result.values["default"].ravel().tolist() == [128, 255, 255]


@pytest.mark.parametrize(
    "body",
    [
        "var B04 = 2 * B04; return [B04];",
        "B04 = 2 * B04; return [B04]",
        "function twice(x) { return 2 * x } return [twice(B04)]; // at the end",
        "if (B04 > 10) { return [0.1, 0.2]; }\nreturn [B04 * 2]",
        "return colorBlend(B04, [0, 1], [[0], [2]])",
        "let gain = 2\nreturn [B04].map(a => gain * a);",
    ],
)
def test_scripts_as_people_write_them_run(body: str) -> None:
    assert run(f"//VERSION=3 (auto-converted from 1)\n{body}", {"B04": [2500]}).values["default"].ravel().tolist() == [
        128
    ]


def test_an_error_names_the_line_of_the_users_own_file() -> None:
    with pytest.raises(EvalscriptError, match=r"(?s)evalscript\.js:3: ReferenceError: nothing.*return \[nothing"):
        Evalscript("//VERSION=3\nlet a = B04;\nreturn [nothing(a)];")


def test_a_script_that_does_not_parse_says_where() -> None:
    with pytest.raises(EvalscriptError, match=r"evalscript\.js:2: SyntaxError"):
        Evalscript("//VERSION=3\nreturn [B04;")


def test_a_script_without_functions_and_bands_is_refused() -> None:
    with pytest.raises(EvalscriptError, match="no functions setup and evaluatePixel, and names no band"):
        Evalscript("//VERSION=3\nreturn [1];")


def test_a_result_that_is_no_array_is_an_error() -> None:
    with pytest.raises(EvalscriptError, match="Script must return an array"):
        Evalscript("//VERSION=3\nreturn B04;")


@pytest.mark.parametrize(
    ("source", "simple"),
    [
        ("return [B04]", True),
        ("// no setup here\nreturn [B04]", True),
        ("return ['evaluatePixel', B04]", True),
        ("let unfinished = B04;", False),
        ("function setup() { return 1 }", False),
        ("var evaluatePixel = s => [s.B04]", False),
    ],
)
def test_functions_in_code_tell_the_forms_apart(source: str, simple: bool) -> None:
    assert is_simple(source) is simple


def test_a_script_that_evaluates_texts_reads_the_bands_in_them() -> None:
    body = "function of(formula) { return eval(formula) }\nreturn [of('(B08-B04)/(B08+B04)')] // not B02"
    assert bands_named(body) == ("B08", "B04")
    assert run(f"//VERSION=3\n{body}", {"B08": [7500], "B04": [2500]}).values["default"].ravel().tolist() == [128]


def test_properties_and_parts_of_names_are_no_bands() -> None:
    assert bands_named("x.B02 + B03b + $B04 + B8A / B8A + SCL") == ("B8A", "SCL")
