"""A Prefect server in a process of its own, with an empty database and settings that a test chooses."""

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from tests.loopback import free_port

PREFECT = Path(sysconfig.get_path("scripts")) / "prefect"
START_SECONDS = 120.0


class PrefectServer:
    """``prefect server start`` on a free port of loopback, for as long as a context lasts.

    Args:
        home: Prefect's folder, for the server and for its clients.
        settings: of the server, by the names of their variables.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.settings = settings
        self.port = free_port()

    @property
    def api_url(self) -> str:
        """What clients need as ``PREFECT_API_URL``."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of clients."""
        ours = {"PREFECT_API_URL": self.api_url, "PREFECT_HOME": str(self.home)}
        return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | ours

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.home / "server.log").read_text()

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = self.environment | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | self.settings
        with (self.home / "server.log").open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__(None, None, None)
                raise AssertionError(f"Prefect's server did not start: {self.log[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.api_url}/ready", timeout=2).ok
        except requests.RequestException:
            return False
