"""Serving localhub, always in a child process: workers, threads and V8 stay apart from whoever starts it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from localhub.settings import Settings

START_SECONDS = 60.0
"""How long a start may take; about 3 s on a quiet machine."""
STOP_SECONDS = 10.0
"""How long a stop may take before the process is killed; below 1 s as a rule."""
TOKEN_PATH = "/auth/realms/main/protocol/openid-connect/token"  # noqa: S105 (a path)


class ServerError(Exception):
    """localhub did not start, or ended by itself."""


class LocalHub:
    """A localhub in a process of its own, for as long as the context lasts; it ends when its parent does.

    The child gets its settings over a pipe, so that no secret stands in a command line or an environment.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._base_url: str | None = None

    @property
    def base_url(self) -> str:
        """Address without a trailing slash: `SHConfig.sh_base_url`."""
        if self._base_url is None:
            raise ServerError("localhub has not been started; call start() first.")
        return self._base_url

    @property
    def token_url(self) -> str:
        """Address of the token endpoint: `SHConfig.sh_token_url`."""
        return self.base_url + TOKEN_PATH

    @property
    def log_path(self) -> Path:
        """The log of the child process."""
        return self.settings.data_dir / "localhub.log"

    def start(self) -> Self:
        """Start the server and wait until it answers; raise ServerError with the end of its log when it does not."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a") as log:
            self._process = self._started(log)
        self._base_url = self._announced(self._process)
        return self

    def _started(self, log: IO[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "localhub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        _write_line(process, json.dumps(_with_secrets(self.settings)))
        return process

    def _announced(self, process: subprocess.Popen[str]) -> str:
        """Return the address that the child prints; killing it after the time ends its output and so the wait."""
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        try:
            url = _read_line(process)
        finally:
            timer.cancel()
        if not url:
            self.stop()
            raise ServerError(
                f"localhub did not start on {self.settings.host}:{self.settings.port}. {self._log_tail()}"
            )
        return url

    def _log_tail(self) -> str:
        lines = self.log_path.read_text().splitlines()[-10:]
        return "\n".join([f"The end of {self.log_path}:", *lines])

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server and its workers, also in the middle of a job; jobs go on at the next start."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self._base_url = None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _write_line(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _read_line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip() if process.stdout is not None else ""


def _with_secrets(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON, secrets in plain text."""
    return settings.model_dump(mode="json") | {
        "s3_secret_key": settings.s3_secret_key.get_secret_value(),
        "client_secret": settings.client_secret.get_secret_value(),
        "other_clients": {name: secret.get_secret_value() for name, secret in settings.other_clients.items()},
    }
