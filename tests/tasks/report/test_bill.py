"""Estimate against bill, as the summary tells it."""

from dataclasses import replace

import pytest
from shapely import box

from tasks.grid import tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.report.bill import MAX_BILLS, bill_markdown, explanation

TILES = tiles_of_grid(box(12.2, 46.0, 12.7, 46.2), 4326, 1, 20)
BILLED = TileRecord(
    TILES[0], TileState.LABELLED, price_pu=80.0, samples=16, estimate_low_pu=60.0, estimate_pu=80.0, estimate_high_pu=95
)
DEARER = replace(BILLED, tile=TILES[1], price_pu=90.0, samples=18)


def test_each_tile_and_the_total_stand_beside_their_estimates_the_largest_difference_first() -> None:
    lines = bill_markdown([BILLED, DEARER], 170.0).splitlines()
    assert "| Tile | Samples | Low | Likely | High | Bill |" in lines
    assert lines[-5] == f"| {TILES[1].name} | 18 | 60.00 | 80.00 | 95.00 | 90.00 |"
    assert lines[-4] == f"| {TILES[0].name} | 16 | 60.00 | 80.00 | 95.00 | 80.00 |"
    assert lines[-3] == "| 2 tiles |  | 120.00 | 160.00 | 190.00 | 170.00 |"
    assert lines[-1].endswith("make 170.00 PU; the service says 170.00 PU for the request.")


def test_nothing_known_is_no_table() -> None:
    assert bill_markdown([TileRecord(TILES[0], TileState.LABELLED)], 100.0) == ""


def test_of_many_tiles_those_that_differ_most_are_shown() -> None:
    many = [replace(BILLED, tile=replace(TILES[0], name=f"t{number:03}")) for number in range(200)]
    text = bill_markdown([*many, DEARER], None)
    assert f"The {MAX_BILLS} of 201 tiles that differ most" in text
    assert text.count("| t") == MAX_BILLS - 1
    assert "no request was needed now" in text


@pytest.mark.parametrize(
    ("records", "cost_pu", "why"),
    [
        ([replace(BILLED, price_pu=8.0)], 100.0, "100 PU are the least that a request costs"),
        (
            [BILLED, TileRecord(TILES[1], TileState.FAILED)],
            200.0,
            "bills are not known where a script tells no acquisitions, or files cannot be read (1 tiles)",
        ),
        ([BILLED, replace(DEARER, state=TileState.FAILED)], 150.0, "could not process are free"),
        ([BILLED], 150.0, "it counts otherwise"),
    ],
)
def test_a_difference_from_the_requests_price_is_explained(records: list[TileRecord], cost_pu: float, why: str) -> None:
    assert why in explanation(records, cost_pu)
