from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localhub.engine import Evalscript, EvalscriptError, SceneInfo
from localhub.engine.loop import LANES, may_reuse_samples
from tests.localhub.engine.engine_runs import dataset, run, scenes_on


def script(
    body: str, *, bands: str = "1", sample_type: str = "FLOAT32", mosaicking: str = "ORBIT", more: str = ""
) -> str:
    return (
        "//VERSION=3\nfunction setup() { return {input: [{bands: ['B04', 'dataMask'], units: 'DN'}],"
        f" output: {{bands: {bands}, sampleType: '{sample_type}'}}, mosaicking: '{mosaicking}'}}; }}\n"
        f"function evaluatePixel(samples, scenes, inputMetadata, customData, outputMetadata) {{ {body} }}\n{more}"
    )


def pixel(body: str, scenes: int = 3, **options: str) -> list[float]:
    """What one pixel returns; its samples have B04 = 10, 20, 30 … on days 5, 4, 3 …"""
    source = script(body, **options)
    days = range(scenes, 0, -1)
    result = run(source, {"B04": [10 * (n + 1) for n in range(scenes)], "dataMask": [1] * scenes}, scenes_on(*days))
    return result.values["default"].ravel().tolist()


# -- values ------------------------------------------------------------------------------------------------------------

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


# -- samples and scenes ------------------------------------------------------------------------------------------------


def test_simple_gives_one_object_of_bands_and_no_scenes() -> None:
    source = script(
        "return [samples.B04, samples.dataMask, Object.keys(samples).length, Object.keys(scenes).length];",
        bands="4",
        mosaicking="SIMPLE",
    )
    result = run(source, {"B04": [9], "dataMask": [1]}, scenes_on(3, 1, 2))
    assert result.values["default"].ravel().tolist() == [9, 1, 2, 0]
    assert result.plan.samples[0] == ((0, 1, 2),)


def test_orbit_makes_one_sample_of_a_utc_day_in_the_order_of_the_scenes() -> None:
    scenes = scenes_on(5, 5.01, 3, 1, 3.58, 3.59)  # 3.59 days after 10:00 is the next day
    result = run(script("return [samples.length];"), {"B04": [1] * 4, "dataMask": [1] * 4}, scenes)
    assert result.plan.samples[0] == ((0, 1), (2, 4), (3,), (5,))
    assert result.values["default"].item() == 4


def test_tile_makes_one_sample_of_each_scene() -> None:
    result = run(
        script("return [samples.length, scenes.tiles.length];", bands="2", mosaicking="TILE"),
        {"B04": [1] * 3, "dataMask": [1] * 3},
        scenes_on(5, 5.01, 3),
    )
    assert result.plan.samples[0] == ((0,), (1,), (2,))
    assert result.values["default"].ravel().tolist() == [3, 3]


def test_scenes_have_the_documented_properties() -> None:
    keep = "outputMetadata.userData = {scenes: scenes}; return [0];"
    scenes = scenes_on(5, 5.01, 3, cloud_cover=12.5)
    orbits = run(script(keep), {"B04": [1, 1], "dataMask": [1, 1]}, scenes).user_data["scenes"]["orbits"]
    assert [(orbit["dateFrom"], orbit["dateTo"], orbit["__idx"]) for orbit in orbits] == [
        ("2019-01-06T00:00:00Z", "2019-01-06T23:59:59Z", 0),
        ("2019-01-04T00:00:00Z", "2019-01-04T23:59:59Z", 1),
    ]
    assert len(orbits[0]["tiles"]) == 2
    bands = {"B04": [1] * 3, "dataMask": [1] * 3}
    tiles = run(script(keep, mosaicking="TILE"), bands, scenes).user_data["scenes"]["tiles"]
    assert tiles == [
        {**tile, "__idx": position} for position, tile in enumerate(tile for orbit in orbits for tile in orbit["tiles"])
    ]
    assert {key: value for key, value in tiles[0].items() if key != "shId"} == {
        "date": "2019-01-06T10:00:00Z",
        "cloudCoverage": 12.5,
        "__idx": 0,
        "dataPath": "s3://bucket/tiles/33/T/VL/0",
    }
    assert isinstance(tiles[0]["shId"], int)


def test_the_old_form_of_scenes_has_dates() -> None:
    assert pixel("return scenes.map(scene => scene.date.getUTCDate());", bands="3") == [4, 3, 2]
    assert pixel("return [scenes[0].date - scenes[1].date];") == [86_400_000]


