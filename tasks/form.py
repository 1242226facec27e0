"""How the parameters look in the form that Prefect makes of them."""

from typing import Any


def plain_optionals(schema: dict[str, Any]) -> None:
    """Show each field that may be empty as one plain input, where the form would ask for its type first.

    To be given as ``json_schema_extra`` of a model. The server still takes null for such a field: it adds that to the
    type of every field that is not required and has no default in the schema (Prefect, ``schema_tools.validation``).
    """
    for field in schema.get("properties", {}).values():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1 and "type" in kinds[0] and field.get("default") is None:
            del field["anyOf"]
            field.pop("default", None)
            field.update(kinds[0])
