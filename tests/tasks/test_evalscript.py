"""Evalscripts before they are sent: rendering, what ``setup`` declares, and what is refused."""

import asyncio
import json
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.conversion import check_mapping, land_cover_mapping
from tasks.errors import InvalidInput
from tasks.evalscript import CONSTANT, Imagery, Script, load_script, output_dates, render

TEMPLATE = files("evalscripts").joinpath("land_cover.js").read_text(encoding="utf-8")
YEAR = date(2019, 1, 1), date(2019, 12, 31)


def own(folder: Path, source: str) -> Script:
    """The script of a file of one's own."""
    path = folder / "own.js"
    path.write_text(source, encoding="utf-8")
    return load_script(Imagery(evalscript=str(path)), *YEAR, 15)


def with_setup(returned: str) -> str:
    return f"//VERSION=3\nfunction setup() {{ return {returned}; }}\nfunction evaluatePixel(s) {{ return [1]; }}\n"


@given(st.dates(date(2015, 1, 1), date(2025, 1, 1)), st.integers(0, 800), st.integers(1, 400))
def test_output_dates_are_those_that_counting_day_by_day_finds(start: date, days: int, step: int) -> None:
    end = start + timedelta(days=days)
    expected = [start + timedelta(days=day) for day in range(days + 1) if day % step == 0]
    assert output_dates(start, end, step) == expected
    assert expected[-1] <= end


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.text()))))
def test_rendering_replaces_the_constant_and_nothing_else(parameters: dict[str, Any]) -> None:
    rendered = render(TEMPLATE, parameters)
    before, _, rest = rendered.partition(CONSTANT)
    value, length = json.JSONDecoder().raw_decode(rest)
    old = json.JSONDecoder().raw_decode(TEMPLATE.partition(CONSTANT)[2])[1]
    assert value == parameters
    assert before == TEMPLATE.partition(CONSTANT)[0]
    assert rest[length:] == TEMPLATE.partition(CONSTANT)[2][old:]


def test_a_script_without_the_constant_or_with_another_value_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no line that begins with 'const PARAMETERS = '"):
        render("const OTHER = {};", {})
    with pytest.raises(InvalidInput, match="is not JSON"):
        render("const PARAMETERS = new Map();", {})


@pytest.mark.parametrize(
    "imagery",
    [
        Imagery(),
        Imagery(bands=("B8A", "B05"), indices={"NDRE": ("B8A", "B05")}),
        Imagery(bands=("B02",), indices={}),
        Imagery(collection="sentinel-2-l2a", cloud_mask="scl", indices={"NBR": ("B08", "B12")}),
    ],
)
def test_the_built_in_script_declares_what_its_mapping_names(imagery: Imagery) -> None:
    script = load_script(imagery, *YEAR, 30)
    check_mapping(land_cover_mapping(imagery.bands, imagery.indices), [output for output, _, _ in script.outputs])
    dates = len(output_dates(*YEAR, 30))
    assert {name: bands for name, bands, _ in script.outputs} == {
        **dict.fromkeys((*imagery.bands, *imagery.indices, "QUALITY"), dates),
        "VALID_COUNT": 1,
    }
    used = {*imagery.bands, *(band for pair in imagery.indices.values() for band in pair)}
    assert set(script.input_bands) == {*used, "SCL" if imagery.cloud_mask == "scl" else "CLM", "dataMask"}
    assert (script.built_in, script.mosaicking) == (True, "ORBIT")