def test_without_scenes_the_arrays_are_empty() -> None:
    empty = np.zeros((0, 2, 2), "uint16")
    result = run(script("return [samples.length + scenes.orbits.length + 1];"), {"B04": empty, "dataMask": empty})
    assert result.values["default"].tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize("damage", ["sort((a, b) => 1)", "reverse()", "pop()", "splice(0, 2)", "push(1)", "fill(0)"])
def test_what_a_pixel_does_to_its_arguments_does_not_reach_the_next(damage: str) -> None:
    body = (
        "const seen = samples.map((s, i) => s.B04 + new Date(scenes.orbits[i].dateFrom).getUTCDate() + scenes.length);"
        f"samples.{damage}; scenes.{damage}; scenes.orbits.{damage}; return seen;"
    )
    source = script(body, bands="3")
    values = np.stack([np.full((5, 40), level) for level in (100, 200, 300)])
    result = run(source, {"B04": values, "dataMask": values}, scenes_on(3, 2, 1)).values["default"]
    expected = np.array([100 + 4 + 3, 200 + 3 + 3, 300 + 2 + 3]).reshape(3, 1, 1)
    np.testing.assert_array_equal(result, np.broadcast_to(expected, (3, 5, 40)))


@pytest.mark.parametrize(
    "change", ["samples[0].mine = 1", "samples[0]['mine'] = 1", "Object.assign(samples[0], {mine: 1})"]
)
def test_properties_that_a_script_adds_are_gone_at_the_next_pixel(change: str) -> None:
    source = script(f"const before = 'mine' in samples[0]; {change}; return [before];")
    values = np.ones((1, 3, 50), "uint16")
    assert not run(source, {"B04": values, "dataMask": values}, scenes_on(1)).values["default"].any()


def test_samples_are_reused_only_where_a_script_cannot_tell() -> None:
    bands = ["B04"]
    for harmless in (
        "a = samples[0].B04; if (a == 1 || s.x === 2 || s.y >= 3 || s.z <= 4) f = (o) => o.q => 1;",
        "samples[0].B04 = 0; samples.length = 1; outputMetadata.userData = {}; output.default.bands += 1; out[i] = 2;",
        "{ const { x } = samples[0]; let y = samples.map(s => s.B04); }",
    ):
        assert may_reuse_samples(harmless, bands), harmless
    for change in (
        *("s.mine = 1", "s.mine += 1", "s.mine++", "s . mine ||= 2", "s.mine <<= 1", "s['mine'] = 1", "delete s.B04"),
        *("samples[i][name] = 1", "samples[i][names[j]] = 1", "Object.assign(s, other)"),
        *("Object.defineProperty(s, 'mine', {})", "Reflect.set(s, 'mine', 1)"),
    ):
        assert not may_reuse_samples(change, bands), change


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_pre_process_scenes_filters_and_orders_the_samples() -> None:
    more = """function preProcessScenes(collections) {
      if (collections.scenes.orbits[0].tiles) throw new Error("no tiles here");
      if (collections.from.getUTCFullYear() !== 2019 || !(collections.to instanceof Date)) throw new Error("period");
      collections.scenes.orbits = collections.scenes.orbits
        .filter((orbit) => new Date(orbit.dateFrom) >= new Date("2019-01-03T00:00:00Z"))
        .sort((a, b) => new Date(a.dateFrom) - new Date(b.dateFrom));
      return collections;
    }"""
    source = script("return scenes.orbits.map((o, i) => new Date(o.dateFrom).getUTCDate());", bands="3", more=more)
    result = run(source, {"B04": [1] * 3, "dataMask": [1] * 3}, scenes_on(4, 4.1, 1, 3, 2))
    assert result.plan.samples[0] == ((4,), (3,), (0, 1))
    assert result.values["default"].ravel().tolist() == [3, 4, 5]


def test_pre_process_scenes_works_on_tiles() -> None:
    more = """function preProcessScenes(collections) {
      collections.scenes.tiles = collections.scenes.tiles.filter((tile) => tile.dataPath.endsWith("/1"));
      return collections;
    }"""
    source = script("return [scenes.tiles[0].__idx];", mosaicking="TILE", more=more)
    result = run(source, {"B04": [1], "dataMask": [1]}, scenes_on(4, 4.1, 1))
    assert result.plan.samples[0] == ((1,),)
    assert result.values["default"].item() == 1


def test_a_choice_of_no_scenes_leaves_no_samples() -> None:
    more = "function preProcessScenes(c) { c.scenes.orbits = []; return c; }"
    empty = np.zeros((0, 1, 1), "uint16")
    result = run(script("return [samples.length];", more=more), {"B04": empty, "dataMask": empty}, scenes_on(1, 2))
    assert result.plan.samples[0] == ()


