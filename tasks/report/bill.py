"""Estimate against bill: what the plan said of each tile, and what its samples made of it."""

import math
from collections.abc import Sequence

from tasks.ledger import TileRecord, TileState
from tasks.pricing import MIN_REQUEST_PU
from tasks.report.markdown import joined, table

MAX_BILLS = 50
"""Tiles in the table; the ledger has them all."""
SAME_PU = 0.01
"""Difference in processing units that counts as none."""


def bill_markdown(records: Sequence[TileRecord], cost_pu: float | None) -> str:
    """Compare estimate and bill, of each tile and in total; empty where neither is known.

    Args:
        records: all tiles.
        cost_pu: what the service says that the request costs; None when the run needed none.
    """
    known = [record for record in records if record.price_pu is not None or record.estimate_pu is not None]
    if not known:
        return ""
    shown = sorted(known, key=lambda record: (-_difference(record), record.tile.name))[:MAX_BILLS]
    rest = f"The {len(shown):,} of {len(known):,} tiles that differ most; the ledger has them all."
    return joined(
        "## Estimate and bill, processing units (PU)",
        table(("Tile", "Samples", "Low", "Likely", "High", "Bill"), [*map(_row, shown), _total_row(known)]),
        rest if len(shown) < len(known) else "",
        explanation(records, cost_pu),
    ).strip()


def explanation(records: Sequence[TileRecord], cost_pu: float | None) -> str:
    """Say how the sum of the tiles' bills and the request's price go together."""
    bills = [record.price_pu for record in records if record.price_pu is not None]
    billed = math.fsum(bills)
    text = f"The tiles' bills, by the published rule from the samples that were processed, make {billed:,.2f} PU"
    if cost_pu is None:
        return f"{text}; no request was needed now."
    text += f"; the service says {cost_pu:,.2f} PU for the request"
    if abs(billed - cost_pu) <= SAME_PU:
        return f"{text}."
    return f"{text}: {_why(records, billed, cost_pu)}."


def _why(records: Sequence[TileRecord], billed: float, cost_pu: float) -> str:
    """What explains a difference."""
    unknown = sum(record.price_pu is None for record in records)
    if abs(cost_pu - MIN_REQUEST_PU) <= SAME_PU and billed < cost_pu:
        return f"{MIN_REQUEST_PU:g} PU are the least that a request costs"
    if unknown:
        return f"bills are not known where a script tells no acquisitions, or files cannot be read ({unknown:,} tiles)"
    if any(record.state is TileState.FAILED for record in records) and cost_pu < billed:
        return "tiles that the service could not process are free"
    return "it counts otherwise than by the published rule, or had other tiles"


def _difference(record: TileRecord) -> float:
    if record.price_pu is None or record.estimate_pu is None:
        return 0.0
    return abs(record.price_pu - record.estimate_pu)


def _row(record: TileRecord) -> tuple[str, ...]:
    samples = "" if record.samples is None else f"{record.samples:,}"
    figures = (record.estimate_low_pu, record.estimate_pu, record.estimate_high_pu, record.price_pu)
    return record.tile.name, samples, *map(_pu, figures)


def _total_row(records: Sequence[TileRecord]) -> tuple[str, ...]:
    columns = zip(
        *[(one.estimate_low_pu, one.estimate_pu, one.estimate_high_pu, one.price_pu) for one in records], strict=True
    )
    sums = [math.fsum(figure or 0.0 for figure in column) for column in columns]
    return f"{len(records):,} tiles", "", *map(_pu, sums)


def _pu(figure: float | None) -> str:
    return "" if figure is None else f"{figure:,.2f}"
