"""The repair of a request: what it failed to deliver is ordered once more, within the cap, and followed alike."""

from collections.abc import Sequence

from flows.approval import Question, approve
from flows.follow import Pipeline, follow
from flows.order import Order
from flows.ownership import Ownership
from flows.progress import tell
from tasks.batch import ATTACHABLE, analyse, settled_job
from tasks.errors import BudgetExceeded, JobFailed, ServiceError, Unavailable
from tasks.grid import Tile
from tasks.pricing import Range, request_price
from tasks.repair import order_repair, repair_work, repairs, tiles_geopackage, with_outlines
from tasks.report import Plan
from tasks.service import Job, connect
from tasks.tiles import Manifest, read_manifest

REPAIR = "Repair"
"""Name of the stage that a person watches."""


def repair(pipeline: Pipeline, plan: Plan, job: Job, ownership: Ownership) -> None:
    """Have the service deliver what a request that is DONE has not, in one request more; errors as in ``follow``.

    A repair that an earlier run has ordered is taken up, and another one is bought only with ``limits.buy_again``.
    """
    order, limits = pipeline.order, pipeline.order.parameters.limits
    pipeline.work_until_empty()
    if not pipeline.damaged:
        return
    job = _settled(order, job)  # its last tile may have been seen before its end
    if job.status != "DONE":
        return
    earlier = repairs(order.parameters.service, job)
    bill = Bill(order, plan, job, earlier)
    for one in earlier:
        if one.status in ATTACHABLE:
            _take_up(pipeline, bill, one, ownership)
    bought = any(one.status in ATTACHABLE or one.cost_pu for one in earlier)
    if pipeline.damaged and limits.repair and (not bought or limits.buy_again):
        _buy(pipeline, bill, len(earlier) + 1, ownership)


class Bill:
    """What a request and its repairs cost, and may cost.

    Args:
        order: what was asked for.
        plan: prices of the tiles.
        job: the request that is repaired.
        earlier: its repairs so far.
    """

    def __init__(self, order: Order, plan: Plan, job: Job, earlier: Sequence[Job]) -> None:
        self.job = job
        self._order = order
        self._prices = {planned.record.tile.name: planned.price_pu for planned in plan.tiles}
        self._costs = {one.id: one.cost_pu for one in (job, *earlier)}

    def paid_pu(self, but: str = "") -> float:
        """What all requests have cost, except the one with the id ``but``."""
        return sum(cost for request_id, cost in self._costs.items() if request_id != but)

    def note(self, job: Job) -> None:
        """Keep what a request has cost."""
        self._costs[job.id] = job.cost_pu

    def price(self, tiles: Sequence[Tile]) -> Range:
        """What a repair may cost."""
        return request_price([self._prices[tile.name] for tile in tiles if tile.name in self._prices])

    def allows(self, tiles: Sequence[Tile], request_id: str = "") -> bool:
        """Tell the price of a repair, and whether it may be bought: within the cap, and approved once it is analysed.

        Args:
            tiles: to be ordered again.
            request_id: of the analysed repair; empty before it is created.
        """
        price, paid, limits = self.price(tiles), self.paid_pu(request_id), self._order.parameters.limits
        text = f"{len(tiles):,} tiles again for up to {price.high:,.0f} PU, after {paid:,.0f} PU"
        if paid + price.high > limits.max_pu:
            tell(REPAIR, note=f"Not ordered: {text}, is more than limits.max_pu of {limits.max_pu:,.10g}")
            return False
        if not request_id:
            tell(REPAIR, note=f"Ordering {text}")
            return True
        total = Range(*(paid + figure for figure in price))
        try:
            title = f"{self._order.title}, repair"
            question = Question(request_id, title, len(tiles), total, limits, self._order.folder)
            approve(question, self._order.parameters.storage)
        except BudgetExceeded as refusal:
            tell(REPAIR, note=f"Not started: {refusal}")
            return False
        return True


def _buy(pipeline: Pipeline, bill: Bill, number: int, ownership: Ownership) -> None:
    """Order what is still missing."""
    order = pipeline.order
    tiles = with_outlines([pipeline.records[name].tile for name in sorted(pipeline.damaged)], order.tiles)
    if not bill.allows(tiles):
        return
    ownership.renew()
    work = repair_work(order.work, bill.job.id, tiles, number)
    job = order_repair(work, tiles_geopackage(tiles), order.parameters.storage, order.parameters.service)
    _take_up(pipeline, bill, job, ownership)


def _take_up(pipeline: Pipeline, bill: Bill, job: Job, ownership: Ownership) -> None:
    """Analyse, start and follow a repair, as far as that is still to be done and allowed."""
    found = _analysed(pipeline.order, job)
    if found is None:
        return
    job, manifest = found
    names = pipeline.damaged & {tile.name for tile in manifest.tiles}
    if not names:
        return
    if not job.under_way and not (pipeline.order.parameters.limits.repair and bill.allows(manifest.tiles, job.id)):
        return
    ownership.note_request(job)
    pipeline.reopen(names)
    with ownership.guarded(job):
        job = follow(pipeline, ownership.start(job), manifest, ownership.check, bill.paid_pu(but=job.id))
        pipeline.work_until_empty()
    job = _settled(pipeline.order, job)
    bill.note(job)
    pipeline.repairs.append(job)
    left = len(names & pipeline.damaged)
    tell(
        REPAIR, note=f"Request {job.id} {job.status}, {job.cost_pu:,.0f} PU: {len(names) - left} of {len(names)} tiles"
    )


def _settled(order: Order, job: Job) -> Job:
    """The request at its end, when all of its costs are counted."""
    return settled_job(connect(order.parameters.service), job)


def _analysed(order: Order, job: Job) -> tuple[Job, Manifest] | None:
    """The repair once it is analysed, and its tiles; None when it came to nothing, which is told."""
    try:
        job = analyse(job, order.parameters.service)
        return job, read_manifest(order.parameters.storage, job.id)
    except Unavailable:
        raise
    except (JobFailed, ServiceError) as error:
        tell(REPAIR, note=f"Repair {job.id} comes to nothing: {error}")
        return None
