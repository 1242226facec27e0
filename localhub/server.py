"""Serving localhub: in the foreground for the command line, or as a child process for tests and the demo."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn

from localhub.app import create_app
from localhub.settings import Settings

START_SECONDS = 60.0
"""How long a start may take; about 3 s on a quiet machine."""
STOP_SECONDS = 10.0
"""How long a stop may take before the process is killed."""
TOKEN_PATH = "/auth/realms/main/protocol/openid-connect/token"  # noqa: S105 (a path)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ServerError(Exception):
    """localhub did not start."""


class _Server(uvicorn.Server):
    """Announces its address once it answers."""

    def __init__(self, config: uvicorn.Config, announce: Any) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; the address is logged once the service answers."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    _serve(settings, lambda url: logging.getLogger(__name__).info("localhub listens on %s", url))


def _serve(settings: Settings, announce: Any, stop: threading.Event | None = None) -> None:
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
    )
    server = _Server(config, announce)
    if stop is not None:
        threading.Thread(target=_exit_with, args=(stop, server), daemon=True).start()
    with _listener(settings) as listener:
        server.run([listener])


def _exit_with(stop: threading.Event, server: uvicorn.Server) -> None:
    stop.wait()
    server.should_exit = True


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family)


class LocalHub:
    """A localhub in a process of its own, for as long as the context lasts; it ends when its parent does.

    The child gets its settings over a pipe, so that no secret stands in a command line or an environment, and keeps
    its log in `data_dir/localhub.log`.
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
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "localhub.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert self._process.stdin is not None  # noqa: S101 (a pipe)
        self._process.stdin.write(json.dumps(_with_secrets(self.settings)) + "\n")
        self._process.stdin.flush()
        self._base_url = self._announced(self._process)
        return self

    def _announced(self, process: subprocess.Popen[str]) -> str:
        """Return the address that the child prints; killing it after the time ends its output and so the wait."""
        assert process.stdout is not None  # noqa: S101 (a pipe)
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        try:
            url = process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not url:
            self.stop()
            tail = "\n".join(self.log_path.read_text().splitlines()[-10:])
            raise ServerError(
                f"localhub did not start on port {self.settings.port}; the end of {self.log_path}:\n{tail}"
            )
        return url

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


def _with_secrets(settings: Settings) -> dict[str, Any]:
    plain = settings.model_dump(mode="json")
    secrets = {
        "s3_secret_key": settings.s3_secret_key.get_secret_value(),
        "client_secret": settings.client_secret.get_secret_value(),
    }
    return plain | secrets


def _serve_child() -> None:
    """Serve with settings from standard input until that ends; print the address when the service answers."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    settings = Settings.model_validate_json(sys.stdin.readline())
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    _serve(settings, lambda url: print(url, flush=True), stop)  # noqa: T201 (the parent reads it)


if __name__ == "__main__":
    _serve_child()
