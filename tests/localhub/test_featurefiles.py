import sqlite3
from pathlib import Path

import geopandas as gpd
import pyogrio
import pytest

from localhub.featurefiles import execution_database, execution_key, write_manifest
from localhub.store import Feature
from tasks.grid import Tile

WEST = Tile("33TVL_0_0", 32633, (400000.0, 5090000.0, 410000.0, 5100000.0), 500, 400)
EAST = Tile("34TCR_0_0", 32634, (300000.0, 5090000.0, 310000.0, 5100000.0), 500, 500)


def test_the_manifest_has_a_table_for_each_crs_and_a_row_for_each_output(tmp_path: Path) -> None:
    path = tmp_path / "manifest.gpkg"
    outputs = [(tile, {name: f"s3://b/{tile.name}/{name}.tif" for name in ("B02", "B03")}) for tile in (WEST, EAST)]
    write_manifest(path, outputs, [32635, 32633])
    assert [name for name, _ in pyogrio.list_layers(path)] == ["feature_32633", "feature_32634", "feature_32635"]
    west = gpd.read_file(path, layer="feature_32633", engine="pyogrio")
    assert west.drop(columns="geometry").to_dict("split")["data"] == [
        ["B02", WEST.name, f"s3://b/{WEST.name}/B02.tif", 500, 400],
        ["B03", WEST.name, f"s3://b/{WEST.name}/B03.tif", 500, 400],
    ]
    assert west.crs.to_epsg() == 32633
    assert tuple(west.total_bounds) == WEST.bounds
    empty = gpd.read_file(path, layer="feature_32635", engine="pyogrio")
    assert list(empty.columns) == list(west.columns)
    assert (len(empty), empty.crs.to_epsg()) == (0, 32635)


def test_the_manifests_columns_stand_in_the_documented_order(tmp_path: Path) -> None:
    path = tmp_path / "manifest.gpkg"
    write_manifest(path, [(WEST, {"B02": "s3://b/x.tif"})], [])
    with sqlite3.connect(path) as database:
        columns = [(row[1], row[5]) for row in database.execute("PRAGMA table_info(feature_32633)")]
    names = ["fid", "geometry", "outputId", "identifier", "path", "width", "height"]
    assert sorted(columns) == sorted((name, int(name == "fid")) for name in names)


def test_the_execution_database_is_one_plain_sqlite_file(tmp_path: Path) -> None:
    features = [Feature(1, WEST, "DONE", delivered=True), Feature(2, EAST, "FATAL", error="why"), Feature(3, WEST)]
    path = tmp_path / "execution.sqlite"
    path.write_bytes(execution_database(features))
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        columns = [row[1:3] for row in database.execute("PRAGMA table_info(features)")]
        rows = database.execute("SELECT * FROM features").fetchall()
    assert columns == [
        ("id", "INTEGER"),
        ("name", "TEXT"),
        ("status", "TEXT"),
        ("error", "TEXT"),
        ("delivered", "BOOLEAN"),
    ]
    assert rows == [
        (1, WEST.name, "DONE", None, 1),
        (2, EAST.name, "FATAL", "why", 0),
        (3, WEST.name, "PENDING", None, 0),
    ]


@pytest.mark.parametrize("root", ["", "out/", "a/b/"])
def test_the_execution_database_can_lie_at_each_of_three_places(root: str) -> None:
    keys = [execution_key(root, "id", place) for place in ("root", "request", "bucket")]
    assert keys == [f"{root}execution-id.sqlite", f"{root}id/execution-id.sqlite", "execution-id.sqlite"]
