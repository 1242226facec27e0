"""Parameters: files of both kinds, every problem named with its place, and a form that explains itself."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.parameters import LandCover, parse_config, read_config
from tasks.errors import InvalidInput

CONFIG = {
    "area": {"name": "Ljubljana", "bbox": [14.4, 46.0, 14.6, 46.1]},
    "period": {"start": "2019-04-01", "end": "2019-10-31", "step_days": 10},
    "imagery": {"collection": "sentinel-2-l2a", "cloud_mask": "scl"},
    "reference": None,
    "limits": {"max_pu": 5000},
}


def problems(content: object) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse_config(content, "run.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("name", "write"), [("run.yaml", yaml.safe_dump), ("run.json", json.dumps)])
def test_yaml_and_json_give_the_same_parameters(tmp_path: Path, name: str, write: Any) -> None:
    (tmp_path / name).write_text(write(CONFIG))
    found = read_config(tmp_path / name)
    assert found == LandCover.model_validate(CONFIG)
    assert found.period.start == date(2019, 4, 1)
    assert found.reference is None


def test_dates_of_yaml_need_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "run.yml").write_text("period: {start: 2019-04-01, end: 2019-05-01}\n")
    assert read_config(tmp_path / "run.yml").period.end == date(2019, 5, 1)


def test_an_empty_file_means_the_defaults_which_are_valid(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert read_config(tmp_path / "run.yaml") == LandCover()
    assert LandCover.model_validate(LandCover().model_dump()) == LandCover()
    assert LandCover.model_validate_json(LandCover().model_dump_json()) == LandCover()


def test_every_problem_is_named_with_its_place() -> None:
    first, *rest = problems(
        {
            "area": {"bbox": [1, 2, 3]},
            "period": {"start": "2019-02-01", "end": "2019-01-01"},
            "tiling": {"grid": 9},
            "run": {"tiles_at_once": 0},
            "storage": {"tiles_url": "bucket"},
            "colour": "blue",
        }
    )
    assert first == "The configuration run.yaml has 6 problem(s):"
    places = {line.strip().partition(": ")[0]: line for line in rest}
    assert set(places) == {"area.bbox.3", "period", "tiling.grid", "run.tiles_at_once", "storage.tiles_url", "colour"}
    assert "ends on 2019-01-01, before it starts" in places["period"]
    assert "(came: 9)" in places["tiling.grid"]
    assert "(came: 'bucket')" in places["storage.tiles_url"]


def test_a_secret_that_was_put_into_the_file_is_refused_and_not_repeated() -> None:
    text = "\n".join(problems({"storage": {"secret_key": "hush-hush"}, "service": {"client_secret": "hush-hush"}}))
    assert "storage.secret_key" in text
    assert "service.client_secret" in text
    assert "hush-hush" not in text


@pytest.mark.parametrize("content", [[], "text", 5, False])
def test_a_configuration_that_is_no_mapping_is_refused(content: object) -> None:
    assert problems(content) == ["The configuration run.yaml must be a mapping with keys such as 'area' and 'period'."]


@pytest.mark.parametrize(
    ("name", "content"), [("a.yaml", b"a: [1"), ("a.json", b"{,}"), ("b.yaml", b"\xff\xfe\x00"), ("c.yaml", None)]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"The configuration .*{name} cannot be read"):
        read_config(tmp_path / name)


def described(schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    referred = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    shown = referred | schema
    return bool(shown.get("title")) and bool(shown.get("description"))


def test_every_field_of_the_form_has_a_title_and_a_description() -> None:
    schema = LandCover.model_json_schema()
    models = {**schema["$defs"], "LandCover": schema}
    bare = [
        f"{model}.{name}"
        for model, definition in models.items()
        for name, field in definition.get("properties", {}).items()
        if not described(field, schema["$defs"])
    ]
    assert bare == []


def test_every_field_but_the_parts_themselves_has_an_example() -> None:
    schema = LandCover.model_json_schema()
    bare = [
        f"{model}.{name}"
        for model in ("Area", "Period", "Imagery", "Tiling", "Service", "Storage", "Limits", "Run")
        for name, field in schema["$defs"][model]["properties"].items()
        if not field.get("examples")
    ]
    assert bare == []
