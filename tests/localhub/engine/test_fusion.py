"""Data fusion: one script over several collections of a request."""

from typing import Any

import numpy as np
import pytest

from localhub.engine import Evalscript, EvalscriptError
from localhub.engine.setup import parse_setup
from tests.localhub.engine.engine_runs import dataset, scenes_on

BOTH = """//VERSION=3
function setup() {
  return {
    input: [
      {datasource: "l2a", bands: ["B04", "dataMask"], units: "DN", mosaicking: "ORBIT"},
      {datasource: "radar", bands: ["VV"]},
    ],
    output: {bands: 4, sampleType: "FLOAT32"},
  };
}
"""
L2A = {"collection": "sentinel-2-l2a", "id": "l2a"}
RADAR = {"collection": "byoc-radar", "id": "radar"}


def fused(
    body: str, datasets: list[Any], bands: list[dict[str, Any]], more: str = "", setup: str = BOTH
) -> list[float]:
    """What one pixel returns."""
    source = f"{setup}function evaluatePixel(samples, scenes) {{ {body} }}\n{more}"
    arrays = [
        {name: np.asarray(values, "uint16").reshape(-1, 1, 1) for name, values in group.items()} for group in bands
    ]
    with Evalscript(source) as script:
        script.prepare(datasets)
        return script.evaluate(arrays)["default"].ravel().tolist()


def test_samples_come_by_datasource_each_in_its_own_mosaicking_and_units() -> None:
    body = "return [samples.l2a.length, samples.l2a[1].B04, samples.radar.length, samples.radar[0].VV];"
    datasets = [dataset(scenes_on(3, 2), **L2A), dataset(scenes_on(9, 1), **RADAR)]
    bands = [{"B04": [70, 80], "dataMask": [1, 1]}, {"VV": [5]}]
    assert fused(body, datasets, bands) == [2, 80, 1, 5]


def test_simple_gives_an_array_that_is_empty_where_there_is_no_scene() -> None:
    body = "return [samples.radar.length, Array.isArray(samples.radar), samples.l2a.length, 0];"
    datasets = [dataset(scenes_on(3), **L2A), dataset([], **RADAR)]
    bands: list[dict[str, Any]] = [{"B04": [70], "dataMask": [1]}, {"VV": []}]
    assert fused(body, datasets, bands) == [0, 1, 1, 0]


def test_inputs_without_datasource_pair_by_position_and_are_numbered() -> None:
    setup = BOTH.replace('datasource: "l2a", ', "").replace('datasource: "radar", ', "")
    body = "return [samples[0].length, samples['0'][0].B04, samples[1][0].VV, Object.keys(samples).length];"
    datasets = [dataset(scenes_on(3)), dataset(scenes_on(1), collection="byoc-radar")]
    assert fused(body, datasets, [{"B04": [70], "dataMask": [1]}, {"VV": [5]}], setup=setup) == [1, 70, 5, 2]


def test_the_order_of_the_requests_collections_is_theirs() -> None:
    body = "return [samples.l2a[0].B04, samples.radar[0].VV, 0, 0];"
    datasets = [dataset(scenes_on(1), **RADAR), dataset(scenes_on(3), **L2A)]
    assert fused(body, datasets, [{"VV": [5]}, {"B04": [70], "dataMask": [1]}]) == [70, 5, 0, 0]


def test_scenes_are_chosen_and_described_by_datasource() -> None:
    setup = BOTH.replace('bands: ["VV"]', 'bands: ["VV"], mosaicking: "TILE"')
    more = """
function preProcessScenes(collections) {
  collections.l2a.scenes.orbits = collections.l2a.scenes.orbits.filter((o) => o.dateFrom.startsWith("2019-01-03"));
  collections.radar.scenes.tiles.reverse();
  return collections;
}
function updateOutput(outputs, collections) {
  outputs.default.bands = collections.l2a.scenes.length + collections.radar.scenes.length;
}
"""
    body = "return [samples.l2a[0].B04, samples.radar[0].VV, new Date(scenes.radar.tiles[0].date).getUTCDate()];"
    datasets = [dataset(scenes_on(3, 2), **L2A), dataset(scenes_on(9, 1), **RADAR)]
    assert fused(body, datasets, [{"B04": [80], "dataMask": [1]}, {"VV": [6, 5]}], more, setup) == [80, 6, 2]


