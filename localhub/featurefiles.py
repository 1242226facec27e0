"""The files beside the results: the feature manifest, written at analysis, and the execution database.

Layouts: research note batch-v2, sections 4.2 and 4.3 (documentation, and what existing clients read).
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import geopandas as gpd
import shapely

from localhub.store import Feature
from tasks.grid import Tile

_EXECUTION_SCHEMA = "CREATE TABLE features (id INTEGER, name TEXT, status TEXT, error TEXT, delivered BOOLEAN)"


def write_manifest(path: Path, targets: Sequence[tuple[Tile, Mapping[str, str]]], empty_epsgs: Iterable[int]) -> None:
    """Write the manifest: one row for each tile and output, one table for each CRS.

    `targets` holds for each tile the full s3:// URI by output id. CRSs of `empty_epsgs` without a tile get an empty
    table: clients look for a table of every CRS of their grid.
    """
    rows = sorted(
        ((tile.epsg, tile, output, uri) for tile, uris in targets for output, uri in uris.items()), key=itemgetter(0)
    )
    by_epsg = {epsg: [row[1:] for row in group] for epsg, group in groupby(rows, key=itemgetter(0))}
    for epsg in sorted({*by_epsg, *empty_epsgs}):
        table = _manifest_table(epsg, by_epsg.get(epsg, []))
        table.to_file(
            path,
            layer=f"feature_{epsg}",
            driver="GPKG",
            engine="pyogrio",
            geometry_type="Polygon",
            GEOMETRY_NAME="geometry",
        )


def _manifest_table(epsg: int, rows: Sequence[tuple[Tile, str, str]]) -> gpd.GeoDataFrame:
    columns = {
        "outputId": [output for _, output, _ in rows],
        "identifier": [tile.name for tile, _, _ in rows],
        "path": [uri for _, _, uri in rows],
        "width": [tile.width for tile, _, _ in rows],
        "height": [tile.height for tile, _, _ in rows],
    }
    outlines = [shapely.box(*tile.bounds) for tile, _, _ in rows]
    table = gpd.GeoDataFrame(columns, geometry=outlines, crs=f"EPSG:{epsg}")
    return table.astype(
        {"outputId": "object", "identifier": "object", "path": "object", "width": "int32", "height": "int32"}
    )


def execution_database(features: Iterable[Feature]) -> bytes:
    """Return the execution database as the bytes of an SQLite file (rollback journal: one object holds all of it)."""
    database = sqlite3.connect(":memory:")
    try:
        with database:
            database.execute(_EXECUTION_SCHEMA)
            database.executemany(
                "INSERT INTO features VALUES (?, ?, ?, ?, ?)",
                ((f.number, f.tile.name, f.status, f.error, f.delivered) for f in features),
            )
        return database.serialize()
    finally:
        database.close()
