"""localhub's own API description: an OpenAPI document, and a page that shows it without any network.

Each operation stands in it once: aliases of a path, which other clients use, are left out.
"""

import json
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from localhub.api.common import operator
from localhub.api.page import html
from localhub.payload import CreateRequest
from localhub.process_payload import ProcessBody

DESCRIPTION = """A stand-in for Sentinel Hub: Batch Processing API v2, Catalog and Process API. The token endpoint gives
a bearer token for client id and secret; `/admin`, the page and these documents take HTTP Basic as well."""

_ALIASES = ("/batch/v2", "/catalog/v1", "/process/v1", "/oauth")
_TAGS = {
    "/api/v2/batch/process": "Batch Processing",
    "/api/v2/batch/tilinggrids": "Tiling grids",
    "/api/v1/catalog": "Catalog",
    "/api/v1/process": "Process",
    "/admin": "Faults and accounts",
    "/": "Service",
}
"""Tag by the beginning of a path, the longer first."""
_SUMMARIES = {
    "POST /auth/realms/main/protocol/openid-connect/token": "Token for a client id and secret",
    "GET /health": "Whether localhub answers",
    "POST /api/v2/batch/process": "Create a batch request",
    "GET /api/v2/batch/process": "List batch requests",
    "GET /api/v2/batch/process/{task_id}": "Get a batch request",
    "PUT /api/v2/batch/process/{task_id}": "Change the description of a batch request",
    "POST /api/v2/batch/process/{task_id}/analyse": "Analyse: select the tiles, write the manifest",
    "POST /api/v2/batch/process/{task_id}/start": "Start: from here on it costs",
    "POST /api/v2/batch/process/{task_id}/stop": "Stop",
    "GET /api/v2/batch/tilinggrids": "List the tiling grids",
    "GET /api/v2/batch/tilinggrids/{grid_id}": "Get a tiling grid",
    "GET /api/v1/catalog/1.0.0": "Landing page",
    "GET /api/v1/catalog/1.0.0/conformance": "What the Catalog conforms to",
    "GET /api/v1/catalog/1.0.0/collections": "List the archive's collections",
    "GET /api/v1/catalog/1.0.0/collections/{collection}": "Get a collection",
    "GET /api/v1/catalog/1.0.0/queryables": "What a filter may name",
    "GET /api/v1/catalog/1.0.0/collections/{collection}/queryables": "What a filter on a collection may name",
    "GET /api/v1/catalog/1.0.0/collections/{collection}/items": "List a collection's scenes",
    "GET /api/v1/catalog/1.0.0/collections/{collection}/items/{item}": "Get a scene",
    "GET /api/v1/catalog/1.0.0/search": "Search for scenes, by parameters",
    "POST /api/v1/catalog/1.0.0/search": "Search for scenes",
    "POST /api/v1/process": "Evaluate a script over a small window",
    "GET /admin/faults": "The faults that hold",
    "PUT /admin/faults": "Let other faults hold, until the restart",
    "DELETE /admin/faults": "Let no fault hold",
    "POST /admin/tokens/expire": "Make every token so far invalid",
    "GET /admin/creates": "How many requests were created, and which are equal",
    "GET /admin/accounts": "Accounts and their balances",
    "PUT /admin/accounts/{client_id}": "Set an account's balance",
}
_BODIES: dict[str, type[BaseModel]] = {"POST /api/v2/batch/process": CreateRequest, "POST /api/v1/process": ProcessBody}


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
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            line = {"method": method.upper(), "path": path, "operation": operation, "body": _body(operation)}
            groups.setdefault(operation["tags"][0], []).append(line)
    schemas = {name: json.dumps(schema, indent=2) for name, schema in document["components"]["schemas"].items()}
    return html("docs.html", groups=groups, schemas=schemas)


def _body(operation: dict[str, Any]) -> str | None:
    """Return the name of the schema of an operation's JSON body."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference: str = content.get("schema", {}).get("$ref", "")
    return reference.rpartition("/")[2] or None


@lru_cache(maxsize=1)
def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    document = get_openapi(title="localhub", version="1", description=DESCRIPTION, routes=app.routes)
    document["paths"] = {
        path.replace("{realm}", "main"): methods for path, methods in document["paths"].items() if _is_main(path)
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, f"{method.upper()} {path}")
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "client": {"type": "http", "scheme": "basic"},
    }
    return document


def _is_main(path: str) -> bool:
    return not path.startswith(_ALIASES) and not path.endswith("/")


def _complete(operation: dict[str, Any], key: str) -> None:
    path = key.partition(" ")[2]
    operation["summary"] = _SUMMARIES[key]
    operation["tags"] = [next(tag for start, tag in _TAGS.items() if path.startswith(start))]
    operation["responses"].setdefault("default", {"description": "An error, as the service words it"})
    operation["responses"].pop("422", None)  # what is wrong with a request is answered with 400
    if operation["tags"][0] == "Faults and accounts":
        operation["security"] = [{"token": []}, {"client": []}]
    elif operation["tags"][0] != "Service":
        operation["security"] = [{"token": []}]
    if model := _BODIES.get(key):
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
