"""What the pipeline makes of the service's list of tiles."""

from typing import cast

from flows.follow import Pipeline
from flows.order import Order
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.tiles import Manifest


def tile(name: str) -> Tile:
    return Tile(name, 32633, (0, 0, 100, 100), 10, 10)


def test_a_planned_tile_that_the_request_lacks_fails_and_is_not_forgotten() -> None:
    planned = [TileRecord(tile("a"), TileState.PENDING), TileRecord(tile("b"), TileState.PENDING)]
    pipeline = Pipeline(cast(Order, None), None, [*planned, TileRecord(tile("c"), TileState.CONVERTED)])
    pipeline.request_id = "r1"
    pipeline.adopt(Manifest((tile("b"), tile("d")), {}))
    assert {name: record.state for name, record in pipeline.records.items()} == {
        "a": TileState.FAILED,
        "b": TileState.PENDING,
        "c": TileState.CONVERTED,
        "d": TileState.PENDING,
    }
    assert pipeline.records["a"].reason == "Request r1 does not have it, though it overlaps the area"
