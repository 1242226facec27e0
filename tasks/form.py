"""What the parameter models have in common: they are the form that Prefect makes of them, as well as a YAML file."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def fit_the_form(schema: dict[str, Any]) -> None:
    """Number the fields, and show each that may be empty as one plain input.

    Prefect's UI sorts fields by ``position``; without it a server over PostgreSQL, whose JSONB keeps no order, would
    shuffle them. And where a field may be empty, the form would ask for its type first. The server still takes null
    for such a field: it adds that to the type of every field that is not required and has no default in the schema
    (Prefect, ``schema_tools.validation``). A dropdown it would not let be empty.
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1 and "type" in kinds[0] and "enum" not in kinds[0] and field.get("default") is None:
            del field["anyOf"]
            field.pop("default", None)
            field.update(kinds[0])


class FormModel(BaseModel):
    """Parameters of one concern. Errors do not repeat what was entered: it may be a misplaced secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, json_schema_extra=fit_the_form)

    @model_validator(mode="before")
    @classmethod
    def _empty_text_is_nothing(cls, value: Any) -> Any:
        """Take an emptied input of the form for none, where none is the default."""
        if not isinstance(value, dict):
            return value
        optional = {
            name for name, field in cls.model_fields.items() if not field.is_required() and field.default is None
        }
        return {name: None if given == "" and name in optional else given for name, given in value.items()}


@dataclass(frozen=True, slots=True)
class EmptyIs:
    """Annotation of a parameter that may be None: what the form calls that choice.

    Attributes:
        title: in place of "None".
        other: in place of the type's name, of the other choice; None leaves it.
    """

    title: str
    other: str | None = None

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Give each choice its title."""
        schema = handler(core)
        for choice in schema.get("anyOf", ()):
            if choice.get("type") == "null":
                choice["title"] = self.title
            elif self.other is not None:
                choice["title"] = self.other
        return schema
