"""What the service fails to deliver is ordered once more, within the cap, and comes out as it should have come."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import repair as module
from flows.conclusion import Summary
from flows.parameters import LandCover
from localhub.faults import Faults
from localhub.server import LocalHub
from tasks.errors import TooFewTiles, Unavailable
from tasks.ledger import TileState, read_ledger
from tests.flows.test_land_cover import load, patches, requests_of, run, states
from tests.localhub.watching import faults, set_faults

pytestmark = pytest.mark.usefixtures("prefect_server")

BAD: list[dict[str, Any]] = [
    {"kind": "fatal", "tile": "t0", "times": 3},
    {"kind": "undelivered", "tile": "t1"},
    {"kind": "truncated", "tile": "t2", "output": "B08"},
    {"kind": "missing", "tile": "t3", "output": "NDVI"},
]
"""One tile each; localhub's three tries make `t0` FATAL in one request only."""
FATAL: list[dict[str, Any]] = [{"kind": "fatal", "tile": "t0"}]


def impatient(parameters: LandCover) -> LandCover:
    return parameters.model_copy(update={"run": parameters.run.model_copy(update={"patience_minutes": 0.03})})


def with_limits(parameters: LandCover, **limits: Any) -> LandCover:
    return parameters.model_copy(update={"limits": parameters.limits.model_copy(update=limits)})


def patch_arrays(parameters: LandCover, tile: str) -> dict[tuple[Any, str], Any]:
    patch = load(parameters, tile)
    return {(kind, name): patch[kind, name] for kind, name in patch.get_features() if kind.is_array()}


def failed(parameters: LandCover) -> str:
    """The message of a run that does not succeed."""
    with pytest.raises(TooFewTiles) as caught:
        run(parameters)
    return str(caught.value)


def mend_before_repair(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the hub's faults away at the moment at which a repair is ordered."""
    order = module.order_repair

    def order_when_mended(*args: Any) -> Any:
        set_faults(hub, Faults())
        return order(*args)

    monkeypatch.setattr(module, "order_repair", order_when_mended)


def test_a_repair_delivers_what_the_request_should_have_bit_for_bit(
    parameters: LandCover, small_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound = parameters.model_copy(
        update={
            "storage": parameters.storage.model_copy(
                update={
                    "destination": str(tmp_path / "sound"),
                    "tiles_url": parameters.storage.tiles_url.replace("/tiles", "/sound"),
                }
            )
        }
    )
    assert isinstance(run(sound), Summary)
    mend_before_repair(small_hub, monkeypatch)
    with faults(small_hub, tiles=BAD):
        summary = run(impatient(parameters))
    assert states(summary) == dict.fromkeys(("t0", "t1", "t2", "t3"), "labelled")
    assert [record.attempts for record in summary.records] == [2] * 4
    assert len(requests_of(parameters)) == 2
    assert "repaired by request" in summary.message
    for tile in ("t0", "t1", "t2", "t3"):
        came, wanted = patch_arrays(parameters, tile), patch_arrays(sound, tile)
        assert came.keys() == wanted.keys()
        for feature in wanted:
            assert came[feature].dtype == wanted[feature].dtype
            np.testing.assert_array_equal(came[feature], wanted[feature])
        assert tuple(load(parameters, tile).bbox) == tuple(load(sound, tile).bbox)


def test_a_request_that_had_not_ended_when_its_last_tile_was_seen_is_repaired_too(
    parameters: LandCover, small_hub: LocalHub
) -> None:
    """Each answer tells what was true 3 s before: the execution database, which is read after it, is further on."""
    old_news = {"operation": "get", "executed": True, "seconds": 3, "times": None}
    with faults(small_hub, tiles=FATAL, api=[old_news], tile_seconds=1):
        message = failed(parameters)
    assert "repaired by request" in message
    assert message.count("(100.0 PU)") == 2
    assert len(requests_of(parameters)) == 2


def test_a_tile_that_fails_again_has_both_reasons_and_is_not_ordered_a_third_time(
    parameters: LandCover, small_hub: LocalHub
) -> None:
    with faults(small_hub, tiles=FATAL):
        message = failed(parameters)
        assert "3 of 4 EOPatches are ready, 1 failed" in message
        folder = patches(parameters).parent
        record = next(one for one in read_ledger(folder / "ledger.gpkg") if one.tile.name == "t0")
        assert (record.state, record.attempts) == (TileState.FAILED, 2)
        assert record.reason.count("Tile t0 fails on demand") == 2
        assert "ordered again: The service could not process it" in record.reason
        failed(parameters)
    assert len(requests_of(parameters)) == 2
    summary = run(with_limits(parameters, buy_again=True))
    assert states(summary)["t0"] == "labelled"
    assert len(requests_of(parameters)) == 3


def test_a_repair_beyond_the_cap_is_not_ordered(parameters: LandCover, small_hub: LocalHub) -> None:
    with faults(small_hub, tiles=FATAL):
        failed(with_limits(parameters, max_pu=150))
    assert len(requests_of(parameters)) == 1
    assert states(run(with_limits(parameters, max_pu=200)))["t0"] == "labelled"
    assert len(requests_of(parameters)) == 2


def test_a_repair_can_be_switched_off(parameters: LandCover, small_hub: LocalHub) -> None:
    with faults(small_hub, tiles=FATAL):
        failed(with_limits(parameters, repair=False))
    assert len(requests_of(parameters)) == 1


def test_a_run_that_is_cut_off_after_ordering_a_repair_is_continued_without_buying_another(
    parameters: LandCover, small_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_up = module._take_up

    def cut_off(*_: Any) -> None:
        raise Unavailable("cut off")

    monkeypatch.setattr(module, "_take_up", cut_off)
    with faults(small_hub, tiles=FATAL), pytest.raises(Unavailable):
        run(parameters)
    assert len(requests_of(parameters)) == 2
    monkeypatch.setattr(module, "_take_up", taken_up)
    assert states(run(parameters)) == dict.fromkeys(("t0", "t1", "t2", "t3"), "labelled")
    assert len(requests_of(parameters)) == 2
