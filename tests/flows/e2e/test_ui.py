"""The whole way through Prefect's UI, in a real browser; ``test-output/ui`` keeps what it looked like."""

import re

import pytest
from eolearn.core.eodata import EOPatch

from flows.parameters import LandCover
from localhub.server import LocalHub
from tests.flows.e2e.conftest import DEPLOYMENT
from tests.flows.e2e.person import Person
from tests.flows.test_ownership import eventually, markers, only_request, was_stopped
from tests.localhub.batch_requests import client_of, wait_for
from tests.localhub.watching import faults

pytestmark = pytest.mark.e2e

GROUPS = [
    "area", "period", "imagery", "tiling", "reference", "service", "storage", "features", "patches", "limits", "run",
]  # fmt: skip
"""The form from top to bottom: what, where from and where to, how, for how much."""


@pytest.mark.usefixtures("deployed")
def test_the_form_reads_from_what_to_how_with_defaults_filled_in(person: Person) -> None:
    person.open_form(DEPLOYMENT)
    titles = person.titles()
    assert [title for title in titles if title in GROUPS] == GROUPS
    assert titles[:3] == ["area", "Name", "Bounding box"]
    assert not [title for title in titles if "_" in title], "a name of the code's, where a person expects words"
    assert person.chosen("Collection") == "sentinel-2-l1c"
    assert person.chosen("Days") == "first to last day"
    assert person.chosen("When cancelled or timed out") == "stop"
    assert person.options("File format") == ["npy.gz", "zarr"]
    text = person.page.inner_text("body")
    for sentence in (
        "Names the folder of results, together with the period.",
        "A scheduled run cannot ask, and is refused.",
        "Normalised differences (first - second) / (first + second) of interpolated bands, by name.",
        "No labels",
        "The usual ones",
    ):
        assert sentence in text
    assert "Optional[" not in text
    person.photograph("1-form", height=7000)


def test_a_run_from_the_form_is_approved_watched_and_looked_at(
    person: Person, deployed: LandCover, small_hub: LocalHub
) -> None:
    person.open_form(DEPLOYMENT)
    person.write("Name", "Fields")
    person.choose("File format", "zarr")
    person.submit()
    person.await_state("Paused")
    assert only_request(deployed, small_hub).status.value == "ANALYSIS_DONE"

    person.press("Resume")
    person.page.get_by_text("4 tiles would be bought").wait_for()
    person.input("Buy it").get_by_role("switch").click()
    person.write("Your name", "Ada")
    person.photograph("2-approval")
    person.press("Submit")
    person.await_state("Completed")
    person.photograph("3-run", height=1700)
    told = person.page.inner_text("body")
    assert re.search(
        r"4 of 4 EOPatches are ready\. Request \S+ was bought \(100\.0 PU\); 4 converted, 4 labelled", told
    )
    assert "Traceback" not in told

    found = person.artifacts("fields-summary")
    assert found.keys() >= {"fields-plan", "fields-tiles", "fields-map", "fields-summary", "fields-progress"}
    pages = {key: person.open(found[f"fields-{key}"]) for key in ("plan", "tiles", "map", "summary")}
    _look_at(person, found)
    assert re.search(r"Batch Processing API\s+100\.00 PU\s+100\.00 PU\s+100\.00 PU", pages["plan"])
    assert re.search(r"t0\s+labelled\s+EPSG:32633\s+60 . 60", pages["tiles"])
    assert "labelled: 4" in pages["map"]
    assert "4 of 4 tiles are complete (100%)" in pages["summary"]

    folder = f"{deployed.storage.destination}/fields-20190101-20190310/eopatches"
    patch = EOPatch.load(f"{folder}/eopatch_t0")
    assert patch.data["BANDS"].shape == (5, 60, 60, 6)
    assert patch.mask_timeless["LULC"].any()


def test_cancelling_a_run_stops_the_request_at_the_service(
    person: Person, deployed: LandCover, small_hub: LocalHub
) -> None:
    person.open_form(DEPLOYMENT)
    person.write("Ask above (PU)", "500")
    with faults(small_hub, tile_seconds=30):
        person.submit()
        eventually(lambda: markers(deployed))
        person.press("Cancel")
        person.photograph("8-cancel")
        person.press("Confirm")
        stopped = wait_for(client_of(small_hub), only_request(deployed, small_hub), seconds=180)
        person.await_state("Cancelled")
    assert was_stopped(stopped)
    assert 0 < len(markers(deployed)) < 4
    person.photograph("9-cancelled", height=1400)


def _look_at(person: Person, found: dict[str, str]) -> None:
    """Photograph what a person looks at, and see that each picture on it is drawn."""
    for number, key in enumerate(("plan", "tiles", "map", "summary"), start=4):
        person.open(found[f"fields-{key}"])
        person.photograph(f"{number}-{key}", height=1700)
        drawn = person.page.locator("article img").evaluate_all("all => all.map(one => one.naturalWidth)")
        assert all(width > 300 for width in drawn)
        assert bool(drawn) == (key in {"map", "summary"}), key
