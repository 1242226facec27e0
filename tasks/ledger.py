"""The ledger: one row a tile, beside the data, so that anybody can see what became of each tile and what it cost.

It is a GeoPackage that QGIS and geopandas open. Outlines are in EPSG:4326 because one run's tiles may belong to several
UTM zones; each tile's own CRS and bounds stand in columns.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
_OPTIONAL = ("price_pu", "samples", "estimate_low_pu", "estimate_pu", "estimate_high_pu")


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
        samples: of each pixel, as the delivered userdata.json tells; None while it is not known.
        price_pu: bill by the published rule from the samples, processing units; None while they are not known.
        estimate_low_pu: what the plan said that it would cost at least; None where nothing was to be bought.
        estimate_pu: what it said to be likely.
        estimate_high_pu: what it said that it would cost at most.
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
    samples: int | None = None
    estimate_low_pu: float | None = None
    estimate_pu: float | None = None
    estimate_high_pu: float | None = None


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
    listed = list(records)
    if not listed:
        raise ValueError("A ledger needs at least one tile; the list of records is empty.")
    write_outlines([(record.tile, _outcome(record)) for record in listed], path, optional=_OPTIONAL)


def write_outlines(rows: Sequence[tuple[Tile, Mapping[str, Any]]], path: Path, optional: Iterable[str] = ()) -> None:
    """Write a GeoPackage of tiles: outline, name, CRS, bounds and size, and columns of your own.

    A reader sees the old file or the whole new one, never a part.

    Args:
        rows: tiles, each with its own columns.
        path: file to write.
        optional: columns of numbers that may be None.
    """
    outlines = [lonlat_outline(tile) for tile, _ in rows]
    table = pd.DataFrame([_tile_columns(tile) | dict(columns) for tile, columns in rows])
    frame = gpd.GeoDataFrame(table.astype(dict.fromkeys(optional, "float64")), geometry=outlines, crs=4326)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        pyogrio.write_dataframe(frame, part, layer=LAYER, driver="GPKG")
        part.replace(path)


def read_ledger(path: Path) -> list[TileRecord]:
    """Read the records back, in the order in which they were written."""
    frame = pyogrio.read_dataframe(path, layer=LAYER, read_geometry=False)
    return [_record(row) for row in frame.to_dict("records")]


def _tile_columns(tile: Tile) -> dict[str, Any]:
    min_x, min_y, max_x, max_y = tile.bounds
    bounds = {"min_x": min_x, "min_y": min_y, "max_x": max_x, "max_y": max_y}
    return {"tile": tile.name, "epsg": tile.epsg} | bounds | {"width": tile.width, "height": tile.height}


def _outcome(record: TileRecord) -> dict[str, Any]:
    columns = {name: value for name, value in asdict(record).items() if name != "tile"}
    return columns | {"state": record.state.value}


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
        price_pu=_number(row, "price_pu"),
        fingerprint=row["fingerprint"] or "",
        samples=None if (samples := _number(row, "samples")) is None else int(samples),
        estimate_low_pu=_number(row, "estimate_low_pu"),
        estimate_pu=_number(row, "estimate_pu"),
        estimate_high_pu=_number(row, "estimate_high_pu"),
    )


def _number(row: dict[str, Any], column: str) -> float | None:
    """A number that may be missing, as may its column: earlier ledgers have fewer."""
    return None if pd.isna(value := row.get(column)) else float(value)
