"""The plan: tiles, acquisitions, price and bytes to expect, and what exists already; nothing is created or bought.

It is provisional while it rests on our own reading of the tiling rule, and binding on the tiles of a request's
manifest.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.events import emit
from flows.order import Order
from flows.progress import tell
from tasks.acquisitions import Acquisitions, find_acquisitions, samples_of, search_area
from tasks.batch import best_job, jobs_of
from tasks.conversion import FeatureMapping
from tasks.errors import EopatchFlowError, InvalidInput
from tasks.evalscript import Output
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.pricing import (
    ARRIVAL_DAYS,
    MIN_REQUEST_PU,
    Range,
    counted_samples,
    late_samples,
    process_price,
    tile_price,
    usual_samples,
)
from tasks.report import Plan, TilePlan, is_missing, plan_json, publish_plan, write_plan
from tasks.service import Job, connect, connect_catalog, patiently
from tasks.storage import write_file

PATIENCE_SECONDS = 60.0
"""How long the Catalog is asked for before the usual numbers of acquisitions have to do."""
COMPRESSED_SHARE = 0.5
"""Size of images as they are stored, of the size of their numbers: 0.48 for the real scenes of the tests, both for the
delivered files and for the EOPatch."""
OVERVIEW_SHARE, OVERVIEW_PIXELS = 1 / 3, 512
"""What overviews add to a COG with an edge of more pixels (GDAL's COG driver: down to 512)."""
NOT_STARTED = {"CREATED", "ANALYSING", "ANALYSIS_DONE"}


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a script is expected to get.

    Attributes:
        samples: of each tile's pixels.
        scenes: of the Catalog that meet each tile; None where it did not tell.
        basis: what the figures rest on, a sentence.
    """

    samples: Sequence[Range]
    scenes: Sequence[int | None]
    basis: str


def make_plan(order: Order, records: Sequence[TileRecord], patience_seconds: float = 0.0) -> Plan:
    """Plan an order; the Catalog and the service are asked only when a tile is missing.

    Args:
        order: what was asked for.
        records: what exists already, one a planned tile.
        patience_seconds: how long to go on asking when there is no answer.
    """
    plan = Plan(
        title=order.title,
        goal=order.goal,
        dates=[moment.date() for moment in order.dates or ()],
        bands=order.script.input_bands,
        tiles=tuple(TilePlan(record, patch_bytes=_patch_bytes(order, record.tile)) for record in records),
        request="Nothing is missing: a run would buy nothing.",
    )
    if not is_missing(records):
        return plan
    request, paid_pu = _request(order, patience_seconds)
    return replace(_expected(order, plan, records, patience_seconds), request=request, paid_pu=paid_pu)


def binding_plan(order: Order, plan: Plan, tiles: Iterable[Tile]) -> Plan:
    """Plan anew for the tiles that the service's analysis found, with their sizes as the manifest says."""
    known = {record.tile.name: record for record in plan.records}
    records = [replace(known.get(tile.name, TileRecord(tile, TileState.PENDING)), tile=tile) for tile in tiles]
    return replace(_expected(order, plan, records, _patience(order)), binding=True)


def check_scenes(plan: Plan) -> None:
    """Check that there is something to buy, where the Catalog tells: a request without any scene has its price, too.

    Raises:
        InvalidInput: no tile that is missing has a scene, and no request for it has been paid.
    """
    missing = [planned for planned in plan.tiles if planned.record.state is TileState.PENDING]
    nothing = all(planned.scenes is not None and planned.samples.high == 0 for planned in missing)
    if missing and nothing and plan.paid_pu == 0:
        raise InvalidInput(
            f"The Catalog has no acquisition for any of the {len(missing):,} tiles of {plan.title}: a request would "
            f"cost {MIN_REQUEST_PU:g} PU and deliver nothing. Check the area (longitude comes first), the period, and "
            "imagery.max_cloud_coverage."
        )


def with_estimates(records: Iterable[TileRecord], plan: Plan) -> list[TileRecord]:
    """Put the plan's prices into records, where the plan has any."""
    if not plan.missing:
        return list(records)
    prices = {planned.record.tile.name: planned.price_pu for planned in plan.tiles}
    return [_with_estimate(record, prices.get(record.tile.name)) for record in records]


def announce(order: Order, plan: Plan) -> None:
    """Publish the plan as artifacts, write it beside the data, and tell it to whoever watches."""
    publish_plan(order.parameters.area.name, plan)
    report, storage = f"{order.folder}/report", order.parameters.storage
    write_file(f"{report}/plan.json", plan_json(plan).encode(), storage)
    with tempfile.TemporaryDirectory(prefix="eopatch-flow-") as local:
        write_plan(plan, Path(local) / "plan.gpkg")
        write_file(f"{report}/plan.gpkg", (Path(local) / "plan.gpkg").read_bytes(), storage)
    tell("Plan", len(plan.tiles), len(plan.tiles), _note(plan))
    low, likely, high = plan.price_pu
    kind = "binding" if plan.binding else "provisional"
    emit(order, "plan.ready", tiles=len(plan.tiles), low_pu=low, likely_pu=likely, high_pu=high, price=kind)


def _note(plan: Plan) -> str:
    new = sum(record.state is TileState.PENDING for record in plan.records)
    dates = f"{len(plan.dates)} dates, " if plan.dates else ""
    kind = "binding" if plan.binding else "provisional"
    left = plan.left_pu
    if not left.high:
        return f"{dates}{new} new, nothing to buy"
    price = f"{left.high:,.0f} PU" if left.certain else f"{left.low:,.0f} to {left.high:,.0f} PU"
    return f"{dates}{new} new, {price} ({kind})"


def _with_estimate(record: TileRecord, price: Range | None) -> TileRecord:
    if price is None:
        return record
    return replace(record, estimate_low_pu=price.low, estimate_pu=price.likely, estimate_high_pu=price.high)


def _expected(order: Order, plan: Plan, records: Sequence[TileRecord], patience_seconds: float) -> Plan:
    """Fill a plan in with what the tiles will cost and weigh."""
    expectation = _expectation(order, [record.tile for record in records], patience_seconds)
    rows = zip(records, expectation.scenes, expectation.samples, strict=True)
    tiles = tuple(_tile_plan(order, record, scenes, samples) for record, scenes, samples in rows)
    return replace(plan, tiles=tiles, basis=expectation.basis)


def _tile_plan(order: Order, record: TileRecord, scenes: int | None, samples: Range) -> TilePlan:
    tile, empty = record.tile, samples.high == 0
    kept = order.parameters.patches.keep_empty or not empty
    return TilePlan(
        record=record,
        scenes=scenes,
        samples=samples,
        price_pu=tile_price(tile, samples, order.script),
        process_pu=process_price(tile, samples, order.script),
        delivered_bytes=0 if empty else delivered_bytes(tile, order.script.outputs),
        patch_bytes=_patch_bytes(order, tile) if kept else 0,
    )


# ---- samples ----


def _expectation(order: Order, tiles: Sequence[Tile], patience_seconds: float) -> Expectation:
    """Count what the Catalog has; where it cannot be asked, take the usual numbers, and say so."""
    try:
        found = _acquisitions(order, tiles, patience_seconds)
    except EopatchFlowError as error:
        usual = usual_samples(order.period.length_days, order.script)
        why = f"the usual times between acquisitions, because the Catalog did not tell: {error}"
        return Expectation([usual] * len(tiles), [None] * len(tiles), why)
    return counted(order, tiles, found, datetime.now(UTC).date())


def counted(order: Order, tiles: Sequence[Tile], found: Acquisitions, today: date) -> Expectation:
    """Expect what the Catalog has, and what may still arrive for the last days of a period that reaches the present."""
    script, period = order.script, order.period
    counts = samples_of(tiles, found, script.mosaicking)
    late_days = min(max(0, (period.end - (today - timedelta(days=ARRIVAL_DAYS))).days), period.length_days)
    late = late_samples(counts, script.mosaicking, period.length_days, late_days)
    return Expectation(
        samples=counted_samples(counts, script, late=late),
        scenes=np.asarray(samples_of(tiles, found, "TILE")).tolist(),
        basis=_basis(len(found), late_days, drops_scenes=script.drops_scenes),
    )


def _basis(scenes: int, late_days: int, *, drops_scenes: bool) -> str:
    text = f"{scenes:,} scenes of the Catalog, counted where their footprints meet a tile"
    if drops_scenes:
        text += "; what the script's preProcessScenes leaves out costs nothing, which is not known before"
    if late_days:
        text += f"; scenes of the last {late_days} days may still arrive"
    return text


def _acquisitions(order: Order, tiles: Sequence[Tile], patience_seconds: float) -> Acquisitions:
    imagery, period = order.parameters.imagery, order.period
    return find_acquisitions(
        connect_catalog(order.parameters.service),
        imagery.collection,
        (period.start, period.end),
        search_area(tiles),
        max_cloud_coverage=imagery.max_cloud_coverage,
        patience_seconds=patience_seconds,
    )


def _patience(order: Order) -> float:
    return min(PATIENCE_SECONDS, order.parameters.run.patience_minutes * 60)


# ---- bytes ----


def delivered_bytes(tile: Tile, outputs: Iterable[Output]) -> int:
    """Size to expect of a tile's GeoTIFFs."""
    overviews = OVERVIEW_SHARE if max(tile.width, tile.height) > OVERVIEW_PIXELS else 0.0
    a_pixel = sum(bands * _item_bytes(sample_type.lower()) for _, bands, sample_type in outputs)
    return round(tile.width * tile.height * a_pixel * (1 + overviews) * COMPRESSED_SHARE)


def patch_bytes(tile: Tile, outputs: Iterable[Output], mapping: FeatureMapping) -> int:
    """Size to expect of a tile's EOPatch without its reference; its masks take next to nothing."""
    bands = {output: count for output, count, _ in outputs}
    a_pixel = sum(
        sum(bands[output] for output in rule.outputs) * _item_bytes(rule.dtype)
        for rule in mapping.features
        if "mask" not in rule.feature_type
    )
    return round(tile.width * tile.height * a_pixel * COMPRESSED_SHARE)


def _patch_bytes(order: Order, tile: Tile) -> int:
    return patch_bytes(tile, order.script.outputs, order.mapping)


def _item_bytes(kind: str) -> int:
    return 1 if kind == "auto" else np.dtype(kind).itemsize  # AUTO is delivered as UINT8


# ---- the request ----


def _request(order: Order, patience_seconds: float) -> tuple[str, float | None]:
    """What is known of a request for this work, and what has been paid for it; see :attr:`Plan.paid_pu`."""
    service, storage = order.parameters.service, order.parameters.storage
    try:
        client = connect(service)
        jobs = patiently(lambda: jobs_of(client, order.work), patience_seconds)
        job = best_job(jobs, order.work, storage)
    except EopatchFlowError as error:
        return f"Whether a request for this exists is not known: {error}", 0.0
    if job is None:
        return _without_request(jobs, service.base_url), 0.0
    return request_text(job), None if job.status == "DONE" else job.cost_pu


def request_text(job: Job) -> str:
    """Say what a run would do with a request that exists."""
    if job.status in NOT_STARTED:
        return f"Request {job.id} for this exists ({job.status}) and is not paid: a run would start it."
    if job.status == "DONE":
        return f"Already bought: request {job.id} (DONE, {job.cost_pu:,.1f} PU): a run would not buy it again."
    if job.status == "STOPPED":
        return f"Request {job.id} was stopped after {job.cost_pu:,.1f} PU: a run would start it again and pay the rest."
    return f"Request {job.id} is being processed ({job.cost_pu:,.1f} PU so far): a run would follow it."


def _without_request(jobs: Iterable[Job], base_url: str) -> str:
    """Say that a run would buy, and what was bought before."""
    paid = next((job for job in jobs if job.status in {"DONE", "FAILED"} and job.cost_pu), None)
    if paid is None:
        return f"No request for this exists at {base_url}: a run would create one."
    if paid.status == "FAILED":
        return (
            f"Request {paid.id} for this failed after {paid.cost_pu:,.1f} PU: a run would buy it again only with "
            "limits.buy_again."
        )
    return (
        f"Request {paid.id} did this for {paid.cost_pu:,.1f} PU, but what it delivered is gone: a run would buy it "
        "again, in full."
    )


# ---- Prefect ----


@task(task_run_name="plan {order.title}", cache_policy=NO_CACHE)
def plan_order(order: Order, records: Sequence[TileRecord]) -> Plan:
    """See :func:`make_plan`; the plan is published, and written beside the data."""
    plan = make_plan(order, records, _patience(order))
    announce(order, plan)
    return plan
