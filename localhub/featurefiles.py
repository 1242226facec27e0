"""The files beside the results: the feature manifest, written at analysis, and the execution database.

Layouts: research note batch-v2, sections 4.2 and 4.3 (documentation, and what existing clients read).
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyogrio.raw
import shapely

from localhub.store import Feature
from tasks.grid import Tile

_EXECUTION_SCHEMA = "CREATE TABLE features (id INTEGER, name TEXT, status TEXT, error TEXT, delivered BOOLEAN)"


def write_manifest(path: Path, targets: Sequence[tuple[Tile, Mapping[str, str]]], empty_epsgs: Iterable[int]) -> None:
    """Write the manifest: one row for each tile and output, one table for each CRS.

    `targets` holds for each tile the full s3:// URI by output id. CRSs of `empty_epsgs` without a tile get an empty
    table: clients look for a table of every CRS of their grid.
    """
    rows = [(tile, output, uri) for tile, uris in targets for output, uri in uris.items()]
    for epsg in sorted({*empty_epsgs, *(tile.epsg for tile, _, _ in rows)}):
        _write_table(path, epsg, [row for row in rows if row[0].epsg == epsg])


def _write_table(path: Path, epsg: int, rows: Sequence[tuple[Tile, str, str]]) -> None:
    fields = {
        "outputId": np.array([output for _, output, _ in rows], object),
        "identifier": np.array([tile.name for tile, _, _ in rows], object),
        "path": np.array([uri for _, _, uri in rows], object),
        "width": np.array([tile.width for tile, _, _ in rows], np.int32),
        "height": np.array([tile.height for tile, _, _ in rows], np.int32),
    }
    pyogrio.raw.write(
        path,
        geometry=np.array([shapely.to_wkb(shapely.box(*tile.bounds)) for tile, _, _ in rows], object),
        field_data=list(fields.values()),
        fields=list(fields),
        layer=f"feature_{epsg}",
        driver="GPKG",
        geometry_type="Polygon",
        crs=f"EPSG:{epsg}",
        GEOMETRY_NAME="geometry",
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


def execution_key(root: str, request_id: str, place: Literal["root", "request", "bucket"]) -> str:
    """Return the key of the execution database; `root` is the prefix of the delivery, empty or ending in a slash."""
    folder = {"root": root, "request": f"{root}{request_id}/", "bucket": ""}[place]
    return f"{folder}execution-{request_id}.sqlite"
