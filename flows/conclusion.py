"""The end of a run: ledger, status map, quick-looks and summary, beside the data and in Prefect."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect import task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.events import emit
from flows.follow import Pipeline
from flows.history import with_history
from flows.labels import label_report
from flows.order import Order
from flows.planning import with_estimates
from flows.progress import tell
from tasks.batch import settled_job
from tasks.classes import LAND_COVER_CLASSES
from tasks.errors import TooFewTiles
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState, write_ledger
from tasks.report import (
    Board,
    Plan,
    SummaryReport,
    quicklook_of,
    status_map,
    summary_markdown,
)
from tasks.service import Job, connect
from tasks.storage import Storage, open_filesystem, read_file, write_file

REPORT = "Report"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did, and where everything is.

    Attributes:
        message: the outcome in a sentence.
        folder: the folder of results, local or S3.
        records: one a tile.
        job: the batch request that delivered; None when everything existed.
        bought: whether this run started the request: that is what costs.
        converted: tiles that this run converted.
        labelled: tiles that this run labelled.
        places: what is where, by name for people.
    """

    message: str
    folder: str
    records: Sequence[TileRecord]
    job: Job | None
    bought: bool
    converted: int
    labelled: int
    places: dict[str, str] = field(default_factory=dict)


@task(task_run_name="picture-{tile.name}", cache_policy=NO_CACHE)
def draw_quicklook(order: Order, tile: Tile, target: str) -> None:
    """Draw the quick-look of a tile's EOPatch, a PNG, to ``target``."""
    storage = order.parameters.storage
    files, folder = open_filesystem(order.patch_url(tile), storage)
    reference, bands = order.parameters.reference, _features(order).get("BANDS", ())
    classes = (None if reference is None else reference.classes) or LAND_COVER_CLASSES
    write_file(target, quicklook_of(files, folder, tile.name, bands, classes), storage)


def draw_quicklooks(order: Order, pipeline: Pipeline) -> dict[str, str]:
    """Draw the first tiles that have an EOPatch; where all pictures are, by tile, those of earlier runs included.

    A picture that cannot be drawn is told of, and costs only itself.
    """
    if order.reference is None and not {"BANDS", "NDVI"} & set(_features(order)):
        return {}
    wanted = pipeline.in_state(TileState.CONVERTED, TileState.LABELLED)[: order.parameters.run.quicklooks]
    targets = {tile.name: f"{order.folder}/report/quicklooks/{tile.name}.png" for tile in wanted}
    missing = [tile for tile in wanted if tile.name in pipeline.touched or not _exists(order, targets[tile.name])]
    drawn = draw_quicklook.map(unmapped(order), missing, [targets[tile.name] for tile in missing])
    for number, (tile, future) in enumerate(zip(missing, drawn, strict=True), start=1):
        failure = future.result(raise_on_failure=False)
        if failure is not None:
            del targets[tile.name]
        tell(REPORT, number, len(missing), f"no picture of {tile.name}: {failure}" if failure is not None else "")
    return targets