MASKED = """//VERSION=3
const setup = () => ({{ input: [{inputs}], output: {{ bands: 3 }} }});
function evaluatePixel(samples) {{
  const [optical] = samples{l1c}, [{{ SCL }}] = samples{l2a};
  return SCL > 1 && SCL < 8 ? [optical.B04, optical.B03, optical.B02] : [0, 0, 0];
}}"""
BY_NAME = MASKED.format(
    inputs='{ datasource: "l2a", bands: ["SCL"], units: "DN" },'
    ' { datasource: "l1c", bands: ["B02", "B03", "B04"], units: "REFLECTANCE" }',
    l1c=".l1c",
    l2a=".l2a",
)
BY_NUMBER = MASKED.format(
    inputs='{ bands: ["B02", "B03", "B04"], units: "REFLECTANCE" }, { bands: ["SCL"], units: "DN" }',
    l1c="['0']",
    l2a="['1']",
)


@pytest.mark.parametrize(
    ("source", "ids"),
    [(BY_NAME, ("l1c", "l2a")), (BY_NUMBER, (None, None)), (BY_NUMBER, ("a", None)), (BY_NUMBER, ("l1c", "l2a"))],
)
def test_samples_are_found_in_both_documented_ways(source: str, ids: tuple[str | None, str | None]) -> None:
    datasets = [
        dataset(scenes_on(1), collection="sentinel-2-l1c", id=ids[0]),
        dataset(scenes_on(1), collection="sentinel-2-l2a", id=ids[1]),
    ]
    optical = {name: np.full((1, 1, 2), value, "uint16") for name, value in (("B04", 400), ("B03", 800), ("B02", 1200))}
    with Evalscript(source) as script:
        script.prepare(datasets)
        found = script.evaluate([optical, {"SCL": np.array([[[4, 9]]], "uint8")}])["default"]
    assert found[:, 0, :].T.tolist() == [[10, 20, 31], [0, 0, 0]]


TOLD = """
function updateOutput(outputs, collections) {
  told = Object.entries(collections).map(([id, { scenes }]) => [id, scenes.every(({ date }) => date instanceof Date)]);
}
let told;
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) { outputMetadata.userData = { told, scenes }; }
"""


def test_scenes_have_the_keys_of_the_samples_and_simple_has_tiles_at_the_end() -> None:
    keys = "Object.keys(scenes).join() === 'l2a,radar'"
    body = f"return [{keys}, scenes.l2a.orbits.length, Object.keys(scenes.radar).length, 0];"
    source = f"{BOTH}function evaluatePixel(samples, scenes) {{ {body} }}\n{TOLD}"
    with Evalscript(source) as script:
        script.prepare([dataset(scenes_on(3, 2), **L2A), dataset(scenes_on(9, 1), **RADAR)])
        numbers = np.ones((2, 1, 1), "uint16")
        values = script.evaluate([{"B04": numbers, "dataMask": numbers}, {"VV": numbers[:1]}])["default"]
        data = script.user_data()
    assert values.ravel().tolist() == [1, 2, 0, 0]
    assert data["told"] == [["l2a", True], ["radar", True]]
    assert [orbit["dateFrom"] for orbit in data["scenes"]["l2a"]["orbits"]] == [
        "2019-01-04T00:00:00Z",
        "2019-01-03T00:00:00Z",
    ]
    assert [tile["date"] for tile in data["scenes"]["radar"]["tiles"]] == [
        "2019-01-10T10:00:00Z",
        "2019-01-02T10:00:00Z",
    ]


