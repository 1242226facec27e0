"""Where a reference may lie, and that no message has a secret."""

import pytest
from pydantic import ValidationError

from flows.parameters import parse_config
from tasks.errors import InvalidInput
from tasks.reference import Reference


@pytest.mark.parametrize(
    "file",
    [
        "postgresql://me:hunter2@db.example.org/land",
        "postgres://db.example.org/land?user=me&password=hunter2",
        "postgresql://db.example.org/land?PASSWORD=hunter2",
        "postgresql://db.example.org/land?pass%77ord=hunter2",
        "postgresql://db.example.org/land?sslpassword=hunter2",
        "postgresql://db.example.org/land?sslmode=require;password=hunter2",
        "postgresql://me:@db.example.org/land",
        "postgresql://me:hun#hunter2@db/land",
        "postgresql://me:hun?hunter2@db/land",
        "postgresql://me:hun/hunter2@db/land",
        "postgresql://me:hun@hunter2@db/land",
        " postgresql://me:hunter2@db/land",
        "PostgreSQL://me:hunter2@db/land",
        "postgresql+psycopg2://me:hunter2@db/land",
        "postgis://me:hunter2@db/land",
        "me:hunter2@db/land",
        "PG:host=db user=me password=hunter2",
        "pg:host=db user=me PASSWORD = hunter2",
        "host=db password=hunter2",
        "s3://key:hunter2@bucket/land.gpkg",
        "s3://key:hun/hunter2@bucket/land.gpkg",
        "s3://key://hunter2@bucket/land.gpkg",
        "https://me:hunter2@example.org/land.gpkg",
        "postgresql://db/land?dbname=host%3Ddb%20password%3Dhunter2",
        "postgresql://db/land?dbname=host%3Ddb%20scram_client_key%3Dhunter2",
        "postgresql://db/land?options=-c%20my.password%3Dhunter2",
    ],
)
def test_a_password_is_refused_and_not_repeated(file: str) -> None:
    for given in ({"file": file}, {"file": "r.gpkg", "more_files": [{"file": file}]}):
        with pytest.raises(ValidationError, match=r"password in .*leave it out: .*postgresql://user@host/") as caught:
            Reference.model_validate(given)
        with pytest.raises(InvalidInput, match=r"reference.*file: there is a password") as printed:
            parse_config({"reference": given}, "june.yaml")
        assert "hunter2" not in str(caught.value) + str(printed.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("postgresql://me:hunter2/land", "the database's URL is not understood; give it as postgresql://user@host/"),
        ("postgresql://me@[db/land", "the database's URL is not understood"),
        ("PG:host=db user=me", "PG: is not read; give a database as postgresql://user@host/database, and the password"),
        ("https://example.org/land.gpkg?token=hunter2", "https:// is not read; give a local path, s3://bucket/key, or"),
        ("/vsicurl/https://me:hunter2@example.org/land.gpkg", "that begin with /vsi are not read; give a local path"),
        ("/vsizip//vsicurl/https://example.org/land.zip?token=hunter2", "not read; give a local path .of a zipped"),
        (" //./vsis3/bucket/land.gpkg", "begin with /vsi are not read; give a local path .*, s3://bucket/key, or a"),
        ("gs://bucket/land.gpkg", "gs:// is not read; give a local path, s3://bucket/key, or a database as postgresql"),
    ],
)
def test_what_is_not_read_is_answered_with_what_is(file: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Reference(file=file)
    with pytest.raises(InvalidInput, match=message) as printed:
        parse_config({"reference": {"file": file}}, "june.yaml")
    assert "hunter2" not in str(printed.value)


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("postgres://me@db:5433/land?sslmode=require", "Reference database postgresql://me@db:5433/land"),
        (
            "postgresql://me%40there@/land?host=/run/pg&passfile=x",
            "Reference database postgresql://me%40there@/run/pg/land",
        ),
        ("data/a:b@c.gpkg", "Reference file data/a:b@c.gpkg"),
        ("s3://bucket/land.gpkg", "Reference file s3://bucket/land.gpkg"),
        ("s3://bucket/me@example.org/a:b@c.gpkg", "Reference file s3://bucket/me@example.org/a:b@c.gpkg"),
        ("s3://arn:aws:s3:eu:1:accesspoint/maps/me@c", "Reference file s3://arn:aws:s3:eu:1:accesspoint/maps/me@c"),
    ],
)
def test_messages_call_a_reference_by_what_tells_it_from_others(file: str, title: str) -> None:
    assert Reference(file=file).inputs[0].title == title