@task(task_run_name="conclude {order.title}", cache_policy=NO_CACHE)
def conclude(
    order: Order,
    pipeline: Pipeline,
    plan: Plan,
    job: Job | None,
    pictures: Mapping[str, str],
    board: Board,
    *,
    bought: bool,
    seconds: float,
) -> Summary:
    """Write ledger, status map and summary beside the data, and publish them as artifacts."""
    storage, title = order.parameters.storage, order.title
    records = with_history(order, with_estimates(pipeline.records.values(), plan), pipeline.touched)
    job = None if job is None else settled_job(connect(order.parameters.service), job)
    message = _message(
        records, job, pipeline.repairs, bought=bought, converted=pipeline.converted, labelled=pipeline.labelled
    )
    places = {
        "EOPatches": f"{order.folder}/eopatches",
        "Tile status map": f"{order.folder}/report/tiles.png",
        "Ledger": f"{order.folder}/ledger.gpkg",
        "Summary": f"{order.folder}/report/summary.md",
    } | ({"Quick-look": next(iter(pictures.values()))} if pictures else {})
    picture = status_map(records, order.area, title)
    labels = label_report(order, pipeline)
    report = SummaryReport(
        title=title,
        records=records,
        goal=plan.goal,
        message=message,
        seconds=seconds,
        places=places,
        cost_pu=None if job is None else sum(one.cost_pu for one in (job, *pipeline.repairs)),
        endpoint_url=storage.endpoint_url or "",
        labels=labels,
    )
    write_file(places["Tile status map"], picture, storage)
    beside = {name: f"quicklooks/{name}.png" for name in pictures}
    write_file(places["Summary"], summary_markdown(report, beside).encode(), storage)
    _write_ledger(places["Ledger"], records, storage)
    board.tiles(title, records, picture)
    if labels is not None:
        places["Label quality"] = labels.file
        board.labels(title, labels.tiles)
    tell("Results", note=f"{order.folder}, with eopatches, ledger.gpkg and report/summary.md")
    board.summary(report, {name: read_file(url, storage) for name, url in pictures.items()})
    return Summary(
        message=message,
        folder=order.folder,
        records=records,
        job=job,
        bought=bought,
        converted=pipeline.converted,
        labelled=pipeline.labelled,
        places=places,
    )


def final_state(order: Order, summary: Summary) -> State[Summary]:
    """Decide how the run ends: Completed with the summary, or Failed when fewer tiles succeeded than was asked for."""
    succeeded = sum(_succeeded(record, order) for record in summary.records)
    if succeeded >= order.parameters.limits.min_success * len(summary.records):
        emit(
            order,
            "done",
            message=summary.message,
            tiles=len(summary.records),
            ready=sum(record.state in {TileState.CONVERTED, TileState.LABELLED} for record in summary.records),
            request=summary.job.id if summary.job else None,
            cost_pu=summary.job.cost_pu if summary.job else None,
        )
        return Completed(message=summary.message, data=summary)
    text = f"{summary.message} limits.min_success asks for {order.parameters.limits.min_success:.0%} of the tiles."
    text += f" The reasons stand in {summary.places['Summary']}; run again to try what is missing."
    return Failed(message=text, data=TooFewTiles(text))


def _succeeded(record: TileRecord, order: Order) -> bool:
    return record.state in {order.goal, TileState.LABELLED, TileState.NO_DATA}


def _message(
    records: Sequence[TileRecord],
    job: Job | None,
    repairs: Sequence[Job],
    *,
    bought: bool,
    converted: int,
    labelled: int,
) -> str:
    counts = Counter(record.state for record in records)
    failed = f", {counts[TileState.FAILED]} failed" if counts[TileState.FAILED] else ""
    empty = f", {counts[TileState.NO_DATA]} without data" if counts[TileState.NO_DATA] else ""
    ready = counts[TileState.LABELLED] + counts[TileState.CONVERTED]
    if job is None:
        paid = "Nothing was bought"
    else:
        paid = f"Request {job.id} {'was bought' if bought else 'had been started already, nothing was bought'}"
        paid += f" ({job.cost_pu:,.1f} PU)"
    paid += "".join(f", repaired by request {one.id} ({one.cost_pu:,.1f} PU)" for one in repairs)
    done = f"{converted} converted, {labelled} labelled"
    return f"{ready} of {len(records)} EOPatches are ready{empty}{failed}. {paid}; {done}."


def _features(order: Order) -> dict[str, tuple[str, ...]]:
    """Outputs of each DATA feature, by its name; none where they are not its bands."""
    rules = [rule for rule in order.mapping.features if rule.feature_type == "data"]
    return {rule.name: rule.outputs if rule.bands_per_date == 1 else () for rule in rules}


def _exists(order: Order, url: str) -> bool:
    files, path = open_filesystem(url, order.parameters.storage)
    return bool(files.exists(path))


def _write_ledger(url: str, records: Sequence[TileRecord], storage: Storage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "ledger.gpkg"
        write_ledger(records, local)
        write_file(url, local.read_bytes(), storage)
