"""What scripts are told of their scenes, and what they choose and deliver with it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyproj import CRS
from shapely.geometry import MultiPolygon, Polygon, box, shape
from shapely.geometry.base import BaseGeometry

from localhub.engine import Evalscript, EvalscriptError, SceneInfo
from tests.localhub.engine.engine_runs import dataset, pixel, run, scenes_on, script


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


OF_L1C = "s3://sentinel-s2-l1c/tiles/33/T"
GUIDE = [
    ("2020-12-06T10:08:08Z", 100, f"{OF_L1C}/UL/2020/12/6/0"),
    ("2020-12-06T10:08:05Z", 98.26, f"{OF_L1C}/VL/2020/12/6/0"),
    ("2020-12-04T10:18:05Z", 99.93, f"{OF_L1C}/UL/2020/12/4/0"),
    ("2020-12-04T10:17:56Z", 98.5, f"{OF_L1C}/VL/2020/12/4/0"),
    ("2020-12-01T10:08:10Z", 22.85, f"{OF_L1C}/UL/2020/12/1/0"),
    ("2020-12-01T10:08:06Z", 46.81, f"{OF_L1C}/VL/2020/12/1/0"),
]
"""The tiles of the examples in "Working with metadata in evalscript": date, cloudCoverage, dataPath."""


def guide_scenes() -> list[SceneInfo]:
    return [SceneInfo(datetime.fromisoformat(date), cover, path) for date, cover, path in GUIDE]


def without_ids(tiles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tiles without their numbers, which are the service's own."""
    return [{name: value for name, value in tile.items() if name != "shId"} for tile in tiles]


def test_orbits_come_into_userdata_as_the_documentation_prints_them() -> None:
    more = "function updateOutputMetadata({ orbits }, inputMetadata, out) { out.userData = { inputMetadata, orbits }; }"
    bands = {"B04": [1, 2, 3], "dataMask": [1, 1, 1]}
    found = run(script("return [0];", more=more), bands, guide_scenes()).user_data
    assert found["inputMetadata"].keys() == {"serviceVersion", "normalizationFactor"}
    assert found["inputMetadata"]["normalizationFactor"] == 0.0001
    assert isinstance(found["inputMetadata"]["serviceVersion"], str)
    tiles = [{"date": date, "cloudCoverage": cover, "dataPath": path} for date, cover, path in GUIDE]
    orbits = [{**orbit, "tiles": without_ids(orbit["tiles"])} for orbit in found["orbits"]]
    assert orbits == [
        {
            "tiles": tiles[2 * index : 2 * index + 2],
            "dateTo": f"2020-12-{day}T23:59:59Z",
            "__idx": index,
            "dateFrom": f"2020-12-{day}T00:00:00Z",
        }
        for index, day in enumerate(("06", "04", "01"))
    ]


def test_tiles_and_a_running_maximum_come_into_userdata_as_the_documentation_prints_them() -> None:
    more = "let highest = 0; function updateOutputMetadata({ tiles }, i, out) { out.userData = { tiles, highest }; }"
    body = "for (const s of samples) highest = Math.max(highest, s.B04 * 0.0001); return [0];"
    bands = {"B04": np.array([[[8795, 7]]] * 6, "uint16"), "dataMask": np.ones((6, 1, 2), "uint8")}
    found = run(script(body, mosaicking="TILE", more=more), bands, guide_scenes()).user_data
    assert without_ids(found["tiles"]) == [
        {"date": date, "cloudCoverage": cover, "__idx": index, "dataPath": path}
        for index, (date, cover, path) in enumerate(GUIDE)
    ]
    assert all(isinstance(tile["shId"], int) for tile in found["tiles"])
    assert found["highest"] == 0.8795000000000001


def test_simple_tells_update_output_metadata_the_tiles_of_the_mosaic_and_no_one_else() -> None:
    more = """let seen = [];
    function preProcessScenes() { throw new Error("SIMPLE has no choice"); }
    function filterScenes() { throw new Error("SIMPLE has no choice"); }
    function updateOutput(outputs, collection) { seen = collection.scenes.map(({ date }) => date); }
    function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
      outputMetadata.userData = { scenes, seen, paths: scenes.tiles.map((tile) => tile.dataPath) };
    }"""
    source = script(
        "return [Object.keys(scenes).length + scenes.hasOwnProperty('tiles')];", mosaicking="SIMPLE", more=more
    )
    result = run(source, {"B04": [1], "dataMask": [1]}, guide_scenes())
    assert result.values["default"].item() == 0
    assert result.user_data["paths"] == [path for _, _, path in GUIDE]
    assert result.user_data["seen"] == [date.replace("Z", ".000Z") for date, _, _ in GUIDE]
    assert [tile["date"] for tile in result.user_data["scenes"]["tiles"]] == [date for date, _, _ in GUIDE]


