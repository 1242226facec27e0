"""The server process that `localhub.server.LocalHub` starts: uvicorn over the application, until its input ends."""

import logging
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn

from localhub.api.app import create_app
from localhub.settings import Settings

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Server(uvicorn.Server):
    """Announces its address once it answers."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def serve_child() -> None:
    """Serve with settings from standard input until that ends; print the address when the service answers."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    settings = Settings.model_validate_json(sys.stdin.readline())
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
    )
    server = _Server(config, _announce)
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    with _listener(settings) as listener:
        server.run([listener])


def _announce(url: str) -> None:
    logging.getLogger(__name__).info("localhub listens on %s", url)
    print(url, flush=True)  # noqa: T201 (the parent reads it)


def _stop_at_end_of_input(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family)
    # Accepted connections inherit it. asyncio sets it for sockets that it makes itself only, and without it the body of
    # an answer waits for the client's acknowledgement of the headers, which comes 40 ms later.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
