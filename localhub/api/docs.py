"""localhub's own API description: an OpenAPI document, and a page that shows it without any network.

Each operation stands in it once: aliases of a path, which other clients use, are left out. Who may ask comes from the
routes' own dependencies; what is asked and answered, which the routes read and make by hand, from the table below.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from localhub.api import answers
from localhub.api.common import PAGE_LIMIT, operator
from localhub.api.page import html
from localhub.faults import Faults
from localhub.payload import CreateRequest
from localhub.process_payload import TAR_TYPES, ProcessBody
from localhub.server import TOKEN_PATH
from localhub.store import SORTS

DESCRIPTION = """A stand-in for Sentinel Hub: Batch Processing API v2, Catalog and Process API. The token endpoint gives
a bearer token for client id and secret; /admin, the page and these documents take HTTP Basic as well."""

_ALIASES = ("/batch/v2", "/catalog/v1", "/process/v1", "/oauth")
_TAGS = {
    "/api/v2/batch/process": "Batch Processing",
    "/api/v2/batch/tilinggrids": "Tiling grids",
    "/api/v1/catalog": "Catalog",
    "/api/v1/process": "Process",
    "/admin": "Faults and accounts",
    "/": "Service",
}
"""Tag by the beginning of a path, in the order of the page; `/` fits all that nothing before it does."""
_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
_GEO_JSON = "application/geo+json"
_PICTURES = ("image/tiff", "image/png", "image/jpeg", *TAR_TYPES)
_REFUSALS = {
    400: "The request breaks a rule, which the message names",
    401: "No access token, or one that is not valid",
    403: "It belongs to another account, or the account has no processing units left",
    404: "There is no such thing",
    409: "It is being processed, or about to be",
    415: "The body is not of a media type that is accepted",
    429: "More requests than the account may make; the header Retry-After is in milliseconds",
}


@dataclass(frozen=True, slots=True)
class _Operation:
    """What the routes themselves do not tell of an operation."""

    summary: str
    answer: type[BaseModel] | list[type[BaseModel]] | None = None
    """Model of the answer, or of each of a list; None has no body, or none that is JSON."""
    refusals: tuple[int, ...] = ()
    """Statuses beside 401 and 429, which all have that want a token."""
    body: type[BaseModel] | None = None
    body_type: str = _JSON
    query: tuple[dict[str, Any], ...] = ()
    """Parameters that the route reads by hand."""
    media_types: tuple[str, ...] = (_JSON,)
    """Of the answer."""


def _parameter(
    name: str, schema: Mapping[str, Any], description: str = "", *, required: bool = False
) -> dict[str, Any]:
    """Return a query parameter; lists are separated by commas."""
    told = {"description": description} if description else {}
    listed = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
    return {"name": name, "in": "query", "required": required, "schema": dict(schema), **listed, **told}


_PAGED = (
    _parameter("count", {"type": "integer", "default": PAGE_LIMIT}, f"Entries of a page, at most {PAGE_LIMIT}."),
    _parameter("viewtoken", {"type": "string"}, "nextToken or previousToken of another page."),
)
_SORT = _parameter("sort", {"type": "string", "enum": sorted(SORTS), "default": "created"})
_SEARCH = _parameter("search", {"type": "string"}, "Part of the id or the description.")


def _search_parameters(*names: str) -> tuple[dict[str, Any], ...]:
    """Return members of a search's body as query parameters, all of them when none is named."""
    schema = answers.SearchBody.model_json_schema()
    required = schema["required"]
    return tuple(
        _parameter(name, _in_a_query(member), member.get("description", ""), required=name in required and not names)
        for name, member in schema["properties"].items()
        if not names or name in names
    )


