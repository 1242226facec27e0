"""The published description of the API with the overlay of its known errors, and what it says of an exchange."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jsonpath import JSONPathEnvironment
from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.templating.paths.datatypes import PathOperationServer
from openapi_core.templating.paths.finders import APICallPathFinder
from openapi_core.templating.responses.finders import ResponseFinder
from werkzeug.datastructures import Headers, ImmutableMultiDict

_PATHS = JSONPathEnvironment(strict=True)  # RFC 9535, without the library's extensions
_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})


# ---- overlay ----


def overlaid(document: Mapping[str, Any], actions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a copy of `document` after the actions of an overlay (OpenAPI Overlay Specification 1.0, section 4.4.3).

    Raises:
        ValueError: a target selects nothing. The specification lets that pass; a correction that corrects nothing is
            out of date.
    """
    changed = deepcopy(dict(document))
    for action in actions:
        nodes = list(_PATHS.finditer(action["target"], changed))
        if not nodes:
            raise ValueError(f"The target {action['target']} selects nothing in the description; correct or delete it.")
        for node in reversed(nodes):  # so that removals from a list leave the places of those before
            if action.get("remove", False):
                del node.parent.obj[node.parts[-1]]
            else:
                _update(node.obj, deepcopy(action["update"]))
    return changed


def _update(node: Any, value: Any) -> None:
    """Append to a list; merge into an object, deeply."""
    if isinstance(node, list):
        node.append(value)
        return
    for key, new in value.items():
        if isinstance(new, dict) and isinstance(node.get(key), dict):
            _update(node[key], new)
        else:
            node[key] = new


# ---- strictness ----


def closed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a description in which an object holds no property but those that are described.

    JSON Schema lets everything pass that it does not name; a misspelt field would conform. Objects that are described
    without any property stay open.
    """
    return {**document, "components": _closed(document["components"]), "paths": _closed(document["paths"])}


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _closed_below(key, value) for key, value in node.items()}


def _closed_below(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: _ended(_closed(schema)) for name, schema in value.items()}
    return _ended(_closed(value)) if key in {"items", "schema"} else _closed(value)


def _ended(schema: dict[str, Any]) -> dict[str, Any]:
    """Close a schema at the place where it is used, so that it may still be a part of an `allOf` elsewhere."""
    describes = {"$ref", "properties", "allOf", "oneOf"} & schema.keys()
    return {**schema, "unevaluatedProperties": False} if describes else schema


# ---- exchanges ----


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its response, as they went over the wire."""

    method: str
    target: str
    """Path and query."""
    request_headers: Mapping[str, str]
    request_body: bytes
    status: int
    response_headers: Mapping[str, str]
    response_body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.target} -> {self.status}"

    @property
    def path(self) -> str:
        """The path of the request's target."""
        return urlsplit(self.target).path

    @property
    def query(self) -> Sequence[tuple[str, str]]:
        """The parameters of the request's target."""
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)


@dataclass(frozen=True, slots=True)
class _Request:
    """What openapi-core asks of a request."""

    host_url: str
    path: str
    method: str
    parameters: RequestParameters
    body: bytes | None
    content_type: str


@dataclass(frozen=True, slots=True)
class _Response:
    """What openapi-core asks of a response."""

    status_code: int
    headers: Headers
    data: bytes
    content_type: str


def _request(exchange: Exchange) -> _Request:
    headers = Headers(list(exchange.request_headers.items()))
    parameters = RequestParameters(query=ImmutableMultiDict(exchange.query), header=headers)
    body, content_type = exchange.request_body or None, headers.get("content-type", "")
    return _Request("http://localhub", exchange.path, exchange.method.lower(), parameters, body, content_type)


def _response(exchange: Exchange) -> _Response:
    headers = Headers(list(exchange.response_headers.items()))
    return _Response(exchange.status, headers, exchange.response_body, headers.get("content-type", ""))


class Description:
    """A description of an API, as a judge of exchanges.

    Args:
        document: the description, as published or overlaid.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._api = OpenAPI.from_dict(closed(document), config=Config(spec_validator_cls=None))

    def operations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield method, path template and operation; paths that only refer to others have none of their own."""
        for path, item in self.document["paths"].items():
            for method in _METHODS & item.keys():
                yield method.upper(), path, item[method]

    def request_faults(self, exchange: Exchange) -> list[str]:
        """Return what is wrong with the request of an exchange."""
        request = _request(exchange)
        faults = _texts(self._api.iter_request_errors(request))
        return faults or self._unknown_parameters(request)

    def response_faults(self, exchange: Exchange) -> list[str]:
        """Return what is wrong with the response of an exchange."""
        request = _request(exchange)
        faults = _texts(self._api.iter_response_errors(request, _response(exchange)))
        return faults or self._undeclared_body(request, exchange)

    def answered(self, exchange: Exchange) -> tuple[str, str, str]:
        """Return method, path template without alias, and declared status of an exchange; 5XX stands for a class."""
        found = self._found(_request(exchange))
        pattern = found.path_result.pattern
        alias = self.document["paths"][pattern].get("$ref", "").removeprefix("#/paths/").replace("~1", "/")
        exact = str(exchange.status)
        return exchange.method, alias or pattern, exact if exact in found.operation["responses"] else f"{exact[0]}XX"

    def _unknown_parameters(self, request: _Request) -> list[str]:
        """Return the query parameters that an operation does not have; OpenAPI says nothing about such."""
        parameters = self._found(request).operation.get("parameters", ())
        known = {(parameter / "name").read_str() for parameter in parameters}
        return [f"unknown query parameter '{name}'" for name in request.parameters.query.keys() - known]

    def _undeclared_body(self, request: _Request, exchange: Exchange) -> list[str]:
        """Return the fault of a body where none is declared; OpenAPI says nothing about such."""
        response = ResponseFinder(self._found(request).operation / "responses").find(str(exchange.status))
        declared = "content" in response
        return ["a body where none is declared"] if exchange.response_body and not declared else []

    def _found(self, request: _Request) -> PathOperationServer:
        return APICallPathFinder(self._api.spec).find(request.method, request.host_url + request.path)


def _texts(errors: Iterable[Exception]) -> list[str]:
    return [f"{error!r}: {_cause(error)}" for error in errors]


def _cause(error: BaseException) -> str:
    """Return what is wrong in the words of the validator below, with its place in the document."""
    while error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "schema_errors", ())
    return "; ".join(f"{detail.json_path}: {detail.message[:300]}" for detail in details) or str(error)
