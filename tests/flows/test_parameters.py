"""Parameters: files of both kinds, every problem named with its place, and a form that explains itself."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import Scheduled
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from flows.land_cover import land_cover
from flows.parameters import LandCover, parse_config, read_config, today
from tasks.errors import InvalidInput
from tasks.evalscript import Imagery
from tasks.plan import FIRST_SCENES, Area, Period, TimeRange, check_archive
from tasks.storage import Storage

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


@pytest.mark.parametrize(
    "file",
    [
        "postgresql://u:hush@db.example.org/land",
        "PG:host=db password=hush",
        "/vsicurl/https://u:hush@example.org/area.gpkg",
        "s3://key:hush@bucket/area.gpkg",
        "https://u:hush@example.org/area.gpkg",
    ],
)
def test_an_area_file_with_a_secret_is_refused_and_not_repeated(file: str) -> None:
    told = problems(CONFIG | {"area": {"name": "Ljubljana", "file": file}})
    assert "area.file: " in told[1]
    assert "hush" not in "".join(told)
    for good in ("data/area.gpkg", "s3://bucket/me@example.org/area.gpkg", None):
        assert parse_config(CONFIG | {"area": {"name": "Ljubljana", "file": good}}, "x").area.file == good
    assert "a database is no area file" in problems(CONFIG | {"area": {"file": "postgresql://u@db/land"}})[1]


def test_where_a_real_service_is_paid_area_and_period_must_be_said() -> None:
    real = CONFIG | {"service": {"base_url": "https://services.sentinel-hub.com"}}
    assert parse_config(real, "run.yaml").area.name == "Ljubljana"
    for missing in (["area"], ["period"], ["area", "period"]):
        [problem] = problems({name: value for name, value in real.items() if name not in missing})
        assert f"does not say {' and '.join(missing)}" in problem
        assert "https://services.sentinel-hub.com would be paid for localhub's sample" in problem


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


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    text = "\n".join(
        problems(
            {
                "service": {
                    "base_url": "https://me:hush-hush@hub.example.org",
                    "token_url": "https://a:hush-hush@b.org/t",
                },
                "storage": {"endpoint_url": "http://me:hush-hush@127.0.0.1:8333"},
            }
        )
    )
    assert all(place in text for place in ("service.base_url", "service.token_url", "storage.endpoint_url"))
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


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    yaml_file, json_file = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml_file.write_text("limits: {max_pu: 10}\nrun: {quicklooks: 0}\nlimits: {max_pu: 100000}\n")
    with pytest.raises(InvalidInput, match=r"a\.yaml cannot be read: 'limits' stands in line 1 and again in line 3"):
        read_config(yaml_file)
    yaml_file.write_text("limits:\n  max_pu: 10\n  max_pu: 100000\n")
    with pytest.raises(InvalidInput, match="'max_pu' stands in line 2 and again in line 3"):
        read_config(yaml_file)
    json_file.write_text('{"limits": {"max_pu": 10, "max_pu": 100000}}')
    with pytest.raises(InvalidInput, match="'max_pu' stands twice"):
        read_config(json_file)
    yaml_file.write_text("run: {quicklooks: 0}\nlimits: {max_pu: 10}\n")
    assert read_config(yaml_file).limits.max_pu == 10


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"aera": {}}, "aera: there is no such parameter; did you mean 'area'? There are: area, features"),
        ({"period": {"stepdays": 5}}, "period.stepdays: there is no such parameter; did you mean 'step_days'?"),
        ({"tiling": {"resolution": 5}}, "tiling.resolution: there is no such parameter; did you mean 'resolution_m'?"),
        ({"limits": {"xyz": 5}}, "limits.xyz: there is no such parameter. There are: approval_hours, ask_above_pu, "),
        ({"features": {"features": [{"skale": 1}]}}, "features.features.0.skale: there is no such parameter; did you"),
    ],
)
def test_a_key_that_is_no_parameter_is_told_with_what_may_be_meant(content: dict[str, Any], told: str) -> None:
    assert any(line.strip().startswith(told) for line in problems(content)[1:])


def test_a_mistake_in_a_list_is_told_once() -> None:
    first, *rest = problems({"reference": {"file": "x.gpkg", "class_table": [{"codes": 2, "id": 2}]}})
    assert first == "The configuration run.yaml has 1 problem(s):"
    assert rest[0].strip().startswith("reference.class_table.0.codes")


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


# ---- periods that move along ----


@pytest.mark.parametrize(
    ("days", "today", "start", "end"),
    [
        ("last full month", "2024-03-01", "2024-02-01", "2024-02-29"),
        ("last full month", "2023-03-31", "2023-02-01", "2023-02-28"),
        ("last full month", "2024-01-01", "2023-12-01", "2023-12-31"),
        ("last full month", "2023-12-31", "2023-11-01", "2023-11-30"),
        ("last 3 months", "2024-02-15", "2023-11-01", "2024-01-31"),
        ("last 6 months", "2024-07-01", "2024-01-01", "2024-06-30"),
        ("last 12 months", "2024-03-01", "2023-03-01", "2024-02-29"),
        ("last 12 months", "2024-02-29", "2023-02-01", "2024-01-31"),
        ("last 12 months", "2024-01-01", "2023-01-01", "2023-12-31"),
        ("last full quarter", "2024-01-01", "2023-10-01", "2023-12-31"),
        ("last full quarter", "2024-03-31", "2023-10-01", "2023-12-31"),
        ("last full quarter", "2024-04-01", "2024-01-01", "2024-03-31"),
        ("last full year", "2024-12-31", "2023-01-01", "2023-12-31"),
        ("last full year", "2025-01-01", "2024-01-01", "2024-12-31"),
        ("last 30 days", "2024-03-01", "2024-01-31", "2024-02-29"),
        ("last 30 days", "2023-01-01", "2022-12-02", "2022-12-31"),
    ],
)
def test_days_that_move_along_lie_behind_the_day(days: Any, today: str, start: str, end: str) -> None:
    found = Period(days=days).on(date.fromisoformat(today))
    assert (str(found.start), str(found.end), found.step_days) == (start, end, 15)


@given(st.dates(date(2016, 1, 1), date(2100, 12, 31)))
def test_full_months_follow_each_other_without_a_gap(day: date) -> None:
    found = Period(days="last full month").on(day)
    following = Period(days="last full month").on(found.end + timedelta(days=32))
    assert following.start == found.end + timedelta(days=1)
    assert (found.start.day, found.end < day) == (1, True)


def test_days_that_are_given_do_not_move() -> None:
    given = Period(start=date(2019, 1, 1), end=date(2019, 3, 10))
    assert given.on(date(2030, 1, 1)) == TimeRange(date(2019, 1, 1), date(2019, 3, 10), 15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"days": "last full month", "start": "2024-01-01"}, "given twice, by days 'last full month' and by start;"),
        ({"days": "last full year", "start": "2024-01-01", "end": "2024-02-01"}, "by start and end; empty the latter"),
        ({}, "period needs start and end, but has neither"),
        ({"start": "2024-01-01"}, "period needs start and end, but has start alone"),
        ({"days": "last month"}, "'last full month'"),
        ({"days": "last full month", "step_days": 29}, "step of 29 days is longer than the period of 28 days"),
    ],
)
def test_a_period_is_given_once_and_is_never_shorter_than_a_step(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Period.model_validate(content)
    assert Period(days="last full month", step_days=28).step_days == 28


def test_outside_of_a_run_the_day_is_today() -> None:
    before = datetime.now(UTC).date()
    assert before <= today() <= datetime.now(UTC).date()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("moment", ["2024-03-01T00:00:00+00:00", "2024-02-29T23:30:00-01:00"])
def test_a_run_that_is_late_and_retried_asks_for_the_days_that_were_meant(moment: str) -> None:
    seen: list[tuple[int, date]] = []

    @flow(retries=1, flow_run_name=lambda: f"asked on {today()}")
    def late() -> None:
        seen.append((flow_run.run_count, today()))
        if len(seen) == 1:
            raise RuntimeError("the first try fails")

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(late), "late")  # type: ignore[arg-type]
        meant = Scheduled(scheduled_time=datetime.fromisoformat(moment))  # type: ignore[arg-type]
        run = client.create_flow_run_from_deployment(deployment, state=meant)
        run_flow(late, flow_run=run)
        assert client.read_flow_run(run.id).name == "asked on 2024-03-01"
    assert seen == [(1, date(2024, 3, 1)), (2, date(2024, 3, 1))]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("2014-01-01", "2015-06-26", "ends on 2015-06-26, before Sentinel-2's first scenes of 2015-06-27"),
        ("2024-01-01", "2024-03-02", "ends on 2024-03-02, but today is 2024-03-01"),
    ],
)
def test_a_period_that_the_archive_cannot_have_is_refused(start: str, end: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_archive(TimeRange(date.fromisoformat(start), date.fromisoformat(end)), date(2024, 3, 1))
    check_archive(TimeRange(date(2015, 1, 1), FIRST_SCENES), date(2024, 3, 1))
    check_archive(TimeRange(date(2024, 2, 1), date(2024, 3, 1)), date(2024, 3, 1))


# ---- the form ----


def form() -> dict[str, Any]:
    return dict(parameter_schema(land_cover).model_dump_for_openapi())


def test_the_server_takes_the_defaults_of_the_form_back_empty_fields_included() -> None:
    content = LandCover().model_dump(mode="json")
    assert content["area"]["file"] is None
    assert validate(content, form()) == []
    wrong = content | {"period": content["period"] | {"days": "some day"}}
    assert [list(error.path) for error in validate(wrong, form())] == [["period", "days"]]


def test_an_optional_field_is_one_plain_input_in_the_form() -> None:
    choices = {
        f"{model}.{name}"
        for model, definition in form()["definitions"].items()
        for name, field in definition.get("properties", {}).items()
        if "anyOf" in field
    }
    assert choices == {"FeatureMapping.quality_output", "FeatureRule.sample_type", "Storage.endpoint_url"}
    period = form()["definitions"]["Period"]["properties"]
    assert (period["start"]["type"], period["start"]["format"]) == ("string", "date")
    assert period["days"]["enum"][:2] == ["first to last day", "last 30 days"]


def test_the_fields_of_the_form_keep_their_order_where_the_server_does_not() -> None:
    shuffled = json.loads(json.dumps(form(), sort_keys=True))
    assert len(shuffled["definitions"]) > 12
    for model, definition in form()["definitions"].items():
        fields = shuffled["definitions"][model]["properties"]
        assert sorted(fields, key=lambda name: fields[name]["position"]) == list(definition["properties"]), model


def test_an_emptied_input_is_none() -> None:
    assert Area.model_validate({"name": "x", "file": ""}).file is None
    assert Storage.model_validate({"credentials_block": "", "region": ""}).credentials_block is None
    with pytest.raises(ValidationError, match="name"):
        Area.model_validate({"name": ""})


def test_the_order_of_indices_is_lost_on_the_server_and_makes_no_other_work() -> None:
    pairs = {"NDVI": ["B08", "B04"], "NBR": ["B08", "B12"]}
    one, other = (Imagery.model_validate({"indices": dict(items)}) for items in (pairs.items(), [*pairs.items()][::-1]))
    assert list(one.indices) == list(other.indices) == ["NBR", "NDVI"]
    assert list(Imagery().indices) == sorted(Imagery().indices)


def test_no_secret_is_a_parameter_and_a_misplaced_one_is_refused_and_not_repeated() -> None:
    names = {name.lower() for part in form()["definitions"].values() for name in part.get("properties", {})}
    assert not [name for name in names if "secret" in name or "password" in name or "access_key" in name]
    misplaced = {"storage": {"secret_key": "hush-hush"}, "service": {"client_secret": "hush-hush"}}
    assert len(validate(misplaced, form())) == 2  # so that the server refuses such a run, and does not store it
    with pytest.raises(ParameterTypeError, match=r"storage\.secret_key") as caught:
        land_cover.validate_parameters(misplaced)
    assert "hush-hush" not in str(caught.value)
