"""What a run is going to do and what that may cost: as a value, as text, as table rows, as JSON and GeoPackage."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState, write_outlines
from tasks.pricing import NOTHING, Range, request_price, total
from tasks.report.markdown import bullets, escaped, joined, table


@dataclass(frozen=True, slots=True)
class TilePlan:
    """What is expected of one tile; figures are 0 where nothing has to be bought.

    Attributes:
        record: the tile, with what exists already as its state.
        scenes: of the Catalog that meet it; None where the Catalog was not asked or did not tell.
        samples: of each pixel that the script gets: they decide the price.
        price_pu: as part of the batch request, processing units.
        process_pu: by the Process API.
        delivered_bytes: of the files that Batch delivers.
        patch_bytes: of the EOPatch.
    """

    record: TileRecord
    scenes: int | None = None
    samples: Range = NOTHING
    price_pu: Range = NOTHING
    process_pu: Range = NOTHING
    delivered_bytes: int = 0
    patch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to do.

    Attributes:
        title: area and period.
        goal: the state in which a tile is complete: labelled, or converted where there is no reference.
        dates: of the output, in order; empty where an own script tells them.
        bands: input bands.
        tiles: all, those of the request's manifest once there is one.
        basis: what the number of samples rests on, a sentence; empty where nothing has to be bought.
        request: what is known of a batch request for this work, a sentence.
        paid_pu: what has been paid for it so far; None when it has been delivered, and costs nothing more.
        binding: whether the tiles are those that the service's analysis found.
    """

    title: str
    goal: TileState
    dates: Sequence[date]
    bands: Sequence[str]
    tiles: tuple[TilePlan, ...]
    basis: str = ""
    request: str = ""
    paid_pu: float | None = 0.0
    binding: bool = False

    @property
    def records(self) -> list[TileRecord]:
        """What exists already."""
        return [planned.record for planned in self.tiles]

    @property
    def missing(self) -> bool:
        """Whether a tile has to be delivered."""
        return is_missing(self.records)

    @property
    def price_pu(self) -> Range:
        """Price of the batch request, which cannot be bought in part; 0 when nothing is missing."""
        return request_price([planned.price_pu for planned in self.tiles]) if self.missing else NOTHING

    @property
    def left_pu(self) -> Range:
        """What of it has still to be paid."""
        if self.paid_pu is None:
            return NOTHING
        return Range(*(max(0.0, price - self.paid_pu) for price in self.price_pu))

    @property
    def process_pu(self) -> Range:
        """Price of the same work by the Process API."""
        return total([planned.process_pu for planned in self.tiles])

    @property
    def delivered_bytes(self) -> int:
        """What Batch will deliver."""
        return sum(planned.delivered_bytes for planned in self.tiles)

    @property
    def patch_bytes(self) -> int:
        """What the EOPatches will take, those that exist included."""
        return sum(planned.patch_bytes for planned in self.tiles)


def is_missing(records: Iterable[TileRecord]) -> bool:
    """Whether a tile has to be delivered."""
    return any(record.state is TileState.PENDING for record in records)


def action(record: TileRecord, goal: TileState) -> str:
    """What is to be done for a tile: redo, new, continue (a part exists) or skip."""
    if record.state == TileState.FAILED or (record.state == TileState.PENDING and record.attempts):
        return "redo"
    if record.state == TileState.PENDING:
        return "new"
    return "skip" if record.state in {goal, TileState.LABELLED, TileState.NO_DATA} else "continue"


_ACTIONS = ("redo", "new", "continue", "skip")


# ---- text ----


def plan_markdown(plan: Plan) -> str:
    """Describe a plan: what exists, tiles of each zone, dates, bands, price and sizes."""
    actions = Counter(action(record, plan.goal) for record in plan.records)
    zones: defaultdict[int, list[Tile]] = defaultdict(list)
    for record in plan.records:
        zones[record.tile.epsg].append(record.tile)
    return joined(
        f"# Plan: {escaped(plan.title)}",
        table(("To do", "Tiles"), [(name, f"{actions[name]:,}") for name in _ACTIONS if actions[name]]),
        table(("CRS", "Tiles", "Pixels"), [_zone_row(f"EPSG:{epsg}", zones[epsg]) for epsg in sorted(zones)]),
        _price_table(plan) if plan.missing else "",
        bullets(
            {
                "Tiles": f"{len(plan.tiles):,}",
                "Output dates": _dates_text(plan.dates),
                "Input bands": f"{len(plan.bands)} ({', '.join(plan.bands)})",
            }
            | _price_bullets(plan)
        ),
    )


def _price_table(plan: Plan) -> str:
    """Both ways to buy, side by side."""
    ways = {
        "Batch Processing API": plan.price_pu,
        "Process API, the same tiles": plan.process_pu,
        "Still to be paid": plan.left_pu,
    }
    if plan.left_pu == plan.price_pu:
        del ways["Still to be paid"]
    header = ("Price, binding" if plan.binding else "Price, provisional", "Low", "Likely", "High")
    return table(header, [(way, *(f"{figure:,.2f} PU" for figure in price)) for way, price in ways.items()])


