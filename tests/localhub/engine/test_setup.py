import math

import numpy as np
import pytest

from localhub.engine import Evalscript, EvalscriptError, Input, Output, Setup
from localhub.engine.setup import DTYPES


def setup_of(body: str, before: str = "") -> Setup:
    source = f"//VERSION=3\n{before}\nfunction setup() {{ return {body}; }}\nfunction evaluatePixel() {{}}\n"
    with Evalscript(source) as script:
        return script.setup


BOTH_BANDS = Input(None, ("B04", "dataMask"), (None, None), None)


@pytest.mark.parametrize(
    ("declared", "inputs"),
    [
        ("['B04', 'dataMask']", (BOTH_BANDS,)),
        ("['B04', 'dataMask', 'B04']", (BOTH_BANDS,)),
        ("'B04'", (Input(None, ("B04",), (None,), None),)),
        ("{bands: ['B04', 'dataMask']}", (BOTH_BANDS,)),
        ("[{bands: ['B04', 'dataMask']}]", (BOTH_BANDS,)),
        ("[{bands: ['B04', 'dataMask'], units: 'DN'}]", (Input(None, ("B04", "dataMask"), ("DN", "DN"), None),)),
        ("[{bands: ['B04', 'SCL'], units: ['dn', 'DN']}]", (Input(None, ("B04", "SCL"), ("dn", "DN"), None),)),
        ("[{bands: ['B04', 'dataMask'], units: undefined}]", (BOTH_BANDS,)),
        ("[{bands: ['B04'], metadata: ['bounds']}]", (Input(None, ("B04",), (None,), None, bounds=True),)),
        ("[{bands: ['B04'], metadata: ['other']}]", (Input(None, ("B04",), (None,), None),)),
        ("[{bands: ['B04']}, {bands: ['B08']}]", tuple(Input(None, (name,), (None,), None) for name in ("B04", "B08"))),
        ("[{datasource: 'a', bands: ['VV'], mosaicking: 'TILE'}]", (Input("a", ("VV",), (None,), "TILE"),)),
        ("[{bands: ['VV'], mosaicking: Mosaicking.ORBIT}]", (Input(None, ("VV",), (None,), "ORBIT"),)),
    ],
)
def test_every_form_of_input_is_understood(declared: str, inputs: tuple[Input, ...]) -> None:
    assert setup_of(f"{{input: {declared}, output: {{bands: 1}}}}").inputs == inputs


@pytest.mark.parametrize(
    ("declared", "outputs"),
    [
        ("{bands: 3}", (Output("default", 3, "AUTO", None),)),
        ("[{bands: 3}]", (Output("default", 3, "AUTO", None),)),
        ("{bands: ['red', 'green']}", (Output("default", 2, "AUTO", None),)),
        ("{bands: count * 2}", (Output("default", 8, "AUTO", None),)),
        ("{bands: 3.0, id: 'mine'}", (Output("mine", 3, "AUTO", None),)),
        ("{bands: 0}", (Output("default", 0, "AUTO", None),)),
        ("{bands: 1, nodataValue: 255}", (Output("default", 1, "AUTO", 255),)),
        ("{bands: 1, nodataValue: -9999, sampleType: 'INT16'}", (Output("default", 1, "INT16", -9999),)),
        ("{bands: 1, nodataValue: -9999}", (Output("default", 1, "AUTO", None),)),
        ("{bands: 1, nodataValue: NaN, sampleType: 'UINT16'}", (Output("default", 1, "UINT16", None),)),
        ("{bands: 1, nodataValue: -Infinity, sampleType: 'FLOAT32'}", (Output("default", 1, "FLOAT32", -math.inf),)),
        ("{bands: 1, nodataValue: undefined}", (Output("default", 1, "AUTO", None),)),
        ("[{bands: 1, id: 'a'}, {bands: 2, id: 'b'}]", (Output("a", 1, "AUTO", None), Output("b", 2, "AUTO", None))),
        *((f"{{bands: 1, sampleType: '{name}'}}", (Output("default", 1, name, None),)) for name in DTYPES),
        *((f"{{bands: 1, sampleType: '{name.title()}'}}", (Output("default", 1, name, None),)) for name in DTYPES),
        *((f"{{bands: 1, sampleType: SampleType.{name}}}", (Output("default", 1, name, None),)) for name in DTYPES),
    ],
)
def test_every_form_of_output_is_understood(declared: str, outputs: tuple[Output, ...]) -> None:
    assert setup_of(f"{{input: ['B04'], output: {declared}}}", before="var count = 4;").outputs == outputs


