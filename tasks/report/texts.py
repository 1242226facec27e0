"""Markdown and table rows about a run: what is planned, where each tile stands, how it ended."""

import base64
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from tasks.ledger import TileRecord, TileState
from tasks.report.pictures import STATE_STYLES

MAX_ROWS = 500
"""Tiles in a table; the ledger has them all."""
_NAMED = 5  # tiles named with a reason
_REASON_LETTERS = 300
_NUMBERS = frozenset({"Tiles", "Pixels"})  # headers of columns

_ATTENTION = {state: place for place, state in enumerate(STATE_STYLES)}  # failures first


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a run is going to do.

    Attributes:
        title: area and period.
        records: all tiles, with what exists already as their state.
        goal: the state in which a tile is complete: labelled, or converted where there is no reference.
        dates: dates of the output, in order.
        bands: input bands.
        price_pu: provisional price of what is still to be made, in processing units: low, likely, high.
    """

    title: str
    records: Sequence[TileRecord]
    goal: TileState
    dates: Sequence[date]
    bands: Sequence[str]
    price_pu: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class SummaryReport:
    """How a run ended.

    Attributes:
        title: area and period.
        records: all tiles.
        goal: the state in which a tile is complete: labelled, or converted where there is no reference.
        message: what the run did, in a sentence.
        seconds: duration of the run.
        places: what can be found where, such as ``{"EOPatches": "s3://…"}``.
    """

    title: str
    records: Sequence[TileRecord]
    goal: TileState
    message: str
    seconds: float
    places: Mapping[str, str]


def artifact_key(area_slug: str, what: str) -> str:
    """Key of an artifact: lower-case letters, digits and dashes, as Prefect asks; the same for each run on an area.

    Raises:
        ValueError: nothing of the slug or the subject is left.
    """
    parts = [_plain_words(area_slug), _plain_words(what)]
    if not all(parts):
        raise ValueError(f"An artifact key needs letters or digits; it was asked for '{area_slug}' and '{what}'.")
    return "-".join(parts)


def plan_markdown(plan: PlanReport) -> str:
    """Describe a plan: what exists, tiles of each zone, dates, bands and price."""
    actions = Counter(_action(record, plan.goal) for record in plan.records)
    zones: defaultdict[int, list[TileRecord]] = defaultdict(list)
    for record in plan.records:
        zones[record.tile.epsg].append(record)
    return _joined(
        f"# Plan: {_escaped(plan.title)}",
        _table(("To do", "Tiles"), [(action, f"{actions[action]:,}") for action in _ACTIONS if actions[action]]),
        _table(("CRS", "Tiles", "Pixels"), [_zone_row(f"EPSG:{epsg}", zones[epsg]) for epsg in sorted(zones)]),
        _bullets(
            {
                "Tiles": f"{len(plan.records):,}",
                "Output dates": _dates_text(plan.dates),
                "Input bands": f"{len(plan.bands)} ({', '.join(plan.bands)})",
                "Price, provisional": _plan_price_text(plan.price_pu),
            }
        ),
    )


def tile_rows(records: Iterable[TileRecord]) -> list[dict[str, str]]:
    """Rows of the tile table, failures first, then by name; every row has the same keys."""
    ordered = sorted(records, key=lambda record: (_ATTENTION[record.state], record.tile.name))
    return [_tile_row(record) for record in ordered]


def tiles_markdown(title: str, records: Sequence[TileRecord], picture: bytes) -> str:
    """Show the status map, a PNG, with the counts of the states."""
    encoded = base64.b64encode(picture).decode("ascii")
    return _joined(
        f"# Tiles: {_escaped(title)}",
        _states_text(records),
        f"![Status of {len(records):,} tiles](data:image/png;base64,{encoded})",
    )


def summary_markdown(summary: SummaryReport) -> str:
    """Summarise a run: how many tiles are complete, why others are not, where everything is, what it cost."""
    records = summary.records
    complete = sum(_action(record, summary.goal) == "skip" for record in records)
    share = complete / len(records) if records else 0.0
    return _joined(
        f"# Summary: {_escaped(summary.title)}",
        f"**{complete:,} of {len(records):,} tiles are complete ({share:.0%})** after {_duration(summary.seconds)}. "
        f"{_escaped(summary.message)}",
        _table(("State", "Tiles"), [(state.value, f"{count:,}") for state, count in _counts(records).items()]),
        _reasons_text(records),
        _bullets(
            {name: f"`{place}`" for name, place in summary.places.items()}
            | {"Read": _megabytes(sum(record.bytes_read for record in records))}
            | {"Written": _megabytes(sum(record.bytes_written for record in records))}
            | _price_bullet(records)
        ),
    )


# ---- parts ----

_ACTIONS = ("redo", "new", "continue", "skip")


def _action(record: TileRecord, goal: TileState) -> str:
    """What is to be done for a tile: redo, new, continue (a part exists) or skip."""
    if record.state == TileState.FAILED or (record.state == TileState.PENDING and record.attempts):
        return "redo"
    if record.state == TileState.PENDING:
        return "new"
    return "skip" if record.state in {goal, TileState.LABELLED, TileState.NO_DATA} else "continue"


def _tile_row(record: TileRecord) -> dict[str, str]:
    tile = record.tile
    return {
        "tile": tile.name,
        "state": record.state.value,
        "reason": _shortened(record.reason),
        "CRS": f"EPSG:{tile.epsg}",
        "pixels": f"{tile.width:,} x {tile.height:,}",
        "attempts": f"{record.attempts:,}",
        "read": _megabytes(record.bytes_read),
        "written": _megabytes(record.bytes_written),
        "time": f"{record.seconds:,.1f} s",
        "price": "" if record.price_pu is None else f"{record.price_pu:,.2f} PU",
    }


def _zone_row(crs: str, records: Sequence[TileRecord]) -> tuple[str, str, str]:
    pixels = sum(record.tile.width * record.tile.height for record in records)
    return crs, f"{len(records):,}", f"{pixels:,}"


def _counts(records: Iterable[TileRecord]) -> dict[TileState, int]:
    """Number of tiles of each state that occurs, in the order of attention."""
    counts = Counter(record.state for record in records)
    return {state: counts[state] for state in _ATTENTION if counts[state]}


def _states_text(records: Sequence[TileRecord]) -> str:
    return " · ".join(f"{state.value}: **{count:,}**" for state, count in _counts(records).items())


def _reasons_text(records: Iterable[TileRecord]) -> str:
    """Reasons, the most frequent first, with the first tiles that have them; empty without any."""
    tiles: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.reason:
            tiles[_shortened(record.reason.replace(record.tile.name, "…"))].append(record.tile.name)
    if not tiles:
        return ""
    groups = sorted(tiles.items(), key=lambda group: (-len(group[1]), group[0]))
    return _table(("Reason", "Tiles", "Which"), [(why, f"{len(names):,}", _some(names)) for why, names in groups])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more


def _dates_text(dates: Sequence[date]) -> str:
    if not dates:
        return "none"
    steps = {later - earlier for earlier, later in pairwise(dates)}
    every = f", every {_days(steps.pop())}" if len(steps) == 1 else ""
    return f"{len(dates):,}, from {dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}{every}"


def _days(step: timedelta) -> str:
    return "day" if step.days == 1 else f"{step.days} days"


def _price_bullet(records: Iterable[TileRecord]) -> dict[str, str]:
    """Price of the tiles whose price is known; nothing where none is."""
    prices = [record.price_pu for record in records if record.price_pu is not None]
    return {"Price": f"{sum(prices):,.2f} PU for {len(prices):,} tiles"} if prices else {}


def _plan_price_text(price_pu: tuple[float, float, float]) -> str:
    low, likely, high = price_pu
    if not high:
        return "nothing to buy, all EOPatches exist"
    return f"about {likely:,.0f} PU ({low:,.0f} to {high:,.0f} PU); the number of acquisitions decides"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# ---- markdown ----


def _joined(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table; columns of numbers are right-aligned."""
    rule = ["---:" if name in _NUMBERS else "---" for name in header]
    lines = [header, rule, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(items: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {text}" for name, text in items.items())


def _escaped(text: str) -> str:
    """Text that can neither end a table cell nor be read as HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _REASON_LETTERS else flat[: _REASON_LETTERS - 1] + "…"


def _plain_words(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
