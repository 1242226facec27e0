"""A third party's faults, over real HTTP: a server on loopback that fails as told, before or behind another server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import requests

from tests.loopback import LoopbackServer

TOKEN = {"access_token": "a.b.c", "expires_in": 3600, "token_type": "Bearer"}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next request of a method whose path ends so.

    `status` 0 drops the connection without an answer; with `executed` the other server gets the request before.
    """

    method: str
    ending: str
    status: int = 502
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    executed: bool = False


class FaultyServer(LoopbackServer):
    """Hands requests on to `upstream`, or without one gives tokens and empty lists, except where a fault is due."""

    def __init__(self, upstream: str = "", faults: tuple[Fault, ...] = ()) -> None:
        self.upstream = upstream
        self.faults = list(faults)
        self.seen: list[tuple[str, str]] = []
        super().__init__(_Handler, owner=self)

    def count(self, method: str, ending: str) -> int:
        return sum(1 for one, path in self.seen if one == method and path.endswith(ending))

    def take_fault(self, method: str, path: str) -> Fault | None:
        due = next((fault for fault in self.faults if fault.method == method and path.endswith(fault.ending)), None)
        if due is not None:
            self.faults.remove(due)
        return due


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyServer

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.owner.seen.append((self.command, path))
        fault = self.owner.take_fault(self.command, path)
        if fault is not None:
            if fault.executed:
                self._hand_on(body)
            self._fail(fault)
        elif self.owner.upstream:
            answer = self._hand_on(body)
            self._answer(answer.status_code, answer.content)
        elif path.endswith("/token"):
            self._answer(200, json.dumps(TOKEN).encode())
        else:
            self._answer(200, json.dumps({"data": [], "links": {}}).encode())

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the base class's names

    def _hand_on(self, body: bytes) -> requests.Response:
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        url = self.owner.upstream + self.path
        return requests.request(self.command, url, data=body, headers=headers, timeout=30)

    def _fail(self, fault: Fault) -> None:
        if fault.status == 0:
            self.close_connection = True
            return
        text = fault.body if isinstance(fault.body, str) else json.dumps(fault.body)
        self._answer(fault.status, text.encode(), fault.headers)

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""
