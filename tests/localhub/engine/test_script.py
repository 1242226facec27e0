"""Evalscripts as they stand, over whole arrays, and what they find in their global scope."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localhub.engine import Evalscript
from localhub.engine.loop import LANES, may_reuse_samples
from tests.localhub.engine.engine_runs import dataset, pixel, run, scenes_on, script

# -- the global scope --------------------------------------------------------------------------------------------------


def test_scripts_may_use_implicit_globals_and_any_name() -> None:
    more = """let run = 1, program = 2, host = 3, inputs = 4, index = 5; class Mosaicking {}
    const find = 6, scenes0 = 7; var parse = 8; JSON = undefined; Object = undefined;"""
    assert pixel("for (i = 0; i < 3; i++) total = run + find + parse; return [total + i];", more=more) == [18]


def test_scripts_run_in_sloppy_mode() -> None:
    sloppy = "with ({ three: 3 }) { undeclared = three + 010; } return [undeclared, this === globalThis];"
    assert pixel(sloppy, bands="2") == [11, 1]


def test_scripts_may_use_modern_javascript() -> None:
    modern = """const { B04: first, ...rest } = samples.at(0);
      class Own { #x = first ?? 1; get square() { return this.#x ** 2; } }
      const { much } = Object.groupBy(samples, (sample) => (sample.B04 > 15 ? "much" : "little"));
      return [new Own().square, much.length, 1_000n === 1000n && "B04" in samples[0]];"""
    assert pixel(modern, bands="3") == [100, 2, 1]


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


def test_every_method_of_the_console_may_be_called() -> None:
    methods = "Object.getOwnPropertyNames(console).filter((name) => typeof console[name] === 'function')"
    called = f"const names = {methods}; for (const name of names) console[name]('x', {{}}); return [names.length];"
    assert pixel(called)[0] >= 20


def test_a_script_that_prints_for_ever_keeps_its_first_words() -> None:
    with Evalscript(
        script("return [1];", more="for (let i = 0; i < 1e5; i++) console.log(i, 'x'.repeat(5000));")
    ) as noisy:
        messages = noisy.messages()
    assert (len(messages), {len(message) for message in messages}) == (100, {1000})


# -- arrays ------------------------------------------------------------------------------------------------------------


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
