"""The plan as people and programs get it: text, table, JSON, GeoPackage."""

import json
import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import geopandas as gpd
import pytest
from shapely import box

from tasks.grid import lonlat_outline, tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.pricing import NOTHING, Range
from tasks.report import Plan, TilePlan, plan_json, plan_markdown, plan_rows, write_plan

TILES = tiles_of_grid(box(12.2, 46.0, 12.7, 46.2), 4326, 1, 20)


def planned(number: int, state: TileState, scenes: int, samples: Range, attempts: int = 0) -> TilePlan:
    price = Range(*(10 * count for count in samples))
    process = Range(*(3 * figure for figure in price))
    return TilePlan(
        TileRecord(TILES[number], state, attempts=attempts), scenes, samples, price, process, 3_000_000, 2_000_000
    )


def plan(goal: TileState = TileState.LABELLED) -> Plan:
    return Plan(
        title="Dolomites · 2019",
        goal=goal,
        dates=[date(2019, 1, 1) + timedelta(15 * step) for step in range(25)],
        bands=["B02", "B03", "CLM"],
        tiles=(
            planned(0, TileState.LABELLED, 19, Range(10, 16, 17)),
            planned(1, TileState.NO_DATA, 0, NOTHING),
            planned(2, TileState.PENDING, 11, Range(9, 10, 11)),
            planned(3, TileState.PENDING, 12, Range(12, 12, 12), attempts=2),
            planned(-1, TileState.FAILED, 12, Range(12, 12, 12), attempts=2),
            planned(5, TileState.CONVERTED, 12, Range(12, 12, 12)),
        ),
        basis="19 scenes of <the> Catalog",
        request="No request for this exists.",
    )


def test_the_plan_tells_actions_zones_dates_bands_and_where_the_price_comes_from() -> None:
    text = plan_markdown(plan())
    for line in ("| redo | 2 |", "| new | 1 |", "| continue | 1 |", "| skip | 2 |"):
        assert line in text
    assert re.search(r"\| EPSG:32632 \| \d \| [\d,]+,000 \|", text)
    assert "25, from 2019-01-01 to 2019-12-27, every 15 days" in text
    assert "3 (B02, B03, CLM)" in text
    assert "- **Price rests on**: 19 scenes of &lt;the> Catalog" in text
    assert "- **Samples**: 0 to 16 a tile, of 0 to 19 scenes; without any, and so without data: 1" in text
    assert "- **To expect**: 18.0 MB delivered, 12.0 MB of EOPatches" in text


def test_both_ways_to_buy_stand_side_by_side() -> None:
    text = plan_markdown(plan())
    assert "| Price, provisional | Low | Likely | High |" in text
    assert "| Batch Processing API | 550.00 PU | 620.00 PU | 640.00 PU |" in text
    assert "| Process API, the same tiles | 1,650.00 PU | 1,860.00 PU | 1,920.00 PU |" in text
    assert "Still to be paid" not in text
    assert "| Price, binding |" in plan_markdown(replace(plan(), binding=True))


@pytest.mark.parametrize(("paid", "left"), [(None, "0.00"), (600.0, "40.00"), (700.0, "0.00")])
def test_what_is_paid_already_is_not_to_be_paid_again(paid: float | None, left: str) -> None:
    bought = replace(plan(), paid_pu=paid)
    assert bought.price_pu == plan().price_pu
    assert re.search(rf"\| Still to be paid \| 0.00 PU \| [\d.]+ PU \| {left} PU \|", plan_markdown(bought))


def test_a_request_costs_its_minimum_where_its_tiles_cost_less() -> None:
    (tile,) = [one for one in plan().tiles if one.record.state is TileState.PENDING and one.record.attempts]
    assert replace(plan(), tiles=(replace(tile, price_pu=Range(1, 2, 3)),)).price_pu == Range(100, 100, 100)


def test_without_a_reference_a_converted_tile_is_complete() -> None:
    assert "| skip | 3 |" in plan_markdown(plan(TileState.CONVERTED))


def test_a_plan_without_anything_to_buy_says_so() -> None:
    done = tuple(TilePlan(TileRecord(tile, TileState.LABELLED)) for tile in TILES)
    nothing = Plan("x", TileState.LABELLED, [], ["B04"], done)
    assert "nothing to buy, all EOPatches exist" in plan_markdown(nothing)
    assert nothing.price_pu == nothing.left_pu == NOTHING
    assert "Batch" not in plan_markdown(nothing)


def test_no_text_shows_python_or_json() -> None:
    assert not re.search(r"[{}\[\]]|None|TileState|datetime|Range", plan_markdown(plan()))


def test_every_line_of_a_table_has_as_many_cells_as_its_header() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", plan_markdown(plan()), flags=re.MULTILINE)
    assert len(tables) == 3
    for found in tables:
        assert len({line.count("|") for line in found.splitlines()}) == 1


def test_the_table_has_the_dearest_tiles_first_and_every_row_the_same_keys() -> None:
    rows = plan_rows(plan())
    assert [row["price high"] for row in rows] == ["170.00 PU", *["120.00 PU"] * 3, "110.00 PU", "0 PU"]
    assert len({tuple(row) for row in rows}) == 1
    assert rows[0]["tile"] == TILES[0].name
    assert (rows[0]["samples"], rows[1]["samples"], rows[-1]["acquisitions"]) == ("10 to 17", "12", "0")


def test_the_json_adds_up_also_for_tiles_of_any_outline() -> None:
    first, *others = plan().tiles
    slanted = replace(first, record=replace(first.record, tile=replace(first.record.tile, outline=b"wkb")))
    found = json.loads(plan_json(replace(plan(), tiles=(slanted, *others))))
    assert [tile["name"] for tile in found["tiles"]] == [record.tile.name for record in plan().records]
    for case in ("low", "likely", "high"):
        assert found["price_pu"][case] == sum(tile["price_pu"][case] for tile in found["tiles"])
    assert found["dates"][0] == "2019-01-01"
    assert found["tiles"][0]["state"] == "labelled"


def test_geopandas_opens_the_tiles_with_samples_and_prices(tmp_path: Path) -> None:
    unknown = replace(plan(), tiles=(*plan().tiles[:-1], replace(plan().tiles[-1], scenes=None)))
    write_plan(unknown, tmp_path / "plan.gpkg")
    frame = gpd.read_file(tmp_path / "plan.gpkg", engine="pyogrio")
    assert frame.crs.to_epsg() == 4326
    assert frame["price_pu_high"].tolist() == [170, 0, 110, 120, 120, 120]
    assert frame["samples_low"].tolist() == [10, 0, 9, 12, 12, 12]
    assert frame["scenes"].isna().tolist() == [False] * 5 + [True]
    assert frame.geometry.iloc[0].equals_exact(lonlat_outline(TILES[0]), 1e-9)
