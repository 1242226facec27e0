"""The JSON schema of a configuration: what an editor completes and checks while a person writes YAML or JSON."""

import json
from typing import Any

from flows.parameters import LandCover

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """The schema of the files that ``eopatch-flow run`` reads.

    It is the parameters' own, and lets a file name its schema and leave an optional field empty (null): the form of
    Prefect's UI, for which the models write their schema, adds that by itself.
    """
    schema = LandCover.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        required = model.get("required", ())
        for name, field in model["properties"].items():
            if name not in required and "default" not in field and "type" in field:
                field["type"] = [field["type"], "null"]
    schema["properties"]["$schema"] = {"type": "string", "description": "This schema, for editors."}
    return {"$schema": DIALECT, **schema, "title": "Configuration of eopatch-flow"}


def schema_text() -> str:
    """The schema as it is published in ``docs/config.schema.json``."""
    return json.dumps(config_schema(), indent=2) + "\n"
