"""Events of a run, for Prefect's automations; the resource is the area, and Prefect adds run, flow and deployment.

They carry figures, places and reasons, never parameters, and a server that takes no events costs no run.
"""

from typing import Any, Literal

from prefect.events import emit_event

from flows.order import Order
from tasks.report import plain_words

EventName = Literal["plan.ready", "tile.failed", "budget.exceeded", "done"]
TEXT_LETTERS = 500
"""Longer texts are cut."""


def emit(order: Order, name: EventName, **payload: str | float | list[str] | None) -> None:
    """Send ``eopatch-flow.<name>`` about the area, with its title, folder of results and ``payload``."""
    area = order.parameters.area.name
    resource = {"prefect.resource.id": f"eopatch-flow.area.{plain_words(area)}", "prefect.resource.name": area}
    content: dict[str, Any] = {"title": order.title, "folder": order.folder} | payload
    emit_event(
        event=f"eopatch-flow.{name}",
        resource=resource,
        payload={key: value[:TEXT_LETTERS] if isinstance(value, str) else value for key, value in content.items()},
    )
