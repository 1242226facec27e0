"""Kills the flow's process without a warning: at a named request, by a proxy, or at a named state of a folder."""

import os
import re
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows.parameters import LandCover
from tests.localhub.conformance.description import Exchange
from tests.localhub.conformance.recording import RecordingProxy

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 240


@dataclass(frozen=True)
class Request:
    """A request at which a process is killed: before the server gets it or, `executed`, before it is answered.

    `target` is searched for in path and query. The first such request counts that comes `when` this holds.
    """

    method: str
    target: str
    executed: bool = False
    when: Callable[[], bool] = lambda: True


class KillingProxy(RecordingProxy):
    """A proxy that kills when it is asked the one thing; an unexecuted request is forgotten."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self._due: tuple[Request, Callable[[], None]] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def killing(self, request: Request, kill: Callable[[], None]) -> Iterator[None]:
        """Call `kill` at the request, once, if it comes within the block."""
        self._due = (request, kill)
        try:
            yield
        finally:
            self._due = None

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
        with self._lock:
            due = self._due
            hit = due is not None and _is_meant(due[0], method, target)
            if hit:
                self._due = None
        if due is None or not hit:
            return super().passed_on(method, target, headers, body)
        if due[0].executed:
            super().passed_on(method, target, headers, body)
        due[1]()
        return Exchange(method, target, headers, body, 503, {}, b"")  # nobody is left to read it


def _is_meant(request: Request, method: str, target: str) -> bool:
    return request.method == method and re.search(request.target, target) is not None and request.when()


@contextmanager
def started(parameters: LandCover, folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`eopatch-flow run` in a process group of its own; its words go to a file. What is left of it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (
        (folder / "output.txt").open("wb") as output,
        subprocess.Popen(
            [PROGRAM, "run", str(config)],
            env=clean | {"PYTHONPATH": str(ROOT)} | environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_when(process: subprocess.Popen[bytes], state: Callable[[], bool]) -> None:
    """Kill a process in a state of its files that may last for milliseconds: held still, it must still be in it."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if state():
            os.killpg(process.pid, signal.SIGSTOP)
            if state():
                kill_group(process)
                return
            os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.0005)
