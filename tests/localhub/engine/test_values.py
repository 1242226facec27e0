"""From what a pixel returns to what the file stores."""

import math

import numpy as np
import pytest

from localhub.engine import Evalscript, EvalscriptError
from tests.localhub.engine.engine_runs import dataset, pixel, run, scenes_on, script

WILD = [
    -1e300,
    -40000,
    -200.5,
    -0.6,
    -0.5,
    -0.4,
    0,
    0.2,
    0.5,
    0.9,
    1,
    1.5,
    40.6,
    127.5,
    255.5,
    310,
    40000,
    65535.4,
    1e300,
]


STORED = {
    "AUTO": {"-0.1": 0, "0": 0, "0.5": 128, "0.999": 255, "1": 255, "1.2": 255, "1 / 255": 1, "true": 255},
    "UINT8": {"40.6": 41, "310": 255, "0.4": 0, "0.5": 1, "1.5": 2, "2.5": 3, "254.5": 255, "-7": 0, "-0.4": 0},
    "INT8": {"-128.6": -128, "-1.5": -1, "-1.6": -2, "-0.5": 0, "126.5": 127, "127.5": 127, "'7'": 7, "[7]": 7},
    "UINT16": {"65534.5": 65535, "65535.5": 65535, "1e300": 65535, "-1e300": 0, "true": 1},
    "INT16": {"32766.5": 32767, "40000": 32767, "-32768.4": -32768, "-40000": -32768, "-2.5": -2, "false": 0},
    "FLOAT32": {
        "0.1": np.float32(0.1),
        "1e300": math.inf,
        "-2.5": -2.5,
        "'x'": math.nan,
        "null": 0,
        "16777217": 16777216,
    },
}
"""Sample type → returned → stored. 40.6 and 310 are the documentation's examples ("Handling SampleType")."""


@pytest.mark.parametrize("sample_type", STORED)
def test_each_sample_type_stores_values_by_its_rule(sample_type: str) -> None:
    returned, stored = STORED[sample_type].keys(), list(STORED[sample_type].values())
    found = pixel(f"return [{', '.join(returned)}];", bands=str(len(stored)), sample_type=sample_type)
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("sample_type", ["AUTO", "UINT8", "UINT16", "INT8", "INT16"])
def test_integers_are_rounded_to_nearest_and_clamped(sample_type: str) -> None:
    source = script(f"return {WILD};", bands=str(len(WILD)), sample_type=sample_type)
    stored = run(source, {"B04": [1], "dataMask": [1]}, scenes_on(1)).values["default"]
    scaled = np.clip(WILD, 0, 1) * 255 if sample_type == "AUTO" else np.array(WILD)
    limits = np.iinfo("uint8" if sample_type == "AUTO" else sample_type.lower())
    assert stored.dtype == limits.dtype
    np.testing.assert_array_equal(stored.ravel(), np.clip(np.floor(scaled + 0.5), limits.min, limits.max))


@pytest.mark.parametrize("sample_type", ["AUTO", "UINT8", "UINT16", "INT8", "INT16"])
def test_what_is_no_number_becomes_0_and_infinity_the_end_of_the_range(sample_type: str) -> None:
    source = script("return [NaN, undefined, null, 'x', {}, Infinity, -Infinity];", bands="7", sample_type=sample_type)
    stored = run(source, {"B04": [1], "dataMask": [1]}, scenes_on(1)).values["default"]
    limits = np.iinfo(stored.dtype)
    assert stored.ravel().tolist() == [0, 0, 0, 0, 0, limits.max, limits.min]


def test_float32_keeps_nan_and_infinities() -> None:
    stored = pixel("return [NaN, undefined, Infinity, -Infinity, 0.1];", bands="5")
    np.testing.assert_array_equal(np.float32(stored), np.float32([np.nan, np.nan, np.inf, -np.inf, 0.1]))


def test_booleans_count_as_0_and_1() -> None:
    assert pixel("return [true, false];", bands="2") == [1, 0]
    assert pixel("return [true, false];", bands="2", sample_type="UINT8") == [1, 0]


def test_reflectance_is_a_double_product() -> None:
    source = "//VERSION=3\nfunction setup() { return {input: ['B04'], output: {bands: 1, sampleType: 'UINT8'}}; }\n"
    source += "function evaluatePixel(s) { return [s.B04 === 0.8795000000000001]; }"
    assert run(source, {"B04": np.array([8795], "uint16")}).values["default"].item() == 1


def test_typed_arrays_and_objects_of_arrays_are_results_too() -> None:
    assert pixel("return new Float64Array([1, 2]);", bands="2") == [1, 2]
    assert pixel("return {default: [3, 4]};", bands="2") == [3, 4]
    assert pixel("return {default: new Uint8Array([3, 4]), other: 5};", bands="2") == [3, 4]