@pytest.mark.parametrize("scenes", ["scenes.l2a", "scenes.l2a.scenes"])
def test_scenes_may_be_written_with_one_more_level_as_public_scripts_do(scenes: str) -> None:
    body = f"""const {{ orbits, length }} = {scenes}, [latest] = {scenes};
      return [length, orbits.length, new Date(orbits[1].dateFrom).getUTCDate(), latest.date.getUTCDate()];"""
    datasets = [dataset(scenes_on(3, 2), **L2A), dataset(scenes_on(9, 1), **RADAR)]
    bands: list[dict[str, Any]] = [{"B04": [70, 80], "dataMask": [1, 1]}, {"VV": [5]}]
    assert fused(body, datasets, bands) == [2, 2, 3, 4]


@pytest.mark.parametrize(
    ("overall", "of_inputs", "found"),
    [
        (None, (None, None), ["SIMPLE", "SIMPLE"]),
        ("ORBIT", (None, None), ["ORBIT", "ORBIT"]),
        ("ORBIT", ("TILE", None), ["TILE", "ORBIT"]),
        (None, ("ORBIT", "TILE"), ["ORBIT", "TILE"]),
        ("TILE", ("SIMPLE", None), ["SIMPLE", "TILE"]),
    ],
)
def test_an_inputs_mosaicking_overrides_the_scripts(
    overall: str | None, of_inputs: tuple[str | None, str | None], found: list[str]
) -> None:
    declared = {
        "input": [{"bands": ["B04"], "mosaicking": mosaicking} for mosaicking in of_inputs],
        "output": {"bands": 1},
        "mosaicking": overall,
    }
    assert [source.mosaicking for source in parse_setup(declared).sources([None, None])] == found


@pytest.mark.parametrize("returned", ["{}", "{l2a: collections.l2a}", "undefined"])
def test_the_choice_must_speak_of_every_collection(returned: str) -> None:
    setup = BOTH.replace('bands: ["VV"]', 'bands: ["VV"], mosaicking: "TILE"')
    more = f"function preProcessScenes(collections) {{ return {returned}; }}"
    datasets = [dataset(scenes_on(3), **L2A), dataset(scenes_on(9), **RADAR)]
    with pytest.raises(EvalscriptError, match=r"must return collections with an array scenes\.(orbits|tiles)"):
        fused("return [1, 2, 3, 4];", datasets, [], more, setup)


def test_collections_that_the_script_does_not_read_have_no_bands() -> None:
    with Evalscript(BOTH + "function evaluatePixel(s) { return [1, 2, 3, 4]; }") as script:
        plan = script.prepare([dataset(**L2A), dataset(**RADAR), dataset(id="spare")])
    assert plan.bands == ({"B04": 1, "dataMask": 1}, {"VV": 1}, {})


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["l2a"], r"asks for datasource 'radar'; the request has \[l2a\]"),
        ([None], r"asks for datasource 'l2a'; the request has \[0\]"),
        (["l2a", "sar"], r"asks for datasource 'radar'; the request has \[l2a, sar\]"),
    ],
)
def test_a_datasource_that_the_request_lacks_is_refused(ids: list[str | None], text: str) -> None:
    source = BOTH + "function evaluatePixel(s) { return [1, 2, 3, 4]; }"
    with Evalscript(source) as script, pytest.raises(EvalscriptError, match=text):
        script.prepare([dataset(id=name) for name in ids])


def test_one_named_datasource_fits_the_only_collection_of_a_request_without_names() -> None:
    source = """//VERSION=3
function setup() { return {input: [{datasource: "s2", bands: ["B04"]}], output: {bands: 1}}; }
function evaluatePixel(sample) { return [sample.B04]; }"""
    with Evalscript(source) as script:
        (found,) = script.setup.sources([None])
    assert (found.key, dict(found.units)) == (None, {"B04": None})