TRIANGLE = Polygon([(15, 46), (16, 46), (15, 47)])
PARTS = MultiPolygon([TRIANGLE, box(20, 40, 21, 41)])


@pytest.mark.parametrize("mosaicking", ["SIMPLE", "ORBIT", "TILE"])
@pytest.mark.parametrize("footprint", [TRIANGLE, PARTS])
def test_bounds_tell_where_the_data_of_each_tile_lie(mosaicking: str, footprint: BaseGeometry) -> None:
    more = """function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
      outputMetadata.userData = scenes.tiles || scenes.orbits[0].tiles;
    }"""
    scenes = [replace(scene, footprint=footprint) for scene in scenes_on(1)]
    source = script("return [0];", mosaicking=mosaicking, more=more)
    bands = {"B04": [1], "dataMask": [1]}
    (tile,) = run(source.replace("units: 'DN'", "units: 'DN', metadata: ['bounds']"), bands, scenes).user_data
    assert shape(tile["dataGeometry"]).equals(footprint)
    assert shape(tile["dataEnvelope"]).equals(box(*footprint.bounds))
    for geometry in (tile["dataGeometry"], tile["dataEnvelope"]):
        assert CRS.from_user_input(geometry["crs"]["properties"]["name"]) == CRS.from_authority("OGC", "CRS84")
    (tile,) = run(source, bands, scenes).user_data
    assert not tile.keys() & {"dataGeometry", "dataEnvelope"}


def test_bounds_help_to_choose_tiles() -> None:
    more = """function preProcessScenes(collections) {
      collections.scenes.tiles = collections.scenes.tiles.filter((tile) => tile.dataEnvelope.coordinates[0][0][0] > 18);
      return collections;
    }"""
    east, west = box(20, 40, 21, 41), box(15, 40, 16, 41)
    scenes = [replace(scene, footprint=place) for scene, place in zip(scenes_on(2, 1), (west, east), strict=True)]
    source = script("return [0];", mosaicking="TILE", more=more).replace("units: 'DN'", "metadata: ['bounds']")
    assert run(source, {"B04": [1], "dataMask": [1]}, scenes).plan.samples[0] == ((1,),)


def test_times_lose_their_fractions() -> None:
    sensed = SceneInfo(datetime(2019, 1, 1, 10, 0, 59, 999_999, UTC), 0.0, "a")
    source = script("outputMetadata.userData = scenes.tiles[0].date; return [1];", mosaicking="TILE")
    assert run(source, {"B04": [1], "dataMask": [1]}, [sensed]).user_data == "2019-01-01T10:00:59Z"


