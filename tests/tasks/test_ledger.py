from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import pytest
from shapely import box

from tasks.grid import Tile, lonlat_outline, tiles_of_grid
from tasks.ledger import LAYER, TileRecord, TileState, read_ledger, write_ledger

TILES = tiles_of_grid(box(12.2, 46.0, 12.7, 46.1), 4326, 1, 20)


def records() -> list[TileRecord]:
    outcomes = [
        TileRecord(TILES[0], TileState.PENDING),
        TileRecord(
            TILES[1], TileState.LABELLED, "", 2, 3_000_000_000, 4_000_000_000, 12.5, 1.25, "f00", 16, 1.0, 1.25, 1.5
        ),
        TileRecord(TILES[2], TileState.FAILED, "B04.tif is missing", 3, price_pu=0.0),
        TileRecord(TILES[-1], TileState.NO_DATA, "no acquisition"),
    ]
    assert {record.tile.epsg for record in outcomes} == {32632, 32633}
    return outcomes


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_ledger(records(), tmp_path / "ledger.gpkg")
    assert read_ledger(tmp_path / "ledger.gpkg") == records()


def test_a_ledger_without_any_price_comes_back_without_prices(tmp_path: Path) -> None:
    write_ledger(records()[:1], tmp_path / "ledger.gpkg")
    assert read_ledger(tmp_path / "ledger.gpkg") == records()[:1]


def test_a_ledger_of_before_samples_and_estimates_is_read(tmp_path: Path) -> None:
    write_ledger(records(), tmp_path / "ledger.gpkg")
    frame = gpd.read_file(tmp_path / "ledger.gpkg", engine="pyogrio", layer=LAYER)
    new = ["samples", "estimate_low_pu", "estimate_pu", "estimate_high_pu"]
    frame.drop(columns=new).to_file(tmp_path / "old.gpkg", layer=LAYER, engine="pyogrio")
    without = dict.fromkeys(new)
    assert read_ledger(tmp_path / "old.gpkg") == [replace(record, **without) for record in records()]


def test_geopandas_opens_it_with_outlines_in_longitude_and_latitude(tmp_path: Path) -> None:
    write_ledger(records(), tmp_path / "ledger.gpkg")
    frame = gpd.read_file(tmp_path / "ledger.gpkg", engine="pyogrio")
    assert frame.crs.to_epsg() == 4326
    assert frame["state"].tolist() == ["pending", "labelled", "failed", "no data"]
    assert frame.geometry.iloc[0].equals_exact(lonlat_outline(TILES[0]), 1e-9)


def test_writing_again_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_ledger(records(), tmp_path / "ledger.gpkg")
    write_ledger(records()[2:], tmp_path / "ledger.gpkg")
    assert read_ledger(tmp_path / "ledger.gpkg") == records()[2:]
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.gpkg"]


def test_when_writing_fails_the_old_ledger_stays(tmp_path: Path) -> None:
    write_ledger(records(), tmp_path / "ledger.gpkg")
    nowhere = TileRecord(Tile("x", 999999, (0, 0, 1, 1), 1, 1), TileState.PENDING)
    with pytest.raises(Exception, match="999999"):
        write_ledger([nowhere], tmp_path / "ledger.gpkg")
    assert read_ledger(tmp_path / "ledger.gpkg") == records()


def test_a_ledger_without_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        write_ledger([], tmp_path / "ledger.gpkg")
