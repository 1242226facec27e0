"""What a person has before starting the browser: a Prefect server, a worker, the deployment, localhub, an S3 server.

The browser is Debian's Chromium, driven by Playwright, the database PostgreSQL; ``make test-e2e`` installs them.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from flows.parameters import LandCover
from localhub.seaweed import SeaweedFS
from tests.conftest import ROOT
from tests.flows.e2e.person import Person
from tests.postgres import Postgres
from tests.prefect_process import PREFECT, PrefectServer

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""Root has no sandbox; the others keep Chromium from asking hosts that are nobody's business here."""
ALBUM = ROOT / "test-output" / "ui"
"""Where the screenshots are kept."""
DEPLOYMENT = "localhub"


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory, s3: SeaweedFS, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server with its UI, and a worker of the pool that the deployments name.

    Over PostgreSQL: over SQLite the server refuses now and then what is pressed while a run writes (status 503), which
    Prefect's clients try again, and its UI does not.
    """
    home = tmp_path_factory.mktemp("prefect")
    with PrefectServer(home, **postgres.for_prefect("e2e")) as server:
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "AWS_ACCESS_KEY_ID": s3.access_key}
        environment = server.environment | quick | {"AWS_SECRET_ACCESS_KEY": s3.secret_key}
        subprocess.run(
            [PREFECT, "--no-prompt", "work-pool", "create", "eopatch-flow", "--type", "process"],
            env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        worker = [PREFECT, "worker", "start", "--pool", "eopatch-flow"]
        with (
            (home / "worker.log").open("w") as log,
            subprocess.Popen(worker, env=environment, cwd=home, stdout=log, stderr=log) as process,
        ):
            yield server
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


@pytest.fixture
def deployed(prefect: PrefectServer, parameters: LandCover) -> LandCover:
    """The deployment for localhub, whose form has the addresses of this test's servers and a price to approve."""
    chosen = {
        "area": {"name": "Small"},
        "period": {"start": "2019-01-01", "end": "2019-03-10", "step_days": 15},
        "tiling": {"geopackage": parameters.tiling.geopackage},
        "service": {"base_url": parameters.service.base_url},
        "storage": {
            "tiles_url": parameters.storage.tiles_url,
            "destination": parameters.storage.destination,
            "endpoint_url": parameters.storage.endpoint_url,
        },
        "reference": {"file": parameters.reference.file if parameters.reference else ""},
        "limits": {"ask_above_pu": 50},
        "run": {"poll_seconds": 1},
    }
    deploy = [PREFECT, "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "-n", DEPLOYMENT]
    with_parameters = [*deploy, "--params", json.dumps(chosen)]
    subprocess.run(with_parameters, env=prefect.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return parameters


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    program = shutil.which("chromium") or os.environ.get("CHROMIUM")
    assert program, "Chromium is not installed; `make test-e2e` installs Debian's, or name yours in CHROMIUM."
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def person(browser: Browser, prefect: PrefectServer, request: pytest.FixtureRequest) -> Iterator[Person]:
    """Somebody before an empty page of the UI; a picture of the last page is kept, since it is there a test fails."""
    ALBUM.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    person = Person(page, prefect.api_url.removesuffix("/api"), Path(ALBUM))
    yield person
    person.photograph(f"last page of {request.node.name}")
    page.close()
