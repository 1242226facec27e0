"""Scripts that try to get out, to break what follows, or to take all there is: one named attempt a case.

They run in worker processes, as on the service; after each the next, well-behaved script is answered.
"""

from collections.abc import Iterator

import pytest

from localhub.engine import EvalscriptError
from localhub.engine.limits import Limits
from localhub.pool import WorkerPool
from tests.localhub.engine.attempts import GOOD, GOOD_VALUES, HEAD, evaluated

LIMITS = Limits(call_seconds=0.4, memory_bytes=500 * 2**20)
TOO_LONG = "it ran longer than 0.4 s"
TOO_MUCH = "it used more than 0.488 GB of memory"
PIXEL = "function evaluatePixel(samples) { return [1]; }\n"

LANGUAGE = """
    AggregateError Array ArrayBuffer AsyncDisposableStack BigInt BigInt64Array BigUint64Array Boolean DataView Date
    DisposableStack Error EvalError Float16Array Float32Array Float64Array Function Infinity Int16Array Int32Array
    Int8Array Intl Iterator JSON Map Math NaN Number Object Promise Proxy RangeError ReferenceError Reflect RegExp Set
    String SuppressedError Symbol SyntaxError Temporal TypeError URIError Uint16Array Uint32Array Uint8Array
    Uint8ClampedArray WeakMap WeakRef WeakSet console decodeURI decodeURIComponent encodeURI encodeURIComponent escape
    eval globalThis isFinite isNaN parseFloat parseInt undefined unescape
"""
"""ECMAScript's globals without those that block, outlive a call or have memory of their own; and console."""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    started = WorkerPool(1, LIMITS)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def the_next_script_is_answered(pool: WorkerPool) -> Iterator[None]:
    yield
    assert pool.submit(evaluated, GOOD).result(30) == (GOOD_VALUES, {})


def escapes(pool: WorkerPool, attempt: str) -> set[float]:
    """Run an attempt that counts in `escaped` what it got hold of; return the counts over all pixels."""
    blocks, _ = pool.submit(evaluated, f"{HEAD}let escaped = 0;\n{attempt}").result(30)
    return {value for block in blocks for value in block}


def refusal(pool: WorkerPool, source: str) -> str:
    with pytest.raises(EvalscriptError) as error:
        pool.submit(evaluated, source).result(60)
    return str(error.value)


def test_a_script_finds_the_language_and_the_documented_functions_and_nothing_else(pool: WorkerPool) -> None:
    names = "updateOutputMetadata = (s, i, output) => { output.userData = Object.getOwnPropertyNames(globalThis); };"
    _, found = pool.submit(evaluated, f"{HEAD}{PIXEL}var updateOutputMetadata; {names}").result(30)
    documented = """
        JAVA_DOUBLE_MAX_VAL blueRed redTemperature greenWhite oceanColor int2rgb rgb2int normalizeRGB combine index
        inverse valueMap valueInterpolate colorMap colorBlend ColorMapVisualizer ColorRampVisualizer
        ColorGradientVisualizer DefaultVisualizer HighlightCompressVisualizer HighlightCompressVisualizerSingle Identity
        decodeL8C2Qa decodeLs8Qa decodeS3OLCIQualityFlags SampleType Mosaicking
    """
    own = "setup evaluatePixel updateOutputMetadata"
    undefined = "setTimeout clearTimeout __timer_manager"
    assert set(found) == {*LANGUAGE.split(), *documented.split(), *own.split(), *undefined.split()}
    assert escapes(
        pool,
        f"for (const name of {undefined.split()}) if (globalThis[name] !== undefined) escaped++;\n"
        "function evaluatePixel() { return [escaped]; }",
    ) == {0}


