"""What scripts are told of their scenes, and what they choose and deliver with it."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from localhub.engine import Evalscript, SceneInfo
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


def test_times_of_other_zones_belong_to_their_utc_day() -> None:
    late = SceneInfo(datetime(2019, 1, 1, 23, tzinfo=timezone(timedelta(hours=-5))), 0.0, "a")
    source = script("outputMetadata.userData = scenes.orbits[0].dateFrom; return [1];")
    assert run(source, {"B04": [1], "dataMask": [1]}, [late]).user_data == "2019-01-02T00:00:00Z"


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
