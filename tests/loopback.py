"""Servers that stand in for third parties: HTTP on a free port of loopback, for as long as a context lasts."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from localhub.seaweed import free_ports


class LoopbackServer:
    """Answers requests, each in a thread of its own.

    Args:
        handler: of one request.
        attributes: that every handler has.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], **attributes: Any) -> None:
        self._server = _Server(("127.0.0.1", 0), type("Handler", (handler,), attributes))

    @property
    def base_url(self) -> str:
        """Address without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    return free_ports(1)[0]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error of ours; a client that hung up, or was killed, is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
