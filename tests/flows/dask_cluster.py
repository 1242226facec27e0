"""A real Dask cluster: a scheduler and workers, each a process of its own, as on several machines."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

DASK = (sys.executable, "-m", "dask")


@dataclass(frozen=True)
class Cluster:
    """Address of the scheduler, and the processes."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: tuple[subprocess.Popen[bytes], ...]


@contextmanager
def dask_cluster(folder: Path, workers: int, **environment: str) -> Iterator[Cluster]:
    """Run a cluster whose workers have one thread each, and no nanny: one that is killed stays away."""
    folder.mkdir(parents=True, exist_ok=True)
    contact = folder / "scheduler.json"
    quiet = ("--no-dashboard", "--scheduler-file", str(contact))
    with ExitStack() as running:
        scheduler = running.enter_context(started([*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", *quiet]))
        options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
        started_workers = tuple(
            running.enter_context(started([*DASK, "worker", *options, *quiet], **environment)) for _ in range(workers)
        )
        deadline = time.monotonic() + 120
        while not contact.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        with Client(scheduler_file=str(contact), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)
            address = client.scheduler.address
        yield Cluster(address, scheduler, started_workers)


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block."""
    with subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()
