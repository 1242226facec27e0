"""Evalscripts on a made-up window: what is told of those that run, and why others fail."""

import re
from datetime import date
from itertools import pairwise

import pytest

from localhub.engine import Output
from localhub.engine.limits import Limits, imposing
from localhub.trial.check import Reading, Trial, check, days_of

TRIAL = Trial(date(2026, 8, 31))

SERIES = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "b08".toUpperCase(), "SCL", "dataMask"], units: ["reflectance", "DN", "DN", "DN"]}],
    output: [{id: "count", bands: 1, sampleType: "UINT8"}, {id: "red", bands: 0, sampleType: "FLOAT32"}],
    mosaicking: "ORBIT"
  };
}
function preProcessScenes(collections) {
  collections.scenes.orbits = collections.scenes.orbits.filter((orbit) => orbit.dateFrom >= "2026-01-01");
  return collections;
}
function updateOutput(outputs, collection) { outputs.red.bands = collection.scenes.length; }
function evaluatePixel(samples) {
  return {count: [samples.length], red: samples.map((sample) => sample.B04)};
}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  outputMetadata.userData = {days: scenes.orbits.map((orbit) => orbit.dateFrom)};
}
"""


def setup(inputs: str, rest: str = "") -> str:
    return f"//VERSION=3\nfunction setup() {{ return {{input: {inputs}, output: {{bands: 1}} {rest}}}; }}\n"


def pixel(body: str, inputs: str = "['B04']") -> str:
    return f"{setup(inputs)}function evaluatePixel(s) {{ {body} }}"


def test_a_script_that_runs_is_told_of_with_inputs_outputs_and_price() -> None:
    report = check(SERIES, TRIAL)
    assert report.error == ""
    units = {"B04": "REFLECTANCE", "B08": "DN", "SCL": "DN", "dataMask": "DN"}
    kept = len([day for day in days_of(SERIES, TRIAL) if day >= date(2026, 1, 1)])
    assert report.readings == (Reading(None, "sentinel-2-l2a", "ORBIT", units, kept),)
    assert report.outputs == (Output("count", 1, "UINT8", None), Output("red", kept, "FLOAT32", None))
    assert report.per_acquisition
    assert report.process_pu == pytest.approx(1000 * 1000 / 512**2 * 3 / 3 * 2)  # area, bands, FLOAT32
    assert report.batch_pu == pytest.approx(report.process_pu / 3)
    assert report.user_data_bytes > 20 * kept
    assert report.notes == ("FLOAT32 doubles the price",)


def test_the_simple_form_is_known_and_costs_once() -> None:
    report = check("//VERSION=3\nreturn [2.5 * B04, 2.5 * B03, 2.5 * B02]", TRIAL)
    assert (report.error, report.simple, report.per_acquisition) == ("", True, False)
    assert report.outputs == (Output("default", 3, "AUTO", None),)
    assert report.batch_pu == pytest.approx(1000 * 1000 / 512**2 / 3)


@pytest.mark.parametrize(
    ("bands", "collection"),
    [
        (["B04"], "sentinel-2-l2a"),
        (["B10", "B04"], "sentinel-2-l1c"),
        (["SCL", "sunZenithAngles", "AOT", "SNW", "CLD", "CLP", "CLM"], "sentinel-2-l2a"),
    ],
)
def test_the_collection_is_one_that_has_the_bands(bands: list[str], collection: str) -> None:
    report = check(pixel(f"return [s.{bands[0]}];", str(bands)), TRIAL)
    assert (report.error, [reading.collection for reading in report.readings]) == ("", [collection])


def test_bands_of_a_collection_of_ones_own_are_given() -> None:
    source = pixel("return [s.NIR - s.R];", "['NIR', 'R', 'dataMask']")
    assert check(source, TRIAL).error.splitlines()[0] == "Collection 'S2L2A' has no band 'NIR'."
    own = Trial(TRIAL.end, own_bands=("R", "NIR"))
    assert check(source, own).readings[0].units == {"NIR": "DN", "R": "DN", "dataMask": "DN"}
    assert check(SERIES, own).error.splitlines()[0] == "Collection 'byoc' has no band 'B04'."


def test_several_collections_are_each_made_up() -> None:
    inputs = """[{datasource: "now", bands: ["B04"]}, {datasource: "then", bands: ["B10"], mosaicking: "TILE"}]"""
    body = "function evaluatePixel({now, then}) { return [now[0].B04 - then[0].B10 + then.length]; }"
    report = check(setup(inputs) + body, TRIAL)
    assert report.error == ""
    assert [(one.datasource, one.collection, one.mosaicking) for one in report.readings] == [
        ("now", "sentinel-2-l2a", "SIMPLE"),
        ("then", "sentinel-2-l1c", "TILE"),
    ]


def test_a_collection_of_ones_own_may_be_fused_with_sentinel_2() -> None:
    inputs = """[{datasource: "sar", bands: ["VV", "dataMask"]}, {datasource: "s2", bands: ["SCL", "B04"]}]"""
    source = setup(inputs) + "function evaluatePixel({sar, s2}) { return [sar[0].VV + s2[0].B04]; }"
    assert check(source, TRIAL).error.splitlines()[0] == "Collection 'S2L2A' has no band 'VV'."
    report = check(source, Trial(TRIAL.end, own_bands=("VV", "VH")))
    assert [one.collection for one in report.readings] == ["byoc", "sentinel-2-l2a"]
    neither = check(source.replace("SCL", "HV"), Trial(TRIAL.end, own_bands=("VV", "VH")))
    assert neither.error.splitlines()[0] == "Collection 'S2L2A' has no band 'HV'."


def test_inputs_without_datasource_are_collections_by_number() -> None:
    inputs = "[{bands: ['B10']}, {bands: ['SCL']}]"
    report = check(f"{setup(inputs)}function evaluatePixel(s) {{ return [s[0][0].B10 + s['1'][0].SCL]; }}", TRIAL)
    assert report.error == ""
    assert [(one.datasource, one.collection) for one in report.readings] == [
        ("0", "sentinel-2-l1c"),
        ("1", "sentinel-2-l2a"),
    ]
    (note,) = report.notes
    assert "each entry of setup().input is for a collection of its own" in note


def test_days_that_a_script_names_have_acquisitions() -> None:
    source = (
        setup('["B04"]', ', mosaicking: "ORBIT"')
        + """const DAYS = ["2017-05-15", "2017-06-24"]; // not 2017-02-30