def _in_a_query(member: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a member as text holds it: null is absence, an object is JSON, fields are a list."""
    kinds = [kind for kind in member.get("anyOf", [member]) if kind.get("type") != "null"]
    if any("$ref" in kind for kind in kinds):
        return {"type": "array", "items": {"type": "string"}}
    kept = ("type", "items", "enum", "const", "minimum", "minItems", "maxItems")
    first = {key: value for key, value in kinds[0].items() if key in kept}
    return {"type": "string"} if first.get("type") == "object" else first


_BATCH = "/api/v2/batch/process"
_CATALOG = "/api/v1/catalog/1.0.0"
_OPERATIONS = {
    f"POST {TOKEN_PATH}": _Operation(
        "Token for a client id and secret", answers.Token, (400, 401), answers.TokenForm, _FORM
    ),
    "GET /health": _Operation("Whether localhub answers", answers.Health),
    f"POST {_BATCH}": _Operation("Create a batch request", answers.Task, (400, 403, 415), CreateRequest),
    f"GET {_BATCH}": _Operation("List batch requests", answers.TaskPage, query=(_SEARCH, _SORT, *_PAGED)),
    f"GET {_BATCH}/{{task_id}}": _Operation("Get a batch request", answers.Task, (403, 404)),
    f"PUT {_BATCH}/{{task_id}}": _Operation(
        "Change the description of a batch request", CreateRequest, (400, 403, 404, 409, 415), answers.TaskUpdate
    ),
    f"POST {_BATCH}/{{task_id}}/analyse": _Operation(
        "Analyse: select the tiles, write the manifest", None, (400, 403, 404)
    ),
    f"POST {_BATCH}/{{task_id}}/start": _Operation("Start: from here on it costs", None, (400, 403, 404)),
    f"POST {_BATCH}/{{task_id}}/stop": _Operation("Stop", None, (400, 403, 404)),
    "GET /api/v2/batch/tilinggrids": _Operation("List the tiling grids", answers.GridPage, query=_PAGED),
    "GET /api/v2/batch/tilinggrids/{grid_id}": _Operation("Get a tiling grid", answers.Grid, (400,)),
    f"GET {_CATALOG}": _Operation("Landing page", answers.LandingPage),
    f"GET {_CATALOG}/conformance": _Operation("What the Catalog conforms to", answers.Conformance),
    f"GET {_CATALOG}/collections": _Operation("List the archive's collections", answers.Collections),
    f"GET {_CATALOG}/collections/{{collection}}": _Operation("Get a collection", answers.Collection, (404,)),
    f"GET {_CATALOG}/queryables": _Operation(
        "What a filter may name", answers.Queryables, media_types=("application/schema+json",)
    ),
    f"GET {_CATALOG}/collections/{{collection}}/queryables": _Operation(
        "What a filter on a collection may name", answers.Queryables, (404,), media_types=("application/schema+json",)
    ),
    f"GET {_CATALOG}/collections/{{collection}}/items": _Operation(
        "List a collection's scenes",
        answers.ItemPage,
        (400, 404),
        query=_search_parameters("bbox", "datetime", "limit", "next"),
        media_types=(_GEO_JSON,),
    ),
    f"GET {_CATALOG}/collections/{{collection}}/items/{{item}}": _Operation(
        "Get a scene", answers.Item, (404,), media_types=(_GEO_JSON,)
    ),
    f"GET {_CATALOG}/search": _Operation(
        "Search for scenes, by parameters",
        answers.ItemPage,
        (400,),
        query=_search_parameters(),
        media_types=(_GEO_JSON,),
    ),
    f"POST {_CATALOG}/search": _Operation(
        "Search for scenes", answers.ItemPage, (400, 415), answers.SearchBody, media_types=(_GEO_JSON,)
    ),
    "POST /api/v1/process": _Operation(
        "Evaluate a script over a small window", None, (400, 403, 415), ProcessBody, media_types=_PICTURES
    ),
    "GET /admin/faults": _Operation("The faults that hold", Faults),
    "PUT /admin/faults": _Operation("Let other faults hold, until the restart", Faults, (400,), Faults),
    "DELETE /admin/faults": _Operation("Let no fault hold"),
    "POST /admin/tokens/expire": _Operation("Make every token so far invalid"),
    "GET /admin/creates": _Operation("How many requests were created, and which are equal", answers.Creates),
    "GET /admin/accounts": _Operation("Accounts and their balances", [answers.AccountBalance]),
    "PUT /admin/accounts/{client_id}": _Operation("Set an account's balance", answers.AccountBalance, (400, 404)),
}


def router() -> APIRouter:
    """Return the routes, with the operator that they want."""
    routes = APIRouter(include_in_schema=False, dependencies=[Depends(operator)])
    routes.add_api_route("/openapi.json", _document)
    routes.add_api_route("/docs", _page)
    return routes


def _document(request: Request) -> dict[str, Any]:
    return described(request.app)


def _page(request: Request) -> HTMLResponse:
    document = described(request.app)
    groups: dict[str, list[dict[str, Any]]] = {tag: [] for tag in _TAGS.values()}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups[operation["tags"][0]].append({"method": method.upper(), "path": path, **_lines(operation)})
    schemas = {name: json.dumps(schema, indent=2) for name, schema in document["components"]["schemas"].items()}
    base_url = str(request.base_url).rstrip("/")
    return html("docs.html", groups=groups, schemas=schemas, description=DESCRIPTION, token_url=base_url + TOKEN_PATH)


def _lines(operation: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of an operation."""
    return {
        "summary": operation["summary"],
        "description": operation.get("description", ""),
        "schemes": [scheme for entry in operation.get("security", []) for scheme in entry],
        "parameters": [{**parameter, "kind": _kind(parameter["schema"])} for parameter in operation["parameters"]],
        "bodies": _named(operation.get("requestBody", {}).get("content", {})),
        "answers": [
            {"status": status, "description": answer["description"], "schemas": _named(answer.get("content", {}))}
            for status, answer in sorted(operation["responses"].items())
        ],
    }


def _kind(schema: Mapping[str, Any]) -> str:
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return " | ".join(map(str, values)) or str(schema.get("type", "any"))


def _named(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return media types with the name of their schema, empty where it has none."""
    return [(media_type, _reference(one["schema"])) for media_type, one in content.items()]


def _reference(schema: Mapping[str, Any]) -> str:
    return str(schema.get("items", schema).get("$ref", "")).rpartition("/")[2]


@lru_cache(maxsize=1)
def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    document = get_openapi(title="localhub", version="1", description=DESCRIPTION, routes=app.routes)
    document["tags"] = [{"name": tag} for tag in _TAGS.values()]
    document["paths"] = {
        path.replace("{realm}", "main"): methods for path, methods in document["paths"].items() if _is_main(path)
    }
    references, schemas = _schemas()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, path, _OPERATIONS[f"{method.upper()} {path}"], references)
    document["components"]["schemas"] = document["components"]["schemas"] | schemas
    for unused in ("HTTPValidationError", "ValidationError"):  # what is wrong with a request is answered with 400
        document["components"]["schemas"].pop(unused, None)
    return document


def _is_main(path: str) -> bool:
    return not path.startswith(_ALIASES) and not path.endswith("/")


_References = Mapping[type[BaseModel], Mapping[str, Any]]


def _schemas() -> tuple[_References, Mapping[str, Any]]:
    """Return the reference of each model of the table, and all schemas that these need."""
    failures = (answers.Error, answers.CatalogFailure, answers.TokenFailure)
    models: list[type[BaseModel]] = list(dict.fromkeys([*_models(_OPERATIONS.values()), *failures]))
    found, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return {model: found[model, "validation"] for model in models}, definitions["$defs"]


def _models(operations: Iterable[_Operation]) -> Iterator[type[BaseModel]]:
    for operation in operations:
        answer = operation.answer
        yield from (model for model in (answer if isinstance(answer, list) else [answer]) if model is not None)
        if operation.body is not None:
            yield operation.body


def _complete(operation: dict[str, Any], path: str, told: _Operation, references: _References) -> None:
    """Add what the table tells of an operation to what the routes do."""
    operation["summary"] = told.summary
    operation["tags"] = [next(tag for start, tag in _TAGS.items() if path.startswith(start))]
    by_hand = {parameter["name"] for parameter in told.query}
    own = [parameter for parameter in operation.get("parameters", []) if parameter["name"] not in by_hand]
    operation["parameters"] = [*own, *told.query]
    if told.body is not None:
        content = {told.body_type: {"schema": references[told.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    (status,) = (status for status in operation["responses"] if status.startswith("2"))
    refused = {*told.refusals, *((401, 429) if "security" in operation else ())}
    if path.startswith("/admin"):
        refused.discard(429)  # nobody counts these
    operation["responses"] = {status: _success(told, references)} | {
        str(one): {"description": _REFUSALS[one], "content": {_JSON: {"schema": references[_failure(path, one)]}}}
        for one in sorted(refused)
    }


def _success(told: _Operation, references: _References) -> dict[str, Any]:
    if told.answer is None and told.media_types == (_JSON,):
        return {"description": "Done; there is no body"}
    told_of = told.answer[0] if isinstance(told.answer, list) else told.answer
    return {
        "description": (told_of.__doc__ or "").partition("\n")[0] if told_of else "The file, or an archive of several",
        "content": {media_type: {"schema": _shape(told.answer, references)} for media_type in told.media_types},
    }


def _shape(answer: type[BaseModel] | list[type[BaseModel]] | None, references: _References) -> Mapping[str, Any]:
    if answer is None:
        return {"type": "string", "format": "binary"}
    return {"type": "array", "items": references[answer[0]]} if isinstance(answer, list) else references[answer]


def _failure(path: str, status: int) -> type[BaseModel]:
    """Return the shape of an answer other than success; the Catalog has its own for what it refuses itself."""
    if path.startswith("/auth"):
        return answers.TokenFailure
    return answers.CatalogFailure if path.startswith(_CATALOG) and status in {400, 404} else answers.Error
