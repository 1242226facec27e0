"""Kills the flow's process without a warning: at a named request, by a proxy, or at a named state of a folder."""

import os
import re
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows.parameters import LandCover
from tests.conftest import ROOT
from tests.localhub.conformance.description import Exchange
from tests.localhub.conformance.recording import RecordingProxy

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
LONGEST_SECONDS = 240


@dataclass(frozen=True)
class Request:
    """A request at which a process is killed: before the server gets it or, `executed`, before it is answered.

    `target` is searched for in the path. The first such request counts that comes `when` this holds.
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
    path = target.partition("?")[0]
    return request.method == method and re.search(request.target, path) is not None and request.when()


@contextmanager
def started(parameters: LandCover, folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`eopatch-flow run` in a working folder and a process group of its own; its words go to output.txt there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    with (
        (folder / "output.txt").open("wb") as output,
        subprocess.Popen(
            [PROGRAM, "run", str(config)],
            env=_environment() | environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def kill_when(process: subprocess.Popen[bytes], state: Callable[[], bool]) -> None:
    """Kill a process in a state of its files that may last for milliseconds: held still, it must still be in it."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if state():
            process.send_signal(signal.SIGSTOP)
            if state():
                process.kill()
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)


def _environment() -> dict[str, str]:
    """This process's environment without Prefect's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {"PYTHONPATH": str(ROOT), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