def test_filter_scenes_is_the_older_way_to_choose() -> None:
    more = """function filterScenes(scenes, inputMetadata) {
      return scenes.filter((scene) => scene.date.getTime() > inputMetadata.to.getTime() - 363 * 24 * 3600 * 1000);
    }"""
    result = run(script("return [1];", more=more), {"B04": [1] * 2, "dataMask": [1] * 2}, scenes_on(4, 3, 1, 0))
    assert result.plan.samples[0] == ((0,), (1,))


def test_update_output_sizes_the_outputs_by_the_chosen_scenes() -> None:
    more = """function updateOutput(outputs, collection) {
      Object.values(outputs).forEach((output) => (output.bands = collection.scenes.length));
      if (!collection.scenes.every((scene) => scene.date instanceof Date)) throw new Error("dates");
    }
    function preProcessScenes(c) { c.scenes.orbits.pop(); return c; }"""
    source = script("return samples.map(s => s.B04);", more=more)
    result = run(source, {"B04": [5, 6], "dataMask": [1] * 2}, scenes_on(3, 2, 1))
    assert result.plan.outputs[0].bands == 2
    assert result.values["default"].ravel().tolist() == [5, 6]


def test_an_output_of_no_bands_becomes_one_band_of_zeros() -> None:
    more = "function updateOutput(outputs, collection) { outputs.default.bands = collection.scenes.length; }"
    empty = np.zeros((0, 2, 3), "uint16")
    result = run(script("return samples.map(s => 1);", more=more), {"B04": empty, "dataMask": empty})
    assert result.plan.outputs[0].bands == 1
    assert result.values["default"].tolist() == np.zeros((1, 2, 3)).tolist()


def test_user_data_is_what_update_output_metadata_leaves() -> None:
    more = """let highest = 0;
    function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
      const { factor, ...rest } = { factor: inputMetadata.normalizationFactor };
      outputMetadata.userData = { highest, factor, first: new Date(scenes.orbits[0].dateFrom), nothing: NaN };
    }"""
    source = script("highest = Math.max(highest, samples[0].B04); return [0];", more=more)
    values = np.arange(500).reshape(1, 5, 100)
    result = run(source, {"B04": values, "dataMask": values}, scenes_on(1))
    assert result.user_data == {
        "highest": 499,
        "factor": 0.0001,
        "first": "2019-01-02T00:00:00.000Z",
        "nothing": None,
    }


def test_user_data_is_empty_where_the_script_sets_none_and_is_asked_once() -> None:
    assert run(script("return [0];"), {"B04": [1], "dataMask": [1]}, scenes_on(1)).user_data == {}
    more = "let calls = 0; function updateOutputMetadata(s, i, o) { calls++; o.userData = { calls }; }"
    with Evalscript(script("return [0];", more=more)) as counting:
        counting.prepare([dataset(scenes_on(1))])
        assert counting.user_data() == counting.user_data() == {"calls": 1}


# -- the global scope --------------------------------------------------------------------------------------------------


def test_scripts_may_use_implicit_globals_and_any_name() -> None:
    more = """let run = 1, program = 2, host = 3, inputs = 4, index = 5; class Mosaicking {}
    const find = 6, scenes0 = 7; var parse = 8; JSON = undefined; Object = undefined;"""
    assert pixel("for (i = 0; i < 3; i++) total = run + find + parse; return [total + i];", more=more) == [18]


def test_the_host_and_timers_are_out_of_reach() -> None:
    more = """const suspects = /host|program|timer|timeout|interval|require|process/i;
      const reachable = Object.getOwnPropertyNames(globalThis)
        .filter((name) => globalThis[name] !== undefined && suspects.test(name));"""
    assert pixel("return [reachable.length, typeof setTimeout === 'undefined'];", bands="2", more=more) == [0, 1]


def test_what_a_script_prints_is_kept_and_never_fails() -> None:
    body = """console.log('x', samples, undefined); const own = {}; own.own = own; console.warn(own);
      console.error(Object.create(null)); console.info(Symbol("s")); return [1];"""
    with Evalscript(script(body)) as open_script:
        open_script.prepare([dataset(scenes_on(1))])
        assert open_script.evaluate([{"B04": np.full((1, 1, 1), 7, "uint16"), "dataMask": np.ones((1, 1, 1), "uint8")}])
        assert open_script.messages() == [
            'x [{"B04":7,"dataMask":1}] undefined',
            "[what has no words]",
            "{}",
            "Symbol(s)",
        ]