@pytest.mark.parametrize(
    ("declared", "mosaicking"),
    [
        ("", "SIMPLE"),
        (", mosaicking: undefined", "SIMPLE"),
        (", mosaicking: Mosaicking.ORBITS", "SIMPLE"),
        *((f", mosaicking: '{name}'", name) for name in ("SIMPLE", "ORBIT", "TILE")),
        *((f", mosaicking: Mosaicking.{name}", name) for name in ("SIMPLE", "ORBIT", "TILE")),
        *((f", mosaicking: '{name.title()}'", name) for name in ("SIMPLE", "ORBIT", "TILE")),
    ],
)
def test_mosaicking_is_a_string_or_a_constant_and_simple_where_it_is_undefined(declared: str, mosaicking: str) -> None:
    assert setup_of(f"{{input: ['B04'], output: {{bands: 1}}{declared}}}").mosaicking == mosaicking


def test_setup_is_called_once_without_arguments_after_the_top_level_code() -> None:
    before = "let calls = 0; function count() { return arguments.length; }"
    setup = setup_of(
        "{input: ['B04'], output: {bands: ++calls + 10 * setup.length + 100 * late}}", f"{before} var late = 7;"
    )
    assert setup.outputs[0].bands == 701


def test_inputs_of_one_collection_are_merged_and_the_last_unit_counts() -> None:
    inputs = """[{datasource: 'any', bands: ['B04', 'SCL']},
      {datasource: 'any', bands: ['B04', 'B08'], units: 'DN', metadata: ['bounds']}]"""
    (source,) = setup_of(f"{{input: {inputs}, output: {{bands: 1}}}}").sources(["any"])
    assert source.factors("sentinel-2-l2a") == {"B04": 1, "SCL": 1, "B08": 1}
    assert source.bounds


@pytest.mark.parametrize("name", [None, "only"])
def test_a_second_input_without_datasource_is_for_a_second_collection(name: str | None) -> None:
    setup = setup_of("{input: [{bands: ['B04']}, {bands: ['SCL'], units: 'DN'}], output: {bands: 1}}")
    with pytest.raises(EvalscriptError, match=r"^Dataset with id: 1 not found\. .* has 2 entries, .* request has 1\."):
        setup.sources([name])
    assert [source.units for source in setup.sources([None, None])] == [{"B04": None}, {"SCL": "DN"}]


def test_inputs_as_objects_carry_units_datasource_and_mosaicking() -> None:
    setup = setup_of(
        '{input: [{datasource: "s2", bands: ["B04", "SCL"], units: ["reflectance", "DN"],'
        ' mosaicking: Mosaicking.ORBIT}, {datasource: "s2", bands: ["B08"], units: "DN"}],'
        ' output: {bands: 1}, mosaicking: "TILE"}'
    )
    assert setup.inputs == (
        Input("s2", ("B04", "SCL"), ("reflectance", "DN"), "ORBIT"),
        Input("s2", ("B08",), ("DN",), None),
    )
    (source,) = setup.sources([None])
    assert source.mosaicking == "ORBIT"
    assert source.factors("sentinel-2-l2a") == {"B04": 0.0001, "SCL": 1.0, "B08": 1.0}


def test_outputs_carry_id_bands_sample_type_and_nodata_value() -> None:
    setup = setup_of(
        '{input: ["B04"], output: [{id: "a", bands: N + 1, sampleType: SampleType.UINT16, nodataValue: 65535},'
        ' {id: "b", bands: ["x", "y"], sampleType: "FLOAT32", nodataValue: NaN}, {id: "c", bands: 2}]}',
        before="var N = 4;",
    )
    a, b, c = setup.outputs
    assert a == Output("a", 5, "UINT16", 65535.0)
    assert (b.id, b.bands, b.dtype) == ("b", 2, np.float32)
    assert b.nodata_value is not None
    assert np.isnan(b.nodata_value)
    assert (c.sample_type, c.dtype) == ("AUTO", np.uint8)


@pytest.mark.parametrize(
    "functions",
    [
        "function setup() { return {input: ['B04'], output: {bands: 1}}; } function evaluatePixel(s) {}",
        "var setup = function () { return {input: 'B04', output: [{bands: 1}]}; }; var evaluatePixel = (s) => [s.B04];",
        "const setup = () => ({input: [{bands: ['B04']}], output: {bands: 1}}); let evaluatePixel = (s) => [s.B04];",
        "setup = () => ({input: {bands: ['B04']}, output: {bands: 1}}); evaluatePixel = function (s) {};",
    ],
)
def test_functions_may_be_declared_or_assigned(functions: str) -> None:
    with Evalscript(f"//VERSION=3\n{functions}") as script:
        assert script.setup.inputs[0].bands == ("B04",)


