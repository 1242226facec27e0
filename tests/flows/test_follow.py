"""What the pipeline makes of the service's list of tiles, and that it does not wait for all of them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flows.follow import Pipeline
from flows.order import Order
from flows.parameters import LandCover
from localhub.faults import Faults
from localhub.server import LocalHub
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.service import connect, get_job
from tasks.tiles import Manifest
from tests.flows.test_land_cover import SLUG, requests_of, run
from tests.localhub.watching import faults, set_faults, until


def tile(name: str) -> Tile:
    return Tile(name, 32633, (0, 0, 100, 100), 10, 10)


def test_a_planned_tile_that_the_request_lacks_fails_and_is_not_forgotten() -> None:
    planned = [TileRecord(tile("a"), TileState.PENDING), TileRecord(tile("b"), TileState.PENDING)]
    pipeline = Pipeline(
        cast(Order, SimpleNamespace(parameters=LandCover())),
        None,
        [*planned, TileRecord(tile("c"), TileState.CONVERTED)],
    )
    pipeline.request_id = "r1"
    pipeline.adopt(Manifest((tile("b"), tile("d")), {}))
    assert {name: record.state for name, record in pipeline.records.items()} == {
        "a": TileState.FAILED,
        "b": TileState.PENDING,
        "c": TileState.CONVERTED,
        "d": TileState.PENDING,
    }
    assert pipeline.records["a"].reason == "Request r1 does not have it, though it overlaps the area"


@pytest.mark.usefixtures("prefect_server")
def test_an_eopatch_is_complete_while_its_request_is_processed(parameters: LandCover, small_hub: LocalHub) -> None:
    """The request's other tiles wait until the first one has its EOPatch and its labels."""
    patches = Path(parameters.storage.destination) / SLUG / "eopatches"

    def await_the_first() -> str:
        try:
            until(lambda: any(patches.glob("*/meta_info/REFERENCE.json.gz")), seconds=240)
            (request,) = requests_of(parameters)
            return get_job(connect(parameters.service), request).status
        finally:
            set_faults(small_hub, Faults())

    with faults(small_hub, tile_seconds=3600), ThreadPoolExecutor(1) as meanwhile:
        status = meanwhile.submit(await_the_first)
        summary = run(parameters)
    assert status.result() == "PROCESSING"
    assert summary.labelled == 4


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("prefect_server")
def test_a_run_ends_that_is_told_to_when_a_tile_has_ended_and_is_not_noted_yet(
    parameters: LandCover, small_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes between the end of a tile's task run and its record: nobody tells of that end a second time."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, faults(small_hub, tile_seconds=5):
        patched.setattr(Pipeline, "_conclude", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(parameters)
    (request,) = requests_of(parameters)
    until(lambda: get_job(connect(parameters.service), request).status == "STOPPED", seconds=60)
