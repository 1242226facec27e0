import base64
import re

from hypothesis import given
from hypothesis import strategies as st
from shapely import box

from tasks.grid import tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.report import (
    SummaryReport,
    artifact_key,
    summary_markdown,
    tile_rows,
    tiles_markdown,
)

TILES = tiles_of_grid(box(12.2, 46.0, 12.7, 46.2), 4326, 1, 20)


def records() -> list[TileRecord]:
    return [
        TileRecord(TILES[0], TileState.LABELLED, "", 1, 1_234_500_000, 500_000, 1234.56, 1.25),
        TileRecord(TILES[1], TileState.NO_DATA, "no acquisition"),
        TileRecord(TILES[2], TileState.PENDING),
        TileRecord(TILES[3], TileState.FAILED, f"{TILES[3].name}/B04.tif is <b>missing</b> | gone", 2, price_pu=2.0),
        TileRecord(TILES[-1], TileState.FAILED, f"{TILES[-1].name}/B04.tif is <b>missing</b> | gone", 2),
        TileRecord(TILES[5], TileState.CONVERTED),
    ]


def summary() -> SummaryReport:
    return SummaryReport(
        "Dolomites · 2019",
        records(),
        TileState.LABELLED,
        "Bought <much>.",
        3723,
        {"EOPatches": "s3://bucket/eopatches"},
    )


def test_failures_come_first_in_the_table_and_then_names_count() -> None:
    states = [(row["state"], row["tile"]) for row in tile_rows(reversed(records()))]
    assert [state for state, _ in states] == ["failed", "failed", "no data", "pending", "converted", "labelled"]
    assert states[:2] == sorted(states[:2])


def test_every_row_has_the_same_keys_and_text_with_units() -> None:
    rows = tile_rows(records())
    assert len({tuple(row) for row in rows}) == 1
    labelled = rows[-1]
    assert labelled["read"] == "1,234.5 MB"
    assert labelled["time"] == "1,234.6 s"
    assert labelled["price"] == "1.25 PU"
    assert labelled["pixels"] == "500 x 500"


def test_the_summary_groups_equal_reasons_whatever_the_tile() -> None:
    text = summary_markdown(summary())
    assert "**2 of 6 tiles are complete (33%)** after 1 h 2 min." in text
    assert re.search(
        rf"\| …/B04.tif is &lt;b>missing&lt;/b> \\\| gone \| 2 \| {TILES[3].name}, {TILES[-1].name} \|", text
    )
    assert "- **EOPatches**: `s3://bucket/eopatches`" in text


def test_many_tiles_with_one_reason_are_counted_and_not_all_named() -> None:
    failed = [TileRecord(tile, TileState.FAILED, "timed out") for tile in TILES]
    text = summary_markdown(SummaryReport("x", failed, TileState.LABELLED, "", 1, {}))
    assert f"| timed out | {len(TILES)} |" in text
    assert f"and {len(TILES) - 5} more" in text


def test_the_summary_says_what_the_run_did() -> None:
    assert "after 1 h 2 min. Bought &lt;much>." in summary_markdown(summary())


def test_no_text_shows_python_or_json() -> None:
    for text in (summary_markdown(summary()), tiles_markdown("x", records(), b"png")):
        assert not re.search(r"[{}\[\]]|None|TileState|datetime", text.replace("![", "").replace("](data:", ""))


def test_every_line_of_a_table_has_as_many_cells_as_its_header() -> None:
    for text in (summary_markdown(summary()),):
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(cells) == 1


def test_the_map_is_embedded_as_an_image() -> None:
    encoded = re.search(
        r"!\[Status of 6 tiles\]\(data:image/png;base64,([^)]+)\)", tiles_markdown("x", records(), b"png")
    )
    assert encoded is not None
    assert base64.b64decode(encoded[1]) == b"png"


def test_keys_of_artifacts_are_plain() -> None:
    assert artifact_key("slovenia-20190101-20191231", "plan") == "slovenia-20190101-20191231-plan"
    assert artifact_key("Škofja Loka / 2019", "Map") == "skofja-loka-2019-map"


@given(st.text(), st.text())
def test_any_key_is_valid_or_refused(area: str, what: str) -> None:
    try:
        key = artifact_key(area, what)
    except ValueError:
        return
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
