"""The ledger is rebuilt from the EOPatches when it is lost, and opens in what people use."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest

from flows.parameters import LandCover
from tasks.ledger import TileRecord, read_ledger
from tests.flows.test_land_cover import run

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_lost_ledger_is_rebuilt_from_the_eopatches(parameters: LandCover):
    first = run(parameters)
    ledger = Path(first.folder) / "ledger.gpkg"
    ledger.unlink()
    second = run(parameters)
    assert second.job is None
    assert list(second.records) == [in_the_data(record) for record in first.records]
    assert read_ledger(ledger) == list(second.records)
    assert all(record.attempts == 1 and record.bytes_read and record.price_pu for record in second.records)
    frame = gpd.read_file(ledger, engine="pyogrio")
    assert frame.crs.to_epsg() == 4326
    assert frame.geometry.is_valid.all()
    with closing(sqlite3.connect(ledger)) as database:
        table = pd.read_sql("SELECT tile, state, price_pu FROM tiles ORDER BY tile", database)
    assert table["tile"].tolist() == ["t0", "t1", "t2", "t3"]
    assert table["price_pu"].sum() == pytest.approx(sum(record.price_pu or 0 for record in first.records))


def in_the_data(record: TileRecord) -> TileRecord:
    """What of a record can be told from its EOPatch: not how long it took, nor what had been estimated."""
    return replace(record, seconds=0.0, estimate_low_pu=None, estimate_pu=None, estimate_high_pu=None)
