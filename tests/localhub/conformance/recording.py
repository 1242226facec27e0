"""A proxy on loopback that passes everything on and keeps what it saw."""

import http.client
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.localhub.conformance.description import Exchange
from tests.loopback import LoopbackServer

_OF_THE_CONNECTION = frozenset({"connection", "content-length", "date", "server", "transfer-encoding"})


class RecordingProxy(LoopbackServer):
    """A proxy before one server, for as long as the context lasts.

    Args:
        upstream: address of the server, such as http://127.0.0.1:8484.
    """

    def __init__(self, upstream: str) -> None:
        self.exchanges: list[Exchange] = []
        self._netloc = urlsplit(upstream).netloc
        super().__init__(_Handler, proxy=self)

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
        """Pass a request on as it came, the host's name included, which is signed for; the answer is kept too."""
        answer = _answer(self._netloc, method, target, headers, body)
        self.exchanges.append(answer)
        return answer


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