@pytest.mark.parametrize(
    ("returned", "outputs", "bands"),
    [
        ('{input: ["B04", "B08"], output: {bands: 2}}', (("default", 2, "AUTO"),), ("B04", "B08")),
        ('{input: [{bands: ["B04"], units: "DN"}], output: [{bands: 1}]}', (("default", 1, "AUTO"),), ("B04",)),
        ('{input: {bands: ["B04"]}, output: {id: "a", bands: ["x", "y"]}}', (("a", 2, "AUTO"),), ("B04",)),
        ('{input: "B04", output: {bands: 1, sampleType: SampleType.FLOAT32}}', (("default", 1, "FLOAT32"),), ("B04",)),
        (
            """{input: [{bands: ["B04", "B08"]}, {bands: ["B08", "dataMask"]}],
                output: [{id: "a", bands: 1, sampleType: "UINT16"}, {id: "b", bands: 3, sampleType: "INT8"}]}""",
            (("a", 1, "UINT16"), ("b", 3, "INT8")),
            ("B04", "B08", "dataMask"),
        ),
    ],
)
def test_every_form_of_setup_that_v3_allows_is_read(
    tmp_path: Path, returned: str, outputs: tuple[tuple[str, int, str], ...], bands: tuple[str, ...]
) -> None:
    script = own(tmp_path, with_setup(returned))
    assert (script.outputs, script.input_bands, script.built_in) == (outputs, bands, False)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("", "SIMPLE"),
        (', mosaicking: "TILE"', "TILE"),
        (", mosaicking: Mosaicking.ORBIT", "ORBIT"),
        (", mosaicking: undefined", "SIMPLE"),
    ],
)
def test_the_mosaicking_is_read_because_the_price_depends_on_it(tmp_path: Path, declared: str, expected: str) -> None:
    assert own(tmp_path, with_setup(f'{{input: ["B04"], output: {{bands: 1}}{declared}}}')).mosaicking == expected


def test_the_mosaicking_of_an_input_counts(tmp_path: Path) -> None:
    returned = '{input: [{bands: ["B04"], mosaicking: "ORBIT"}], output: {bands: 1}}'
    assert own(tmp_path, with_setup(returned)).mosaicking == "ORBIT"


def test_whether_scenes_may_be_left_out_is_read_because_they_cost_nothing_then(tmp_path: Path) -> None:
    source = with_setup('{input: ["B04"], output: {bands: 1}}')
    assert not own(tmp_path, source).drops_scenes
    assert own(tmp_path, source + "const preProcessScenes = (collections) => collections;\n").drops_scenes


STACKS = """{input: [{bands: ["B04"], datasource: "a"}, {bands: ["B08"], datasource: "b"}], mosaicking: "ORBIT",
  output: [{id: "A", bands: 1}, {id: "B", bands: 1}, {id: "C", bands: 2}]}"""


@pytest.mark.parametrize(
    ("body", "per_scene", "bands"),
    [
        ("", {}, [1, 1, 2]),
        ("outputs.A.bands = collection.scenes.length;", {"A": 1}, [1, 1, 2]),
        ("outputs.A.bands = 4 * collection.a.scenes.length; outputs.B.bands = 25;", {"A": 4}, [1, 25, 2]),
        (
            "for (const one of Object.values(outputs)) one.bands *= collection.b.scenes.length",
            {"A": 1, "B": 1, "C": 2},
            None,
        ),
        ("outputs.B.bands = new Set(collection.scenes.map((s) => s.date.getUTCMonth())).size", {"B": 0}, None),
        ("outputs.C.bands = collection.scenes.length / 2", {"C": 0}, None),
        ("outputs.D.bands = 3", {"A": 0, "B": 0, "C": 0}, None),
        ("while (true) {}", {"A": 0, "B": 0, "C": 0}, None),
        ("outputs.A = null", {"A": 0, "B": 0, "C": 0}, None),
    ],
)
def test_what_update_output_makes_of_the_bands_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, per_scene: dict[str, int], bands: list[int] | None
) -> None:
    monkeypatch.setattr("tasks.evalscript.SETUP_SECONDS", 0.5)
    script = own(tmp_path, f"{with_setup(STACKS)}function updateOutput(outputs, collection) {{ {body} }}\n")

    assert script.bands_per_scene == per_scene
    assert [count for _, count, _ in script.outputs] == (bands or [1, 1, 2])