def _price_bullets(plan: Plan) -> dict[str, str]:
    if not plan.missing:
        return {"Price": "nothing to buy, all EOPatches exist"}
    return {
        "Samples": _samples_text(plan.tiles),
        "Price rests on": escaped(plan.basis),
        "At the service": escaped(plan.request),
        "To expect": f"{_size(plan.delivered_bytes)} delivered, {_size(plan.patch_bytes)} of EOPatches, as images of "
        "the land compress usually",
    }


def _samples_text(tiles: Sequence[TilePlan]) -> str:
    """How many samples a tile gets, at the extremes, and of how many scenes."""
    likely = [planned.samples.likely for planned in tiles]
    scenes = [planned.scenes for planned in tiles if planned.scenes is not None]
    empty = sum(planned.samples.high == 0 for planned in tiles)
    text = f"{_between(min(likely), max(likely))} a tile"
    text += f", of {_between(min(scenes), max(scenes))} scenes" if scenes else ""
    return text + (f"; without any, and so without data: {empty:,}" if empty else "")


def _zone_row(crs: str, tiles: Sequence[Tile]) -> tuple[str, str, str]:
    return crs, f"{len(tiles):,}", f"{sum(tile.width * tile.height for tile in tiles):,}"


def _dates_text(dates: Sequence[date]) -> str:
    if not dates:
        return "as the evalscript tells them"
    steps = {later - earlier for earlier, later in pairwise(dates)}
    every = f", every {_days(steps.pop())}" if len(steps) == 1 else ""
    return f"{len(dates):,}, from {dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}{every}"


def _days(step: timedelta) -> str:
    return "day" if step.days == 1 else f"{step.days} days"


def _between(low: float, high: float) -> str:
    return f"{low:,.10g}" if low == high else f"{low:,.4g} to {high:,.4g}"


def _size(size: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size / 1e3:,.0f} kB"


# ---- tables and files ----


def plan_rows(plan: Plan) -> list[dict[str, str]]:
    """Rows of the plan's table, the dearest first, then by name; every row has the same keys."""
    ordered = sorted(plan.tiles, key=lambda planned: (-planned.price_pu.high, planned.record.tile.name))
    return [_text_row(planned) for planned in ordered]


def _text_row(planned: TilePlan) -> dict[str, str]:
    tile, record = planned.record.tile, planned.record
    bought = planned.price_pu.high > 0
    return {
        "tile": tile.name,
        "state": record.state.value,
        "CRS": f"EPSG:{tile.epsg}",
        "pixels": f"{tile.width:,} x {tile.height:,}",
        "acquisitions": "" if planned.scenes is None else f"{planned.scenes:,}",
        "samples": _between(planned.samples.low, planned.samples.high),
        "price low": f"{planned.price_pu.low:,.2f} PU" if bought else "0 PU",
        "price likely": f"{planned.price_pu.likely:,.2f} PU" if bought else "0 PU",
        "price high": f"{planned.price_pu.high:,.2f} PU" if bought else "0 PU",
        "by Process API": f"{planned.process_pu.likely:,.2f} PU" if bought else "0 PU",
    }


def plan_json(plan: Plan) -> str:
    """Give a plan as JSON: totals, and an object for each tile; prices in processing units."""
    whole = {
        "title": plan.title,
        "binding": plan.binding,
        "goal": plan.goal.value,
        "dates": [day.isoformat() for day in plan.dates],
        "bands": list(plan.bands),
        "basis": plan.basis,
        "request": plan.request,
        "price_pu": asdict(plan.price_pu),
        "left_pu": asdict(plan.left_pu),
        "process_pu": asdict(plan.process_pu),
        "delivered_bytes": plan.delivered_bytes,
        "patch_bytes": plan.patch_bytes,
        "tiles": [_json_tile(planned) for planned in plan.tiles],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _json_tile(planned: TilePlan) -> dict[str, Any]:
    tile = planned.record.tile
    figures = {
        "scenes": planned.scenes,
        "samples": asdict(planned.samples),
        "price_pu": asdict(planned.price_pu),
        "process_pu": asdict(planned.process_pu),
        "delivered_bytes": planned.delivered_bytes,
        "patch_bytes": planned.patch_bytes,
    }
    place = {"name": tile.name, "epsg": tile.epsg, "bounds": tile.bounds, "width": tile.width, "height": tile.height}
    return place | {"state": planned.record.state.value} | figures


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a GeoPackage that QGIS and geopandas open: outlines with samples and prices."""
    write_outlines([(planned.record.tile, _columns(planned)) for planned in plan.tiles], path, optional=("scenes",))


def _columns(planned: TilePlan) -> dict[str, Any]:
    ranges = {"samples": planned.samples, "price_pu": planned.price_pu, "process_pu": planned.process_pu}
    figures = {f"{name}_{case}": value for name, one in ranges.items() for case, value in asdict(one).items()}
    sizes = {"delivered_bytes": planned.delivered_bytes, "patch_bytes": planned.patch_bytes}
    return {"state": planned.record.state.value, "scenes": planned.scenes} | figures | sizes
