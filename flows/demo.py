"""The demo: the flow with its default parameters, on servers of its own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.parameters import LandCover
from flows.server import wake_prefect
from flows.servers import servers
from flows.setup import in_environment
from tasks.service import LOCALHUB_CLIENT
from tasks.storage import LOCALHUB_S3_KEYS


def demo(folder: Path) -> Summary:
    """Run the flow with its default parameters on servers of its own; results and servers' data stay in ``folder``."""
    defaults = LandCover()
    with ThreadPoolExecutor(1) as meanwhile:
        prefect = meanwhile.submit(wake_prefect)  # it takes its time, and so do the scenes
        with servers(folder / "servers") as local:
            service = defaults.service.model_copy(update={"base_url": local.base_url})
            places = {"endpoint_url": local.endpoint_url, "destination": str(folder / "eopatches")}
            prefect.result()
            with in_environment(LOCALHUB_CLIENT, LOCALHUB_S3_KEYS):
                summary = land_cover(service=service, storage=defaults.storage.model_copy(update=places))
    return cast(Summary, summary)  # Prefect unwraps the state