REACHING_OUT = {
    "the_function_constructor_finds_no_host": (
        "const reached = this.constructor.constructor("
        "'return typeof process + typeof require + typeof module + typeof Deno + typeof std + typeof os')();\n"
        "if (reached !== 'undefined'.repeat(6)) escaped++;"
    ),
    "neither_network_nor_files": (
        "for (const name of ['fetch', 'XMLHttpRequest', 'WebSocket', 'importScripts', 'load', 'read', 'print', 'quit'])\n"
        "  if (typeof globalThis[name] !== 'undefined') escaped++;"
    ),
    "a_timer_class_left_by_the_binding": (
        "try { new __TimerManager().setTimeout(() => 1, 0); escaped++; } catch (e) { if (!/not defined/.test(e)) throw e; }"
    ),
    "eval_and_with_stay_inside": (
        "const inner = new Function('with (globalThis) { return typeof host + typeof program + typeof given; }')();\n"
        "if (inner + eval('typeof host') !== 'undefined'.repeat(4)) escaped++;"
    ),
    "a_generator_function_constructor": (
        "const made = (function* () {}).constructor('yield typeof process + typeof program')().next().value;\n"
        "if (made !== 'undefinedundefined') escaped++;"
    ),
    "error_stacks_hold_no_object_of_the_engine": (
        "Error.prepareStackTrace = (error, sites) => sites;\n"
        "function look() {\n"
        "  for (const site of new Error().stack) {\n"
        "    const held = site.getThis();\n"
        "    if (held !== undefined && held !== globalThis) escaped++;\n"
        "    const ran = site.getFunction();\n"
        "    if (ran !== undefined && ran !== look && ran !== evaluatePixel) escaped++;\n"
        "  }\n"
        "}"
    ),
    "callers_are_hidden": (
        "function look() {\n"
        "  try { if (evaluatePixel.caller !== null) escaped++; } catch (e) { if (!(e instanceof TypeError)) throw e; }\n"
        "  if (look.caller !== evaluatePixel) escaped++;\n"
        "}"
    ),
    "a_length_getter_finds_no_caller": (
        "class Odd extends Array {}\n"
        "function length() { if (length.caller !== null) escaped++; return 1; }\n"
        "const odd = new Proxy([0], { get: (t, name) => name === 'length' ? length() : escaped });\n"
        "let look = () => odd;"
    ),
    "poisoned_typed_array_methods_see_no_buffer": (
        "const typed = Object.getPrototypeOf(Uint8Array.prototype);\n"
        "for (const name of ['fill', 'set', 'subarray', 'slice', 'at']) {\n"
        "  const method = typed[name];\n"
        "  typed[name] = function (...args) { escaped++; this.buffer.transfer(0); return method.apply(this, args); };\n"
        "}"
    ),
    "a_poisoned_buffer_getter_is_not_asked": (
        "Object.defineProperty(Object.getPrototypeOf(Uint8Array.prototype), 'buffer', {\n"
        "  get() { escaped++; return new ArrayBuffer(8); }});"
    ),
    "replaced_typed_array_constructors_make_no_buffer": (
        "for (const name of ['Uint8Array', 'Uint16Array', 'Float32Array', 'Float64Array', 'ArrayBuffer']) {\n"
        "  const Kind = globalThis[name];\n"
        "  globalThis[name] = class extends Kind { constructor(...args) { super(...args); escaped++; } };\n"
        "}"
    ),
    "an_index_setter_of_the_array_prototype_gets_no_code_of_the_engine": (
        "Object.defineProperty(Array.prototype, 0, { configurable: true,\n"
        "  get() { return undefined; }, set(v) { if (/localhub/.test(v)) escaped++; } });\n"
        "delete Array.prototype[0];"
    ),
    "an_import_reaches_nothing": "import('os').then(() => escaped++, () => {}); import('fs').catch(() => {});",
}


@pytest.mark.parametrize("attempt", REACHING_OUT.values(), ids=REACHING_OUT.keys())
def test_a_script_reaches_nothing_outside(pool: WorkerPool, attempt: str) -> None:
    pixel = "function evaluatePixel() { if (typeof look === 'function') look(); return [escaped]; }"
    assert escapes(pool, f"{attempt}\n{pixel}") == {0}


def test_the_probes_of_stacks_and_callers_do_find_what_is_there_to_find(pool: WorkerPool) -> None:
    attempt = (
        "function outer() { return (function inner() {\n"
        "  Error.prepareStackTrace = (e, sites) => sites;\n"
        "  return Number(inner.caller === outer) + Number(new Error().stack[1].getFunction() === outer); })(); }\n"
        "function evaluatePixel() { return [outer()]; }"
    )
    assert escapes(pool, attempt) == {2}