@pytest.mark.parametrize("days", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize(("mosaicking", "date"), [("ORBIT", "dateFrom"), ("TILE", "date")])
def test_samples_stand_in_the_order_in_which_the_scenes_were_found(
    days: tuple[int, ...], mosaicking: str, date: str
) -> None:
    body = f"return scenes.{mosaicking.lower()}s.map((scene) => new Date(scene.{date}).getUTCDate() - 1);"
    result = run(
        script(body, bands="3", mosaicking=mosaicking), {"B04": [1] * 3, "dataMask": [1] * 3}, scenes_on(*days)
    )
    assert result.values["default"].ravel().tolist() == list(days)


def test_a_scene_without_data_in_a_pixel_still_gives_a_sample_there() -> None:
    body = "return [samples.length, scenes.orbits.length, scenes.length, samples[1].dataMask, samples[1].B04];"
    bands = {"B04": np.array([[[7, 8]], [[0, 9]]], "uint16"), "dataMask": np.array([[[1, 1]], [[0, 1]]], "uint8")}
    result = run(script(body, bands="5"), bands, scenes_on(2, 1))
    assert result.values["default"][:, 0, :].T.tolist() == [[2, 2, 2, 0, 0], [2, 2, 2, 1, 9]]


OLD_FORM = """
  const { length } = scenes;
  const late = scenes.filter((scene) => scene.date.getTime() > new Date("2019-01-02T23:59:59Z")).length;
  let days = 0;
  scenes.forEach((scene) => (days += scene.date.getUTCDate()));
  for (let i = 0; i < scenes.length; i++) days += scenes[i].date.getMonth();
  for (const scene of scenes) if (!(scene.date instanceof Date)) days = NaN;
  return [length, late, days, scenes[0].date - scenes[1].date, scenes[0].date.getUTCHours()];
"""


@pytest.mark.parametrize(("mosaicking", "hour"), [("ORBIT", 0), ("TILE", 10)])
def test_the_old_form_of_scenes_is_an_array_with_dates(mosaicking: str, hour: int) -> None:
    found = pixel(OLD_FORM, bands="5", mosaicking=mosaicking)
    assert found == [3, 2, 4 + 3 + 2, 86_400_000, hour]


@pytest.mark.parametrize(("mosaicking", "name"), [("ORBIT", "orbits"), ("TILE", "tiles")])
def test_the_old_form_is_written_as_the_new_one(mosaicking: str, name: str) -> None:
    body = "outputMetadata.userData = { scenes, names: Object.keys(scenes), text: JSON.stringify(scenes) }; return [0];"
    found = run(script(body, mosaicking=mosaicking), {"B04": [1], "dataMask": [1]}, scenes_on(1)).user_data
    assert list(found["scenes"]) == [name]
    assert json.loads(found["text"]) == found["scenes"]
    assert found["names"] == ["0"]


def test_evaluate_pixel_gets_five_arguments_and_of_them_an_empty_custom_data() -> None:
    body = """const { serviceVersion, normalizationFactor, ...more } = inputMetadata;
      const told = typeof serviceVersion === "string" && Object.keys(more).length === 0;
      const empty = JSON.stringify(customData) === "{}" && !("userData" in outputMetadata);
      return [arguments.length, empty, told, normalizationFactor];"""
    assert pixel(body, bands="4") == pytest.approx([5, 1, 1, 0.0001])


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


def test_times_of_other_zones_belong_to_their_utc_day() -> None:
    late = SceneInfo(datetime(2019, 1, 1, 23, tzinfo=timezone(timedelta(hours=-5))), 0.0, "a")
    source = script("outputMetadata.userData = scenes.orbits[0].dateFrom; return [1];")
    assert run(source, {"B04": [1], "dataMask": [1]}, [late]).user_data == "2019-01-02T00:00:00Z"


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_functions_are_called_in_the_documented_order_and_pixels_row_by_row() -> None:
    source = """//VERSION=3
    const calls = ["top"];
    function setup() { calls.push("setup"); return { input: ["B04"], output: { bands: 1 }, mosaicking: "ORBIT" }; }
    function preProcessScenes(collections) { calls.push("preProcessScenes"); return collections; }
    function filterScenes(scenes) { calls.push("filterScenes"); return scenes; }
    function updateOutput() { calls.push("updateOutput"); }
    function evaluatePixel(samples) { calls.push(Math.round(samples[0].B04 * 10000)); }
    function updateOutputMetadata(scenes, input, output) { calls.push("last"); output.userData = calls; }
    """
    values = np.arange(12, dtype="uint16").reshape(1, 3, 4)
    before = ["top", "setup", "preProcessScenes", "updateOutput"]
    found = run(source, {"B04": values}, scenes_on(1)).user_data
    assert found == [*before, *range(12), "last"]


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
    assert result.wrong_lengths == {}


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


@pytest.mark.parametrize(
    ("assigned", "written"),
    [
        ("undefined", {}),
        ("() => 1", {}),
        ("null", None),
        ("5", 5),
        ("'text'", "text"),
        ("[new Date(0), , NaN, 1 / 0]", ["1970-01-01T00:00:00.000Z", None, None, None]),
        ("{ a: undefined, b: { toJSON: () => 'own' }, c: new Map() }", {"b": "own", "c": {}}),
    ],
)
def test_user_data_is_written_by_the_rules_of_json(assigned: str, written: Any) -> None:
    source = script(f"outputMetadata.userData = {assigned};")
    result = run(source, {"B04": [1], "dataMask": [1]}, scenes_on(1))
    assert result.user_data == written
    assert not result.values["default"].any()


def test_update_output_metadata_finds_its_scenes_whatever_the_last_pixel_did_to_them() -> None:
    more = "function updateOutputMetadata(scenes, i, o) { o.userData = [scenes.length, scenes.orbits.length]; }"
    source = script("scenes.pop(); scenes.orbits.reverse().pop(); return [1];", more=more)
    assert run(source, {"B04": [1, 1], "dataMask": [1, 1]}, scenes_on(2, 1)).user_data == [2, 2]


@pytest.mark.parametrize("count", ["-1", "1.5", "NaN", "1 / 0", "'many'", "undefined", "1e9"])
def test_an_odd_number_of_bands_is_refused(count: str) -> None:
    source = script("return [1];", more=f"function updateOutput(outputs) {{ outputs.default.bands = {count}; }}")
    with pytest.raises(EvalscriptError, match=r"^Invalid script! .*\bbands\b"):
        run(source, {"B04": [1], "dataMask": [1]}, scenes_on(1))


def test_user_data_is_empty_where_the_script_sets_none_and_is_asked_once() -> None:
    assert run(script("return [0];"), {"B04": [1], "dataMask": [1]}, scenes_on(1)).user_data == {}
    more = "let calls = 0; function updateOutputMetadata(s, i, o) { calls++; o.userData = { calls }; }"
    with Evalscript(script("return [0];", more=more)) as counting:
        counting.prepare([dataset(scenes_on(1))])
        assert counting.user_data() == counting.user_data() == {"calls": 1}
