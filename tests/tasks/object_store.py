"""Object stores of third parties that are worse than SeaweedFS, over real HTTP: they keep objects in memory."""

import hashlib
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Literal

import s3fs

from tests.loopback import LoopbackServer

Conditions = Literal["honoured", "ignored", "refused"]


class ObjectStore(LoopbackServer):
    """Gives and takes objects.

    Args:
        conditions: what it does with those of a PUT; where they are refused, it answers 501.

    Attributes:
        down: it answers 503 to everything.
        lose_answer: the next PUT is done, but the connection is dropped, or an error of the store is answered.
        hides: who may not list is told 403, not 404, of what is not there, as S3 does.
    """

    def __init__(self, conditions: Conditions = "honoured") -> None:
        self.conditions = conditions
        self.down = self.hides = False
        self.lose_answer: Literal["", "dropped", "error"] = ""
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.lock = threading.Lock()
        super().__init__(_Handler, store=self)

    def files(self) -> s3fs.S3FileSystem:
        """A client of its own, which does not repeat what fails."""
        client = {"endpoint_url": self.base_url}
        once = {"retries": {"max_attempts": 0}}
        files = s3fs.S3FileSystem(
            key="key", secret="secret", client_kwargs=client, config_kwargs=once, skip_instance_cache=True
        )
        files.retries = 1
        return files


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.store.down:
            self._refuse(503, "ServiceUnavailable")
        elif self.path not in self.store.objects:
            self._refuse(*((403, "AccessDenied") if self.store.hides else (404, "NoSuchKey")))
        else:
            content, written = self.store.objects[self.path]
            self._answer(200, content, {"ETag": etag(content), "Last-Modified": formatdate(written, usegmt=True)})

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        store, conditional = self.store, "If-Match" in self.headers or "If-None-Match" in self.headers
        if store.down:
            self._refuse(503, "ServiceUnavailable")
            return
        if conditional and store.conditions == "refused":
            self._refuse(501, "NotImplemented")
            return
        with store.lock:
            found = store.objects.get(self.path)
            if store.conditions == "honoured" and not self._holds(etag(found[0]) if found else None):
                self._refuse(412, "PreconditionFailed")
                return
            store.objects[self.path] = content, time.time()
        lost, store.lose_answer = store.lose_answer, ""
        if lost == "dropped":
            self.close_connection = True
        elif lost == "error":
            self._refuse(500, "InternalError")
        else:
            self._answer(200, b"", {"ETag": etag(content)})

    def _holds(self, stored: str | None) -> bool:
        if "If-None-Match" in self.headers:
            return stored is None
        return "If-Match" not in self.headers or self.headers["If-Match"] == stored

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)  # with a Date
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""