FUNCTIONS = "function setup() { return {input: ['B04'], output: {bands: 1}}; } function evaluatePixel(s) {}"


@pytest.mark.parametrize(
    "head",
    [
        "//VERSION=3\n",
        "// VERSION = 3 (auto-converted from 1)\n",
        "//VERSION=3 by somebody\r\n",
        "\n\n  //VERSION=3\n",
        "// a comment first\n\n//VERSION=3\n",
        "/* a block */\n//VERSION=3\n",
        "\ufeff//VERSION=3\n",
        "let early = 1;\n// set VERSION=3\n",
    ],
)
def test_the_mark_of_version_3_may_stand_in_any_line_comment_of_its_own(head: str) -> None:
    with Evalscript(head + FUNCTIONS) as script:
        assert script.setup.outputs[0].bands == 1


@pytest.mark.parametrize(
    "head", ["", "//VERSION=2\n", "//VERSION=1\n", "//VERSION=30\n", "let VERSION=3;\n", "// V3\n"]
)
def test_scripts_of_other_versions_are_refused(head: str) -> None:
    with pytest.raises(EvalscriptError, match=r"^Invalid script! Only evalscripts of version 3 .* with //VERSION=3\.$"):
        Evalscript(head + FUNCTIONS)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("undefined", "must return an object"),
        ("{output: {bands: 1}}", r"setup\(\).input must hold"),
        ("{input: [], output: {bands: 1}}", "names no band"),
        ("{input: [{bands: []}], output: {bands: 1}}", "array of band names"),
        ("{input: [{bands: ['B04', 'B08'], units: ['DN']}], output: {bands: 1}}", r"one per band \(2\)"),
        ("{input: ['B04'], output: {bands: 'three'}}", "whole number, not 'three'"),
        ("{input: ['B04'], output: {}}", "whole number, not None"),
        ("{input: ['B04'], output: []}", "declares nothing"),
        ("{input: ['B04'], output: [{id: 'a', bands: 1}, {id: 'a', bands: 1}]}", "id 'a' twice"),
        ("{input: ['B04'], output: {bands: 1, sampleType: 'UINT32'}}", "Unknown sampleType 'UINT32'"),
        ("{input: ['B04'], output: {bands: 1}, mosaicking: 'DAY'}", "Unknown mosaicking 'DAY'"),
        ("{input: [{bands: ['B04'], mosaicking: 'DAY'}], output: {bands: 1}}", "Unknown mosaicking 'DAY'"),
        ("{input: [{bands: ['B04'], metadata: 'bounds'}], output: {bands: 1}}", "metadata must be an array"),
        ("{input: [7], output: {bands: 1}}", "must hold band names or objects"),
        ("{input: [{bands: ['B04'], datasource: [1]}], output: {bands: 1}}", r"datasource must be a string, not \[1\]"),
        ("{input: ['B04'], output: {bands: 1, id: 5}}", "id must be a string, not 5"),
        ("{input: ['B04'], output: {bands: 1, sampleType: {}}}", "Unknown sampleType {}"),
        ("{input: ['B04'], output: {bands: 1, sampleType: null}}", "Unknown sampleType None"),
        ("{input: ['B04']}", r"setup\(\).output must be an object"),
        ("{input: ['B04'], output: {bands: -1}}", "whole number, not -1"),
        ("{input: ['B04'], output: {bands: 1.5}}", "whole number, not 1.5"),
        ("{input: ['B04'], output: {bands: true}}", "whole number, not True"),
        ("{input: ['B04'], output: {bands: 65536}}", "65535 bands at most, not 65536"),
        ("{input: ['B04'], output: {bands: 1, nodataValue: 'none'}}", "nodataValue .* number, not 'none'"),
        ("{input: ['B04'], output: {componentCount: 3}}", "'componentCount' .* belongs to version 2"),
        ("{input: ['B04'], output: {bands: 3, components: []}}", "'components' .* belongs to version 2"),
    ],
)
def test_a_wrong_declaration_is_an_invalid_script(body: str, text: str) -> None:
    with pytest.raises(EvalscriptError, match=text) as error:
        setup_of(body)
    assert str(error.value).startswith("Invalid script! ")