def test_a_script_of_ones_own_is_sent_as_it_stands(tmp_path: Path) -> None:
    source = "// é\n" + with_setup('{input: ["B04"], output: {bands: 1}}')
    assert own(tmp_path, source).source == source
    assert own(tmp_path, "\ufeff" + source).source == source


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("//VERSION=3\nfunction setup() {}\nconst a = ;\n", r"own.js does not run: line:3: SyntaxError"),
        ("//VERSION=3\nlet a = 1;\nb.c = a;\n", r"does not run: line:3: ReferenceError: b is not defined"),
        ("//VERSION=3\nfunction evaluatePixel(s) { return [1]; }", "lacks a function setup or evaluatePixel"),
        ("//VERSION=3\nfunction setup() {}", "lacks a function setup or evaluatePixel"),
        ("function setup() {}\nfunction evaluatePixel(s) {}", "does not say that it is V3"),
        (with_setup("5"), "returns 5; an object with input and output is needed"),
        (with_setup("undefined"), "returns None; an object"),
        (with_setup("{output: {bands: 1}}"), "input must be a list of band names, or objects with bands"),
        (with_setup("{input: [{}], output: {bands: 1}}"), "input must be a list of band names, or objects with bands"),
        (with_setup("{input: [], output: {bands: 1}}"), "input must be a list"),
        (with_setup('{input: ["B04"]}'), "output must be an object or a list of objects"),
        (with_setup('{input: ["B04"], output: []}'), "output must be an object or a list of objects"),
        (with_setup('{input: ["B04"], output: {}}'), "bands of an output must be a number above 0, not None"),
        (with_setup('{input: ["B04"], output: {bands: 0}}'), "bands of an output must be a number above 0, not 0"),
        (with_setup('{input: ["B04"], output: {bands: true}}'), "bands of an output must be a number"),
        (
            with_setup('{input: ["B04"], output: {bands: 1, sampleType: "UINT64"}}'),
            "sampleType 'UINT64' is not one of AUTO, UINT8",
        ),
        (with_setup('{input: ["B04"], output: [{bands: 1}, {bands: 1}]}'), "must have different ids"),
        (with_setup('{input: ["B04"], output: {id: "userdata", bands: 1}}'), "output is named userdata"),
        (with_setup('{input: ["B04"], output: {bands: 1}, mosaicking: "WEEK"}'), "mosaicking 'WEEK' is not one of"),
        (with_setup('{input: ["B04"], output: {bands: 1n}}'), "does not run: .*BigInt"),
    ],
)
def test_a_script_that_v3_would_not_take_is_refused_with_the_place(tmp_path: Path, source: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        own(tmp_path, source)


def test_a_script_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.evalscript.SETUP_SECONDS", 0.2)
    with pytest.raises(InvalidInput, match=r"does not run: .*timeout"):
        own(tmp_path, "//VERSION=3\nwhile (true);")


def test_a_script_that_takes_all_memory_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.evalscript.SETUP_BYTES", 50_000_000)
    with pytest.raises(InvalidInput, match=r"does not run: .*memory limit"):
        own(tmp_path, "//VERSION=3\nconst a = []; for (;;) a.push(new Array(100000).fill(1.5));")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.js").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.js", "binary.js", "."):
        with pytest.raises(InvalidInput, match=r"The evalscript .* cannot be read"):
            load_script(Imagery(evalscript=str(tmp_path / name)), *YEAR, 15)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cloud_mask": "scl"}, "'scl' comes with sentinel-2-l2a, not with sentinel-2-l1c"),
        ({"collection": "landsat"}, "sentinel-2-l1c"),
        ({"bands": []}, "at least 1"),
        ({"bands": ["B02", "B02"]}, "one twice"),
        ({"bands": ["B13"]}, "B12"),
        ({"collection": "sentinel-2-l2a", "bands": ["B10"]}, "B10 comes with sentinel-2-l1c"),
        ({"indices": {"B02": ("B08", "B04")}}, "cannot be the name of an output"),
        ({"indices": {"quality": ("B08", "B04")}}, "cannot be the name of an output"),
        ({"indices": {"userdata": ("B08", "B04")}}, "cannot be the name of an output"),
        ({"indices": {"../NDVI": ("B08", "B04")}}, "cannot be the name of an output"),
        ({"indices": {"NDVI": ("B08",)}}, "indices.NDVI"),
        ({"max_cloud_coverage": 101}, "100"),
    ],
)
def test_imagery_that_does_not_exist_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Imagery.model_validate(fields)


def test_a_script_of_ones_own_may_mask_clouds_as_it_likes() -> None:
    assert Imagery(cloud_mask="scl", evalscript="own.js").cloud_mask == "scl"


def test_a_script_is_read_where_an_event_loop_runs_as_in_a_notebook():
    async def read() -> Script:
        return load_script(Imagery(), date(2019, 1, 1), date(2019, 12, 31), 10)

    assert asyncio.run(read()) == load_script(Imagery(), date(2019, 1, 1), date(2019, 12, 31), 10)
