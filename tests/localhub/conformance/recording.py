"""A proxy on loopback that passes everything on and keeps what it saw."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.localhub.conformance.description import Exchange

_OF_THE_CONNECTION = frozenset({"connection", "content-length", "date", "server", "transfer-encoding"})


class RecordingProxy:
    """A proxy before one server, for as long as the context lasts.

    Args:
        upstream: address of the server, such as http://127.0.0.1:8484.
    """

    def __init__(self, upstream: str) -> None:
        self.exchanges: list[Exchange] = []
        proxy, netloc = self, urlsplit(upstream).netloc

        class Handler(_Handler):
            def passed_on(self, method: str, body: bytes) -> Exchange:
                answer = _answer(netloc, method, self.path, dict(self.headers), body)
                proxy.exchanges.append(answer)
                return answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

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


class _Handler(BaseHTTPRequestHandler):
    def passed_on(self, method: str, body: bytes) -> Exchange:
        raise NotImplementedError

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.passed_on(self.command, body)
        self.send_response(answer.status)
        for name, value in answer.response_headers.items():
            self.send_header(name, value)
        if answer.status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(answer.response_body)))
        self.end_headers()
        self.wfile.write(answer.response_body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815 (the base class's names)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def _answer(netloc: str, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
    connection = http.client.HTTPConnection(netloc, timeout=60)
    try:
        connection.request(method, target, body or None, headers)
        response = connection.getresponse()
        received = {name: value for name, value in response.getheaders() if name.lower() not in _OF_THE_CONNECTION}
        return Exchange(method, target, headers, body, response.status, received, response.read())
    finally:
        connection.close()