POISONS = {
    "math_replaced": "for (const name of Object.getOwnPropertyNames(Math)) try { Math[name] = () => 7; } catch {}",
    "json_replaced": "JSON.stringify = JSON.parse = () => { throw 1; }; JSON = undefined;",
    "array_methods_replaced": (
        "for (const name of ['push', 'slice', 'fill', 'forEach']) Array.prototype[name] = () => { throw name; };"
    ),
    "array_statics_replaced": "Array.isArray = () => false; Array.from = () => []; ArrayBuffer.isView = () => false;",
    "object_statics_replaced": "for (const n of ['defineProperty', 'freeze', 'keys', 'fromEntries']) Object[n] = null;",
    "function_replaced": "Function.prototype.call = Function.prototype.apply = () => 7; Function = () => () => 7;",
    "date_and_error_replaced": "Date = Error = String = Number = function () { throw 1; };",
    "the_array_iterator_without_an_end": (
        "Array.prototype[Symbol.iterator] = function* () { for (;;) yield undefined; };\n"
    ),
    "setters_on_the_object_prototype": (
        "for (const name of ['B04', 'default', 'bands', 'inputs', 'outputs', 'run'])\n"
        "  Object.defineProperty(Object.prototype, name, { set() {}, get() { return 99; }, configurable: true });"
    ),
    "a_species_of_its_own": "Object.defineProperty(Array, Symbol.species, { get() { return class { length = 0; }; } });",
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
def test_a_script_that_replaces_the_language_changes_its_own_values_at_most(pool: WorkerPool, poison: str) -> None:
    script = (
        f"{HEAD}function evaluatePixel(s) {{ return [s[0].B04 + s[1].B04]; }}\nfunction updateOutput() {{ {poison} }}"
    )
    try:
        blocks, _ = pool.submit(evaluated, script).result(30)
    except EvalscriptError as error:
        assert str(error).startswith(("Failed to evaluate script!", "Invalid script!"))  # noqa: PT017 (either is right)
    else:
        assert blocks == GOOD_VALUES


ENDLESS = {
    "top_level_code": f"{HEAD}{PIXEL}for (;;);",
    "setup": f"//VERSION=3\n{PIXEL}\n\n\nfunction setup() {{ for (;;); }}",
    "preProcessScenes": f"{HEAD}{PIXEL}function preProcessScenes() {{ while (true); }}",
    "filterScenes": f"{HEAD}{PIXEL}filterScenes = (scenes) => scenes.filter(() => {{ for (;;); }});",
    "updateOutput": f"{HEAD}{PIXEL}const updateOutput = () => {{ do {{}} while (1); }};",
    "evaluatePixel": f"{HEAD}\nfunction evaluatePixel() {{ for (;;); }}",
    "updateOutputMetadata": f"{HEAD}{PIXEL}function updateOutputMetadata() {{ for (;;); }}",
}
"""By function, which begins in line 6."""


@pytest.mark.parametrize(("hook", "script"), ENDLESS.items(), ids=ENDLESS)
def test_a_loop_without_an_end_is_stopped_in_every_function(pool: WorkerPool, hook: str, script: str) -> None:
    line, place = ("", "") if hook == "top_level_code" else (":6", f" in {hook}")
    assert refusal(pool, script) == f"Failed to evaluate script!\nevalscript.js{line}: it ran longer than 0.4 s{place}."


LONG = {
    "a_regular_expression_that_backtracks": "/^(a+)+$/.test('a'.repeat(40) + 'b')",
    "a_generator_without_an_end": "for (const x of (function* () { for (;;) yield 1; })());",
    "a_big_integer": "let a = 2n ** 30000000n; a * a * a",
    "a_big_integer_in_words": "(3n ** 5000000n).toString()",
    "a_getter_without_an_end": "({ get x() { for (;;); } }).x",
    "a_throw_whose_words_do_not_end": "throw { toString() { for (;;); } }",
    "dates_compared_for_ever": "const d = new Date(); while (d <= new Date());",
    "deep_recursion_caught_for_ever": "function f() { try { f(); } finally { f(); } } f();",
}


@pytest.mark.parametrize("code", LONG.values(), ids=LONG.keys())
def test_long_work_is_interrupted(pool: WorkerPool, code: str) -> None:
    assert TOO_LONG in refusal(pool, f"{HEAD}function evaluatePixel() {{ {code}; }}")


UNINTERRUPTIBLE = {
    "a_library_function_over_a_giant_length": "Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 0)",
    "a_giant_array_sorted": "new Array(2 ** 32 - 1).sort()",
}


@pytest.mark.parametrize("code", UNINTERRUPTIBLE.values(), ids=UNINTERRUPTIBLE.keys())
def test_what_v8_does_not_interrupt_ends_with_its_process(pool: WorkerPool, code: str) -> None:
    assert TOO_LONG in refusal(pool, f"{HEAD}function evaluatePixel() {{ {code}; }}")
