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
        self._netloc = urlsplit(upstream).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))

    @property
    def base_url(self) -> str:
        """Address without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
        """Pass a request on as it came, the host's name included, which is signed for; the answer is kept too."""
        answer = _answer(self._netloc, method, target, headers, body)
        self.exchanges.append(answer)
        return answer

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: RecordingProxy
    protocol_version = "HTTP/1.1"  # or nobody tells those who ask whether to go on with their body

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.proxy.passed_on(self.command, self.path, dict(self.headers), body)
        self.send_response(answer.status)
        for name, value in answer.response_headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(answer.response_body)))
        self.end_headers()
        self.wfile.write(answer.response_body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815 (the base class's names)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def _answer(netloc: str, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
    connection = http.client.HTTPConnection(netloc, timeout=60)
    try:
        connection.request(method, target, body or None, headers)
        response = connection.getresponse()
        left_out = _OF_THE_CONNECTION - ({"content-length"} if method == "HEAD" else set())
        received = {name: value for name, value in response.getheaders() if name.lower() not in left_out}
        return Exchange(method, target, headers, body, response.status, received, response.read())
    finally:
        connection.close()
