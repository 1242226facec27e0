"""Scripts that try to get out, to break what follows, or to take all there is: one named attempt a case.

They run in worker processes, as on the service; after each the next, well-behaved script is answered.
"""

from collections.abc import Iterator

import pytest

from localhub.engine import EvalscriptError
from localhub.engine.limits import Limits
from localhub.pool import WorkerPool
from tests.localhub.engine.attempts import GOOD, GOOD_VALUES, HEAD, evaluated, resident_bytes_of

LIMITS = Limits(call_seconds=0.4, memory_bytes=500 * 2**20)
TOO_LONG = "it ran longer than 0.4 s"
TOO_MUCH = "it used more than 0.293 GB of memory"
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
        "for (const name of ['fetch', 'XMLHttpRequest', 'WebSocket', 'importScripts', 'load', 'read', 'print'])\n"
        "  if (typeof globalThis[name] !== 'undefined') escaped++;"
    ),
    "a_timer_class_left_by_the_binding": (
        "try { new __TimerManager().setTimeout(() => 1, 0); escaped++; }\n"
        "catch (e) { if (!/not defined/.test(e)) throw e; }"
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
        "  if (evaluatePixel.caller !== null) escaped++;\n"
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
    "a_species_of_its_own": "Object.defineProperty(Array, Symbol.species, { get: () => class { length = 0; } });",
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


LARGE = {
    "array_buffers": "const kept = []; for (;;) kept.push(new Uint8Array(2 ** 24).fill(1))",
    "big_typed_arrays_at_once": "const kept = []; for (;;) kept.push(new Float64Array(2 ** 27).fill(1))",
    "resizable_buffers": (
        "const b = new ArrayBuffer(0, { maxByteLength: 2 ** 31 }); "
        "for (let n = 2 ** 24; ; n += 2 ** 24) { b.resize(n); new Uint8Array(b, n - 2 ** 24).fill(1); }"
    ),
    "objects": "const kept = []; for (;;) kept.push({ a: kept.length, b: [1, 2, 3] })",
    "strings": "const kept = []; for (;;) kept.push(('x' + kept.length).repeat(2 ** 20).split('').join('-'))",
}


@pytest.fixture(scope="module")
def patient() -> Iterator[WorkerPool]:
    """A worker whose limit of time is far away."""
    started = WorkerPool(1, Limits(call_seconds=60, memory_bytes=300 * 2**20))
    yield started
    started.close()


@pytest.mark.parametrize("code", LARGE.values(), ids=LARGE.keys())
def test_a_script_that_takes_all_memory_is_stopped_and_leaves_none_taken(patient: WorkerPool, code: str) -> None:
    assert TOO_MUCH in refusal(patient, f"{HEAD}function evaluatePixel() {{ {code}; }}")
    assert patient.submit(evaluated, GOOD).result(30) == (GOOD_VALUES, {})
    assert patient.submit(resident_bytes_of, None).result(30) < 250 * 2**20


THROWN = {
    "null": ("throw null", "evalscript.js:5: null"),
    "undefined": ("throw undefined", "evalscript.js:5: undefined"),
    "an_object_without_words": ("throw Object.create(null)", "evalscript.js:5: "),
    "an_object_whose_words_throw": ("throw { toString() { throw 1; } }", "evalscript.js:5: "),
    "a_proxy_that_throws": ("throw new Proxy({}, { get() { throw 5; } })", "evalscript.js:5: "),
    "half_a_character": ("throw '\\ud800'", "evalscript.js:5: "),
    "recursion_without_an_end": (
        "(function deeper() { deeper(); })()",
        "evalscript.js:5: RangeError: Maximum call stack size exceeded",
    ),
    "a_string_beyond_v8s_longest": ("'x'.repeat(2 ** 29)", "evalscript.js:5: RangeError: Invalid string length"),
    "a_string_that_doubles": ("let s = 'x'; for (;;) s += s", "evalscript.js:5: RangeError: Invalid string length"),
    "a_big_integer_beyond_v8s_largest": (
        "2n ** (2n ** 30n)",
        "evalscript.js:5: RangeError: Maximum BigInt size exceeded",
    ),
    "an_array_beyond_the_longest": ("new Array(2 ** 32)", "evalscript.js:5: RangeError: Invalid array length"),
    "json_nested_for_ever": (
        "const o = {}; o.o = o; JSON.stringify(o)",
        "evalscript.js:5: TypeError: Converting circular structure to JSON",
    ),
    "a_big_integer_as_a_value": ("return [1n]", "Cannot convert a BigInt value to a number"),
    "a_symbol_as_a_value": ("return [Symbol()]", "Cannot convert a Symbol value to a number"),
    "a_length_that_throws": (
        "return new Proxy([1], { get(t, n) { if (n === 'length') throw new Error('no'); return t[n]; } })",
        "evalscript.js:5: Error: no",
    ),
    "a_promise": ("return Promise.resolve([1])", "Script must return an array."),
    "a_revoked_proxy": ("const p = Proxy.revocable([], {}); p.revoke(); return p.proxy", "that has been revoked"),
}


@pytest.mark.parametrize(("code", "text"), THROWN.values(), ids=THROWN.keys())
def test_what_a_pixel_throws_is_told_with_its_line(pool: WorkerPool, code: str, text: str) -> None:
    message = refusal(pool, f"{HEAD}function evaluatePixel() {{ {code}; }}")
    assert message.startswith("Failed to evaluate script!\n")
    assert text in message
    assert "localhub" not in message


def test_a_message_of_any_length_is_cut(patient: WorkerPool) -> None:
    message = refusal(patient, f"{HEAD}function evaluatePixel() {{ throw 'word '.repeat(1e6); }}")
    assert message.startswith("Failed to evaluate script!\nevalscript.js:5: word word")
    assert len(message) < 5000


def test_a_script_of_ten_megabytes_in_one_line_is_told_in_a_few_words(patient: WorkerPool) -> None:
    message = refusal(patient, f"{HEAD}/* {'x' * 10_000_000} */ function evaluatePixel() {{ throw 1; }}")
    assert message.startswith("Failed to evaluate script!\nevalscript.js:5: 1")
    assert len(message) < 5000


SHRINKING = """(() => {
  const buffer = new ArrayBuffer(8, { maxByteLength: 8 }), array = new Float64Array(buffer);
  return new Proxy([7], { get(t, name) { buffer.resize(0); return name === "0" ? array[0] : t[name]; } });
})()"""
FICKLE = """(() => {
  let asked = 0;
  const length = { valueOf: () => asked++ ? (asked > 40 ? 0 : 1e9) : 0 };
  return new Proxy([7], { get: (t, name) => name === "length" ? length : 7 });
})()"""
ODD_RETURNS = {
    "undefined": ("undefined", 0),
    "an_empty_array": ("[]", 0),
    "numbers_in_words": ("['7']", 7),
    "an_object_that_is_worth_a_number": ("[{ valueOf: () => 7 }]", 7),
    "a_sparse_array_of_the_greatest_length": ("Object.assign(new Array(2 ** 32 - 1), [7])", 7),
    "an_array_that_holds_itself": ("(() => { const a = [7]; a.push(a); return a; })()", 7),
    "a_proxy_of_an_array": ("new Proxy([7], {})", 7),
    "a_detached_array": ("(() => { const a = new Float32Array([7]); a.buffer.transfer(); return a; })()", 0),
    "an_array_that_shrinks_while_it_is_read": (SHRINKING, float("nan")),
    "a_length_that_lies": ("new Proxy([7], { get: (t, n) => n === 'length' ? 2 ** 53 - 1 : t[n] })", 7),
    "a_length_that_changes_its_mind": (FICKLE, None),
}


@pytest.mark.parametrize(("returned", "expected"), ODD_RETURNS.values(), ids=ODD_RETURNS.keys())
def test_an_odd_return_gives_what_it_is_worth_and_no_harm(
    pool: WorkerPool, returned: str, expected: float | None
) -> None:
    blocks, _ = pool.submit(evaluated, f"{HEAD}function evaluatePixel() {{ return {returned}; }}").result(30)
    if expected is not None:
        assert repr(blocks) == repr([[float(expected)] * 3] * 2)


LINGERING = {
    "a_promise_that_never_ends": "Promise.resolve().then(() => { for (;;); });",
    "awaits_that_never_end": "(async () => { for (;;) await 0; })();",
    "promises_that_make_promises": "(function again() { Promise.resolve().then(again); })();",
}


@pytest.mark.parametrize("code", LINGERING.values(), ids=LINGERING.keys())
def test_work_left_for_later_holds_up_no_other_script(pool: WorkerPool, code: str) -> None:
    assert TOO_LONG in refusal(pool, f"{HEAD}{PIXEL}{code}")


def test_work_left_for_the_very_end_holds_up_no_other_script(pool: WorkerPool) -> None:
    script = f"{HEAD}{PIXEL}function updateOutputMetadata() {{ {LINGERING['awaits_that_never_end']} }}"
    assert pool.submit(evaluated, script).result(30) == ([[1.0] * 3] * 2, {})


def test_promises_and_generators_that_end_are_harmless(pool: WorkerPool) -> None:
    code = "let sum = 0; const later = Promise.resolve(2).then((v) => { sum += v; });\n"
    blocks, _ = pool.submit(evaluated, f"{HEAD}{code}function evaluatePixel() {{ return [sum]; }}").result(30)
    assert blocks == [[2.0] * 3] * 2


USER_DATA = {
    "fifty_megabytes": ("'x'.repeat(5e7)", "userData must not be longer than 16777216 characters of JSON."),
    "nested_too_deep": (
        "(() => { let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; return o; })()",
        "It returned what cannot be read",
    ),
    "a_circle": ("(() => { const o = {}; o.o = o; return o; })()", "Converting circular structure to JSON"),
    "a_to_json_that_throws": ("({ toJSON() { throw new Error('no words'); } })", "Error: no words"),
    "a_getter_that_throws": ("({ get x() { throw new Error('no value'); } })", "Error: no value"),
    "a_big_integer": ("({ x: 1n })", "Do not know how to serialize a BigInt"),
    "raw_json": ("JSON.rawJSON('1'.repeat(5000))", "TypeError: JSON.rawJSON is not a function"),
}


@pytest.mark.parametrize(("data", "text"), USER_DATA.values(), ids=USER_DATA.keys())
def test_userdata_that_cannot_be_a_file_is_refused(pool: WorkerPool, data: str, text: str) -> None:
    script = f"{HEAD}{PIXEL}function updateOutputMetadata(s, i, o) {{ o.userData = {data}; }}"
    assert text in refusal(pool, script)


def test_a_flood_of_messages_is_kept_short(pool: WorkerPool) -> None:
    flood = "for (let i = 0; i < 1e4; i++) console.log('x'.repeat(1e4), i);"
    assert escapes(pool, f"{flood}\nfunction evaluatePixel() {{ return [0]; }}") == {0}


SETUPS = {
    "a_getter_that_throws": ("{ get input() { throw new Error('mine'); } }", "evalscript.js:2: Error: mine"),
    "a_proxy": ("new Proxy({}, { get() { throw new Error('mine'); } })", "Error: mine"),
    "nothing": ("undefined", "setup() must return an object"),
    "a_to_json_that_gives_nothing": ("{ toJSON() {} }", "setup() must return an object"),
    "a_circle": ("(() => { const o = {}; o.o = o; return o; })()", "Converting circular structure to JSON"),
    "a_giant": ("{ input: 'x'.repeat(2e7), output: {} }", "What setup returns must not be longer than 16777216"),
    "endless_bands": ("{ input: ['B04'], output: { bands: Infinity } }", "bands of an output must be a whole number"),
}


@pytest.mark.parametrize(("returned", "text"), SETUPS.values(), ids=SETUPS.keys())
def test_a_setup_that_misbehaves_is_refused(pool: WorkerPool, returned: str, text: str) -> None:
    assert text in refusal(pool, f"//VERSION=3\nfunction setup() {{ return {returned}; }}\n{PIXEL}")


TO_JSON = {
    "nothing": "() => undefined",
    "a_number": "() => 5",
    "positions_of_no_scene": "function () { return this.positions ? { positions: [[99]], outputs: {} } : this; }",
    "positions_of_the_wrong_kind": "function () { return this.positions ? { positions: [['0']], outputs: 5 } : this; }",
    "no_positions": "function () { return this.positions ? { outputs: {} } : this; }",
}


@pytest.mark.parametrize("to_json", TO_JSON.values(), ids=TO_JSON.keys())
def test_a_to_json_for_all_objects_cannot_tell_python_what_it_likes(pool: WorkerPool, to_json: str) -> None:
    poison = f"function updateOutput() {{ Object.prototype.toJSON = {to_json}; }}"
    assert "It does not say which of its scenes to keep." in refusal(pool, f"{HEAD}{PIXEL}{poison}")
