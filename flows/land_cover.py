"""The flow ``land_cover``: from an area to EOPatches with land-cover labels."""

import time
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.approval import agree
from flows.conclusion import Summary, conclude, draw_quicklooks, final_state
from flows.follow import Pipeline, follow
from flows.order import deliver_tiles_file, prepared_reference, survey_destination, validate
from flows.ownership import owned, stop_what_was_left
from flows.parameters import MAX_THREADS, SAMPLE_AREA, SAMPLE_PERIOD, SAMPLE_REFERENCE, LandCover, Run, today
from flows.planning import check_scenes, plan_order
from flows.quiet import quieten
from flows.repair import repair
from flows.watching import shown, tell_request
from tasks.batch import Limits, analyse, find_or_create
from tasks.conversion import FeatureMapping, PatchOptions
from tasks.evalscript import Imagery
from tasks.form import EmptyIs
from tasks.plan import Area, Period, Tiling
from tasks.reference import Reference
from tasks.service import Service
from tasks.storage import Storage


def run_name() -> str:
    """Name of a run: area, and the days that are meant."""
    area, period = flow_run.parameters["area"], flow_run.parameters["period"].on(today())
    return f"land-cover {area.name} {period.start} to {period.end}"


@flow(
    name="land-cover",
    flow_run_name=run_name,
    on_cancellation=[stop_what_was_left],
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_THREADS),  # type: ignore[arg-type]  # its type is not covariant
)
def land_cover(  # noqa: PLR0913, PLR0917 - each is one part of the form that a person fills in
    area: Area = SAMPLE_AREA,
    period: Period = SAMPLE_PERIOD,
    imagery: Imagery = Imagery(),  # noqa: B008 - frozen
    tiling: Tiling = Tiling(),  # noqa: B008
    reference: Annotated[Reference | None, EmptyIs("No labels")] = SAMPLE_REFERENCE,
    service: Service = Service(),  # noqa: B008
    storage: Storage = Storage(),  # noqa: B008
    features: Annotated[FeatureMapping | None, EmptyIs("The usual ones")] = None,
    patches: PatchOptions = PatchOptions(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    run: Run = Run(),  # noqa: B008
) -> State[Summary]:
    """Turn an area's satellite time series into labelled EOPatches.

    Sentinel Hub's Batch Processing API masks clouds, interpolates and computes indices; each tile that it delivers is
    converted to an EOPatch and gets its land-cover labels while the job goes on.

    Args:
        area: Where.
        period: When, and how far the output dates are apart.
        imagery: Collection, cloud mask, bands and indices, or an evalscript of your own.
        tiling: Tiling grid and resolution, or a GeoPackage with tiles of your own.
        reference: Land-cover polygons; empty for none.
        service: Which Sentinel Hub, and as whom.
        storage: Where Batch delivers, and where the EOPatches go.
        features: Which features are made of which outputs; empty for the usual ones.
        patches: How EOPatches are stored.
        limits: What may be spent, and what counts as success.
        run: Pace, patience and pictures.
    """
    begin = time.monotonic()
    quieten()
    parameters = LandCover(
        area=area, period=period, imagery=imagery, tiling=tiling, reference=reference, service=service,
        storage=storage, features=features, patches=patches, limits=limits, run=run,
    )  # fmt: skip
    order = validate(parameters)
    with owned(order) as ownership:
        records = survey_destination(order)
        plan = plan_order(order, records)
        check_scenes(plan)
        with (
            prepared_reference(order, records) as labels,
            Pipeline(order, labels, records) as pipeline,
            shown(pipeline) as board,
        ):
            pipeline.resume()
            job, bought = None, False
            if pipeline.pending:
                deliver_tiles_file(order)
                ownership.renew()
                price, tiles = plan.price_pu.high, len(plan.tiles)
                job = find_or_create(order.work, storage, service, limits, price, tiles, ownership.noted_request)
                ownership.note_request(job)
                tell_request(job)
                job = analyse(job, service)
                bought = not job.under_way
                manifest, plan = agree(order, plan, job)
                with ownership.guarded(job):
                    job = follow(pipeline, ownership.start(job), manifest, ownership.check)
                repair(pipeline, plan, job, ownership)
            pipeline.work_until_empty()
        ownership.check()
        pictures = draw_quicklooks(order, pipeline)
        seconds = time.monotonic() - begin
        return final_state(order, conclude(order, pipeline, plan, job, pictures, board, bought=bought, seconds=seconds))
