"""The published schema of configurations, as an editor uses it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from flows.parameters import LandCover, parse_config
from flows.schema import config_schema, schema_text
from tests.flows.test_cli import call

DOCS = Path(__file__).parents[2] / "docs"
VALIDATOR = Draft202012Validator(config_schema())


def test_the_published_schema_is_that_of_the_parameters():
    stale = "docs/config.schema.json is stale; renew it with: eopatch-flow schema > docs/config.schema.json"
    assert (DOCS / "config.schema.json").read_text() == schema_text(), stale


def test_the_command_prints_the_published_schema():
    answer = call("schema")
    assert (answer.returncode, answer.stdout) == (0, (DOCS / "config.schema.json").read_text())


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.yaml")), ids=lambda path: path.name)
def test_each_example_names_the_schema_and_fits_it(path: Path):
    modeline, _, text = path.read_text().partition("\n")
    assert modeline == "# yaml-language-server: $schema=config.schema.json"
    assert problems(yaml.safe_load(text)) == []


def test_the_default_parameters_fit_the_schema_with_every_field_written_out():
    assert problems(LandCover().model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"arae": {}}, ""),
        ({"run": {"tiles_at_onec": 2}}, "run"),
        ({"tiling": {"grid": 9}}, "tiling.grid"),
        ({"imagery": {"cloud_mask": "fmask"}}, "imagery.cloud_mask"),
        ({"limits": {"max_pu": "much"}}, "limits.max_pu"),
    ],
)
def test_what_the_program_refuses_the_editor_underlines(content: dict[str, Any], place: str):
    assert problems(content) == [place]
    with pytest.raises(ValueError, match=place or "arae"):
        parse_config(content, "test.yaml")


def test_every_field_has_a_text_that_the_editor_shows():
    models = [config_schema(), *config_schema()["$defs"].values()]
    fields = [(name, field) for model in models for name, field in model["properties"].items()]
    assert [name for name, field in fields if not {"description", "$ref"} & field.keys()] == []  # or its model's own


def test_a_json_file_may_name_its_schema():
    content = {"$schema": "config.schema.json", "area": {"name": "Here"}}
    assert problems(content) == []
    assert parse_config(content, "test.json").area.name == "Here"


def problems(content: Any) -> list[str]:
    """Places of what an editor would underline."""
    as_json = json.loads(json.dumps(content, default=str))  # YAML's dates are texts to an editor
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(as_json)]
