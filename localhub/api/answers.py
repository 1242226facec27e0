"""What localhub's answers hold, for its description: the routes make them by hand, and tests hold them against this.

Members: research note batch-v2, sections 1.1 and 2, and the published OpenAPI descriptions of Batch and Catalog.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from localhub.catalog import LIMIT, MOST
from localhub.jobs import Action, Status


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class _SnakeModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ---- errors ----


class ErrorDetails(_Model):
    """What went wrong."""

    status: int = Field(description="The HTTP status.")
    reason: str = Field(description="Its phrase.")
    message: str = Field(description="What was asked, what came, what to do next.")
    code: str = Field(examples=["COMMON_BAD_PAYLOAD"])
    errors: dict[str, str] = Field(default={}, description="Note by the field that breaks a rule.")


class Error(_Model):
    """An answer other than success."""

    error: ErrorDetails


class CatalogFailure(_Model):
    """An answer of the Catalog other than success."""

    code: str = Field(description="The HTTP status.", examples=["400"])
    description: str


class TokenFailure(_SnakeModel):
    """An answer of the token endpoint other than success (RFC 6749, 5.2)."""

    error: Literal["unsupported_grant_type", "invalid_client"]
    error_description: str


# ---- tokens and accounts ----


class TokenForm(_SnakeModel):
    """Client credentials; id and secret may come by HTTP Basic instead."""

    grant_type: Literal["client_credentials"]
    client_id: str = ""
    client_secret: str = ""


class Token(_SnakeModel):
    """An access token."""

    access_token: str = Field(description="A JSON Web Token; goes into `Authorization: Bearer`.")
    expires_in: int = Field(description="Seconds.")
    refresh_expires_in: int
    token_type: Literal["Bearer"]
    not_before_policy: int = Field(alias="not-before-policy", description="Tokens issued before this are not valid.")
    scope: str


class AccountBalance(_SnakeModel):
    """An account and what it has left."""

    client_id: str
    account_id: str
    balance_pu: float | None = Field(description="Processing units; null never ends.")


class EqualCreates(_SnakeModel):
    """Requests of one account that were created with one body, credentials aside."""

    account_id: str
    ids: list[str]


class Creates(_SnakeModel):
    """The creates that were carried out."""

    executed: int
    repeated: int = Field(description="Those of them that asked for the same again.")
    equal: list[EqualCreates]


class Health(_SnakeModel):
    """localhub answers."""

    status: Literal["ok"]


# ---- Batch Processing ----


class Task(_Model):
    """A batch request."""

    id: str
    request: dict[str, Any] = Field(description="The body it was created with; access keys are shown as ***.")
    domain_account_id: str
    status: Status
    user_action: Action = Field(description="The last one.")
    user_action_updated: datetime | None = None
    created: datetime
    last_updated: datetime
    completion_percentage: float = Field(ge=0, le=100, description="At most 99 until it is DONE.")
    cost_pu: float | None = Field(default=None, alias="costPU", description="Absent before the first tile.")
    error: str | None = Field(default=None, description="Why it is FAILED.")
    stopped_status_reason: str | None = Field(default=None, description="Why it is STOPPED.")


class TaskUpdate(_Model):
    """What can be changed of a batch request."""

    description: str | None = None


class PageLinks(_Model):
    """This page of a list, and its neighbours; what there is none of is absent."""

    id: str = Field(alias="@id")
    current_token: str
    next_token: str | None = None
    next: str | None = None
    previous_token: str | None = None
    previous: str | None = None


class TaskPage(_Model):
    """A page of batch requests."""

    data: list[Task]
    links: PageLinks


class GridProperties(_Model):
    """Sizes of a tiling grid's tiles."""

    tile_width: float
    tile_height: float
    chunk_width: int
    chunk_height: int
    resolutions: list[float]
    single_crs: bool
    unit: str = Field(description="Of tile sizes and resolutions.")


class Grid(_Model):
    """A tiling grid."""

    id: int
    name: str
    properties: GridProperties


class GridPage(_Model):
    """A page of tiling grids."""

    data: list[Grid]
    links: PageLinks


# ---- Catalog ----


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class LandingPage(_Open):
    """The STAC catalog."""

    id: str
    links: list[dict[str, Any]]


class Conformance(_Model):
    """What the Catalog conforms to."""

    conforms_to: list[str]


class Collection(_Open):
    """A STAC collection."""

    id: str
    title: str
    extent: dict[str, Any]
    links: list[dict[str, Any]]


class Collections(_Model):
    """The archive's collections."""

    collections: list[Collection]
    links: list[dict[str, Any]]


class Item(_Open):
    """A scene, as a STAC item; `fields` may leave members out."""

    id: str
    collection: str
    geometry: dict[str, Any]
    properties: dict[str, Any]


class ItemPage(_Open):
    """A page of scenes, or of their dates where distinct ones were asked for."""

    type: Literal["FeatureCollection"]
    features: list[dict[str, Any] | str]
    links: list[dict[str, Any]]


class Queryables(_Open):
    """The JSON schema of what a filter may name."""

    properties: dict[str, Any]


class SearchFields(_SnakeModel):
    """Which members an item of the answer has."""

    include: list[str] = []
    exclude: list[str] = []


class SearchBody(_SnakeModel):
    """What a search for scenes asks for."""

    collections: list[str] = Field(min_length=1, max_length=1)
    datetime_: str = Field(
        alias="datetime", description="A time, or an interval that may be open: 2020-06-01T00:00:00Z/.."
    )
    bbox: list[float] | None = Field(
        default=None, min_length=4, max_length=4, description="West, south, east, north; degrees."
    )
    intersects: dict[str, Any] | None = Field(default=None, description="GeoJSON geometry, in place of bbox.")
    ids: list[str] | None = Field(default=None, description="Items; datetime may be absent then.")
    limit: int = Field(default=LIMIT, ge=1, description=f"At most {MOST} are given.")
    next: int | None = Field(default=None, ge=1, description="As the page before says.")
    fields: SearchFields | None = None
    filter: str | dict[str, Any] | None = Field(default=None, description="CQL2, as text or JSON.")
    filter_lang: Literal["cql2-text", "cql2-json"] | None = Field(default=None, alias="filter-lang")
    filter_crs: str | None = Field(default=None, alias="filter-crs")
    distinct: Literal["date"] | None = Field(default=None, description="Answer with the dates of the scenes only.")