function preProcessScenes(collections) {
  collections.scenes.orbits = collections.scenes.orbits.filter((orbit) => DAYS.includes(orbit.dateFrom.slice(0, 10)));
  return collections;
}
function evaluatePixel(samples) { return [samples[0].B04 - samples[1].B04]; }
"""
    )
    assert check(source, TRIAL).readings[0].samples == 2


def test_the_acquisitions_are_spread_over_the_year_before_the_last_day() -> None:
    days = days_of("", TRIAL)
    assert (len(days), days[0] > date(2025, 8, 31), days[-1]) == (12, True, TRIAL.end)
    assert {(later - earlier).days for earlier, later in pairwise(days)} <= {30, 31}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("return [B04]", "Only evalscripts of version 3"),
        (pixel("\n  return s.B04.x.y;"), r"evalscript\.js:4: TypeError"),
        (pixel("return 1;"), "Script must return an array"),
        (pixel("for (;;) {"), r"evalscript\.js:\d+: SyntaxError"),
        (pixel("", "[{bands: ['SCL'], units: 'REFLECTANCE'}]"), "unsupported units"),
        (pixel("", "['B04', 'B10', 'SCL']"), "has no band '(B10|SCL)'"),
    ],
)
def test_a_script_that_fails_says_why_with_its_own_line(source: str, reason: str) -> None:
    report = check(source, TRIAL)
    assert re.search(reason, report.error), report.error
    assert report.readings == ()


BROKEN_IN_SOME_LINE = """//VERSION=3
var outputs = {bands: 1,
  sampleType: "AUTO"};
function setup() {
  return {input: ["B02",
    "B04"], output: outputs, mosaicking: "TILE"};
}
function preProcessScenes(collections) { return collections; }
function evaluatePixel(samples) { return [0]; }
"""


@pytest.mark.parametrize(
    ("right", "wrong", "place"),
    [
        ('"B04"', '"VV"', '6: "VV"], output: outputs, mosaicking: "TILE"};'),
        ('"AUTO"', '"INT64"', '3: sampleType: "INT64"};'),
        ('["B02",\n    "B04"]', "7", "4: function setup() {"),
        ("return collections;", "", "8: function preProcessScenes(collections) {  }"),
        ("return [0];", "return 0;", "9: function evaluatePixel(samples) { return 0; }"),
    ],
)
def test_an_objection_is_told_with_the_line_that_it_is_about(right: str, wrong: str, place: str) -> None:
    assert check(BROKEN_IN_SOME_LINE, TRIAL).error == ""
    assert check(BROKEN_IN_SOME_LINE.replace(right, wrong), TRIAL).error.endswith(f"\nevalscript.js:{place}")


def test_a_script_that_keeps_no_acquisition_and_then_fails_is_told_of_the_days() -> None:
    source = (
        setup('["B04"]', ', mosaicking: "TILE"')
        + "function preProcessScenes(c) { c.scenes.tiles = []; return c; }\n"
        + "function evaluatePixel(samples) { return [samples[0].B04]; }"
    )
    assert "It keeps none of the acquisitions from 2025-" in check(source, TRIAL).error


def test_an_endless_script_is_stopped_and_the_next_one_runs() -> None:
    with imposing(Limits(call_seconds=0.3)):
        endless = check(pixel("for (;;);"), TRIAL)
        assert "it ran longer than 0.3 s" in endless.error
        assert check("//VERSION=3\nreturn [B04]", TRIAL).error == ""


def test_lengths_that_differ_and_what_is_printed_are_noted() -> None:
    lengths, *printed = check(pixel('console.log("red", s.B04 > 2); return [s.B04, 1];'), TRIAL).notes
    assert lengths.startswith(
        "output 'default': 576 of 576 pixels returned another number of values than the declared 1"
    )
    assert printed[0] == "it prints: red false"
    assert printed[-1] == "it prints 97 more messages"


@pytest.mark.parametrize(
    ("returned", "is_noted"),
    [("[s.B04 / 10000, 0]", True), ("[NaN, 0.5]", True), ("[s.B04, 0]", False), ("[1, s.dataMask]", False)],
)
@pytest.mark.parametrize("sample_type", ["AUTO", "FLOAT32"])
def test_a_picture_of_one_colour_is_noted(returned: str, is_noted: bool, sample_type: str) -> None:
    declared = f"{{input: ['B04', 'dataMask'], output: {{bands: 2, sampleType: '{sample_type}'}}}}"
    source = f"//VERSION=3\nsetup = () => ({declared}); evaluatePixel = (s) => {returned};"
    notes = check(source, TRIAL).notes
    is_bytes_only = "/" in returned and sample_type == "FLOAT32"
    assert any(note.startswith("every pixel is the same here") for note in notes) == (is_noted and not is_bytes_only)