def test_a_wrong_length_is_accepted_and_counted() -> None:
    source = script("return samples[0].B04 === 1 ? [1, 2] : [1, 2, 3, 4];", bands="3")
    result = run(source, {"B04": np.array([[[1, 5]]]), "dataMask": np.ones((1, 1, 2))}, scenes_on(1))
    assert result.values["default"][:, 0, :].T.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert result.wrong_lengths == {"default": 2}


def test_wrong_lengths_are_counted_through_a_change_of_dtype() -> None:
    with Evalscript(script("return [1, 2];")) as lenient:
        lenient.prepare([dataset(scenes_on(1))])
        for dtype in ("uint8", "uint16", "uint8"):
            lenient.evaluate([{"B04": np.ones((1, 2, 2), dtype), "dataMask": np.ones((1, 2, 2), dtype)}])
        assert lenient.wrong_lengths() == {"default": 12}


@pytest.mark.parametrize("returned", ["[1, 2]", "[]", "[1, 2, 3, 4]"])
def test_a_strict_engine_refuses_a_wrong_length(returned: str) -> None:
    source = script(f"return samples[0].B04 ? {returned} : [1, 2, 3];", bands="3")
    text = "Script must return an array of 3 values for the output 'default'; 1 pixels returned another number."
    right, wrong = np.zeros((1, 1, 2), "uint8"), np.array([[[0, 1]]], "uint8")
    with Evalscript(source, strict=True) as strict:
        strict.prepare([dataset(scenes_on(1))])
        assert strict.evaluate([{"B04": right, "dataMask": right}])["default"].tolist() == [
            [[1, 1]],
            [[2, 2]],
            [[3, 3]],
        ]
        with pytest.raises(EvalscriptError, match=f"^Failed to evaluate script!\n{text}$"):
            strict.evaluate([{"B04": wrong, "dataMask": wrong}])


@pytest.mark.parametrize("returned", ["[1]", "{}", "{a: [1]}", "{a: [1], b: 1}", "null"])
def test_a_script_of_several_outputs_must_return_an_array_for_each(returned: str) -> None:
    source = (
        "//VERSION=3\nfunction setup() { return {input: ['B04'], output: [{id: 'a', bands: 1}, {id: 'b', bands: 1}]} }"
        f"\nfunction evaluatePixel(s) {{ return {returned}; }}"
    )
    with pytest.raises(EvalscriptError, match=r"^Failed to evaluate script!\nScript must return an array\.$"):
        run(source, {"B04": [1]})


def test_a_pixel_without_result_stays_0_even_where_others_wrote_before() -> None:
    source = script("if (samples[0].B04 % 2) return [7];")
    values = np.arange(40_000).reshape(1, 200, 200)
    result = run(source, {"B04": values, "dataMask": values}, scenes_on(1))
    np.testing.assert_array_equal(result.values["default"], np.where(values % 2, 7, 0))


def test_every_output_gets_its_own_array_and_dtype() -> None:
    source = (
        "//VERSION=3\nfunction setup() { return {input: ['B04'], output: [{id: 'one', bands: 1, sampleType: 'UINT16'},"
        " {id: \"it's 2\", bands: 2, sampleType: 'FLOAT32'}]}; }\n"
        'function evaluatePixel(s) { return {one: [s.B04 * 1e4], "it\'s 2": [s.B04, -s.B04]}; }'
    )
    values = np.arange(6, dtype="uint16").reshape(1, 2, 3)
    result = run(source, {"B04": values}).values
    assert {name: (array.shape, array.dtype.name) for name, array in result.items()} == {
        "one": ((1, 2, 3), "uint16"),
        "it's 2": ((2, 2, 3), "float32"),
    }
    np.testing.assert_array_equal(result["one"], values)
    reflectance = values * 0.0001
    np.testing.assert_array_equal(result["it's 2"], np.concatenate([reflectance, -reflectance]).astype("float32"))


def test_only_requested_outputs_are_returned_and_required() -> None:
    source = (
        "//VERSION=3\nfunction setup() { return {input: ['B04'], output: [{id: 'a', bands: 1}, {id: 'b', bands: 1}]} }"
        "\nfunction evaluatePixel(s) { return {b: [1]}; }"
    )
    assert list(run(source, {"B04": [1]}, requested=["b"]).values) == ["b"]
    with pytest.raises(EvalscriptError, match="must return an array"):
        run(source, {"B04": [1]}, requested=["a", "b"])
    with pytest.raises(EvalscriptError, match=r"names outputs \['c'\].*its outputs are \['a', 'b'\]"):
        run(source, {"B04": [1]}, requested=["c"])
