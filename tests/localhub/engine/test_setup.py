import numpy as np
import pytest

from localhub.engine import Evalscript, EvalscriptError, Input, Output, Setup


def setup_of(body: str, before: str = "") -> Setup:
    source = f"//VERSION=3\n{before}\nfunction setup() {{ return {body}; }}\nfunction evaluatePixel() {{}}\n"
    with Evalscript(source) as script:
        return script.setup


def test_band_names_alone_make_one_input_with_default_units() -> None:
    setup = setup_of('{input: ["B04", "B08", "B04", "dataMask"], output: {bands: 1}}')
    assert setup.inputs == (Input(None, ("B04", "B08", "dataMask"), (None, None, None), None),)
    assert setup.outputs == (Output("default", 1, "AUTO", None),)
    assert setup.mosaicking == "SIMPLE"


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


def test_a_misspelt_mosaicking_constant_means_simple() -> None:
    assert setup_of('{input: ["B04"], output: {bands: 1}, mosaicking: Mosaicking.ORBITS}').mosaicking == "SIMPLE"


@pytest.mark.parametrize(
    "functions",
    [
        "function setup() { return {input: ['B04'], output: {bands: 1}}; } function evaluatePixel(s) {}",
        "var setup = function () { return {input: 'B04', output: [{bands: 1}]}; }; var evaluatePixel = (s) => [s.B04];",
        "const setup = () => ({input: [{bands: ['B04']}], output: {bands: 1}}); let evaluatePixel = (s) => [s.B04];",
    ],
)
def test_functions_may_be_declared_or_assigned(functions: str) -> None:
    with Evalscript(f"// a comment first\n\n// VERSION = 3 (auto-converted from 1)\n{functions}") as script:
        assert script.setup.inputs[0].bands == ("B04",)


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
    ],
)
def test_a_wrong_declaration_is_an_invalid_script(body: str, text: str) -> None:
    with pytest.raises(EvalscriptError, match=text) as error:
        setup_of(body)
    assert str(error.value).startswith("Invalid script! ")