def test_a_script_that_prints_for_ever_keeps_its_first_words() -> None:
    with Evalscript(
        script("return [1];", more="for (let i = 0; i < 1e5; i++) console.log(i, 'x'.repeat(5000));")
    ) as noisy:
        messages = noisy.messages()
    assert (len(messages), {len(message) for message in messages}) == (100, {1000})


# -- arrays ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3 * LANES + 3), st.integers(1, 5)),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_every_pixel_comes_back_in_its_place(shape: tuple[int, int, int], dtype: str, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    count = shape[0]
    source = script("return samples.map(s => s.B04 + 1000 * s.dataMask);", bands=str(count))
    mask = np.ones(shape, "uint8")
    result = run(source, {"B04": values, "dataMask": mask}, scenes_on(*range(count))).values["default"]
    expected = values + 1000.0 if count else np.zeros((1, *shape[1:]))
    np.testing.assert_array_equal(result, expected.astype("float32"))


def test_many_chunks_and_successive_blocks_give_what_one_would() -> None:
    values = np.random.default_rng(3).integers(0, 10_000, (2, 300, 301)).astype("uint16")
    source = script("count++; return samples.map(s => s.B04 + s.dataMask);", bands="2", more="let count = 0;")
    source += "\nfunction updateOutputMetadata(s, i, o) { o.userData = { count }; }"
    with Evalscript(source) as open_script:
        open_script.prepare([dataset(scenes_on(2, 1))])
        blocks = [
            open_script.evaluate([{"B04": values[:, rows], "dataMask": values[:, rows]}])["default"]
            for rows in (slice(0, 100), slice(100, 101), slice(101, 300))
        ]
        assert open_script.user_data() == {"count": 300 * 301}
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), values * np.float32(2))


def test_a_change_of_dtype_between_blocks_is_followed() -> None:
    with Evalscript(script("return [samples[0].B04];")) as open_script:
        open_script.prepare([dataset(scenes_on(1))])
        for dtype, value in (("uint8", 200), ("uint16", 40000), ("float32", 0.5)):
            bands = {"B04": np.full((1, 2, 2), value, dtype), "dataMask": np.ones((1, 2, 2), "uint8")}
            assert (open_script.evaluate([bands])["default"] == value).all()


def test_strides_and_byte_order_of_the_arrays_do_not_matter() -> None:
    values = np.arange(2 * 40 * 30).reshape(2, 40, 30)
    for array in (values.astype(">u2")[:, :, 3:4], np.asfortranarray(values.astype("float32"))[:, ::2, ::3]):
        mask = np.ones(array.shape, "uint8")
        source = script("return samples.map(s => s.B04);", bands="2")
        result = run(source, {"B04": array, "dataMask": mask}, scenes_on(2, 1)).values["default"]
        np.testing.assert_array_equal(result, array)


def test_results_outlive_the_script() -> None:
    result = run(
        script("return [samples[0].B04];"),
        {"B04": np.ones((1, 50, 50)), "dataMask": np.ones((1, 50, 50))},
        scenes_on(1),
    )
    assert result.values["default"].sum() == 2500


@pytest.mark.parametrize(
    ("bands", "text"),
    [
        ({"B04": np.ones((1, 2, 2))}, r"reads \['B04', 'dataMask'\]; \['dataMask'\] did not come"),
        (
            {"B04": np.ones((2, 2, 2)), "dataMask": np.ones((1, 2, 2))},
            r"\(1 samples, .*; \(2, 2, 2\) came",
        ),
        (
            {"B04": np.ones((1, 2, 2)), "dataMask": np.ones((1, 2, 3))},
            r"\(1 samples, .*; \(1, 2, 3\) came",
        ),
        ({"B04": np.ones((1, 2, 2), "int64"), "dataMask": np.ones((1, 2, 2))}, "'B04' came as int64; convert it"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(bands: dict[str, Any], text: str) -> None:
    with Evalscript(script("return [1];")) as open_script:
        open_script.prepare([dataset(scenes_on(1))])
        with pytest.raises(ValueError, match=text):
            open_script.evaluate([bands])


def test_evaluate_before_prepare_is_refused() -> None:
    with Evalscript(script("return [1];")) as open_script, pytest.raises(ValueError, match="call prepare"):
        open_script.evaluate([{}])


def test_times_of_other_zones_belong_to_their_utc_day() -> None:
    late = SceneInfo(datetime(2019, 1, 1, 23, tzinfo=timezone(timedelta(hours=-5))), 0.0, "a")
    source = script("outputMetadata.userData = scenes.orbits[0].dateFrom; return [1];")
    assert run(source, {"B04": [1], "dataMask": [1]}, [late]).user_data == "2019-01-02T00:00:00Z"
