"""The ledger: one row a tile, beside the data, so that anybody can see what became of each tile and what it cost.

It is a GeoPackage that QGIS and geopandas open. Outlines are in EPSG:4326 because one run's tiles may belong to several
UTM zones; each tile's own CRS and bounds stand in columns.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyogrio

from tasks.grid import Tile, lonlat_outline

LAYER = "tiles"
"""Name of the GeoPackage's table."""


class TileState(StrEnum):
    """How far a tile has come; the last two are ends without an EOPatch."""

    PENDING = "pending"
    PROCESSED = "processed"
    CONVERTED = "converted"
    LABELLED = "labelled"
    NO_DATA = "no data"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What became of one tile.

    Attributes:
        tile: which one.
        state: how far it has come.
        reason: why it has no data or failed; empty otherwise.
        attempts: how often the service was asked for it.
        bytes_read: size of the delivered files that were read.
        bytes_written: size of the EOPatch.
        seconds: time that conversion and reference took here.
        price_pu: processing units; None while the service has not told.
        fingerprint: identity of the order that the state belongs to; empty while a run goes on.
    """

    tile: Tile
    state: TileState
    reason: str = ""
    attempts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    price_pu: float | None = None
    fingerprint: str = ""


def fingerprint(work: object) -> str:
    """Give the identity of a piece of work: a hash of its description as JSON, 16 hexadecimal digits.

    Raises:
        TypeError: the description is not made of JSON's types.
    """
    text = json.dumps(work, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_ledger(records: Iterable[TileRecord], path: Path) -> None:
    """Write records to a GeoPackage; a reader sees the old file or the whole new one, never a part.

    Raises:
        ValueError: there are no records.
    """
    rows = list(records)
    if not rows:
        raise ValueError("A ledger needs at least one tile; the list of records is empty.")
    outlines = [lonlat_outline(record.tile) for record in rows]
    frame = gpd.GeoDataFrame(pd.DataFrame([_row(record) for record in rows]), geometry=outlines, crs=4326)
    frame["price_pu"] = frame["price_pu"].astype("float64")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        pyogrio.write_dataframe(frame, part, layer=LAYER, driver="GPKG")
        part.replace(path)


def read_ledger(path: Path) -> list[TileRecord]:
    """Read the records back, in the order in which they were written."""
    frame = pyogrio.read_dataframe(path, layer=LAYER, read_geometry=False)
    return [_record(row) for row in frame.to_dict("records")]


def _row(record: TileRecord) -> dict[str, Any]:
    min_x, min_y, max_x, max_y = record.tile.bounds
    tile = {"tile": record.tile.name, "epsg": record.tile.epsg}
    raster = {"width": record.tile.width, "height": record.tile.height}
    outcome = {name: value for name, value in asdict(record).items() if name != "tile"}
    bounds = {"min_x": min_x, "min_y": min_y, "max_x": max_x, "max_y": max_y}
    return tile | bounds | raster | outcome | {"state": record.state.value}


def _record(row: dict[str, Any]) -> TileRecord:
    return TileRecord(
        tile=Tile(
            name=row["tile"],
            epsg=int(row["epsg"]),
            bounds=(row["min_x"], row["min_y"], row["max_x"], row["max_y"]),
            width=int(row["width"]),
            height=int(row["height"]),
        ),
        state=TileState(row["state"]),
        reason=row["reason"] or "",
        attempts=int(row["attempts"]),
        bytes_read=int(row["bytes_read"]),
        bytes_written=int(row["bytes_written"]),
        seconds=float(row["seconds"]),
        price_pu=None if pd.isna(row["price_pu"]) else float(row["price_pu"]),
        fingerprint=row["fingerprint"] or "",
    )
