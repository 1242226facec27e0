"""What the form asks about the reference polygons."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tasks.classes import LandCoverClass, known_class
from tasks.form import FormModel
from tasks.reference.address import check_address, is_database, shown
from tasks.reference.classification import as_text


def _without_secret(file: str) -> str:
    check_address(file)
    return file


class ReferenceClass(FormModel):
    """One class of the reference."""

    model_config = ConfigDict(title="Class")

    id: int = Field(
        title="Id",
        description="Value in LULC, 0 to 255; 0 means that there is no reference.",
        examples=[2],
        ge=0,
        le=255,
    )
    name: str | None = Field(
        default=None,
        title="Name",
        description="For LULC_NAME and pictures. Empty: the SI_LULC name of the id, else the id.",
        examples=["FOREST"],
    )
    colour: str | None = Field(
        default=None,
        title="Colour",
        description="#rrggbb, for pictures. Empty: the SI_LULC colour of the id, else another one.",
        examples=["#054907"],
        pattern=r"^#[0-9a-fA-F]{6}$",
    )
    codes: tuple[str, ...] = Field(
        default=(),
        title="Codes",
        description="Values of the class column, text or numbers. One that ends with * stands for all that begin like "
        "it; the longest one counts. Empty: the id.",
        examples=[["2000", "31*"]],
    )
    priority: int = Field(
        default=0,
        title="Priority",
        description="Where polygons overlap, the class with the higher priority wins; with equal ones the later row.",
        examples=[1],
    )

    @field_validator("codes", mode="before")
    @classmethod
    def _codes_are_text(cls, value: object) -> object:
        return [as_text(code) for code in value] if isinstance(value, (list, tuple)) else value


class ReferenceFile(FormModel):
    """One more file or layer."""

    model_config = ConfigDict(title="Further file")

    file: str = Field(title="File", description="As the first file.", examples=["data/water.gpkg"], min_length=1)
    layer: str | None = Field(
        default=None, title="Layer", description="Needed where the file has several.", examples=["rivers"]
    )
    _no_secret = field_validator("file")(_without_secret)

    class_column: str | None = Field(
        default=None, title="Class column", description="Empty: as in the first file.", examples=["CODE"]
    )
    name_column: str | None = Field(
        default=None, title="Name column", description="Empty: as in the first file.", examples=["NAME"]
    )


class Reference(FormModel):
    """Polygons with land-cover classes."""

    model_config = ConfigDict(title="Reference polygons")

    file: str = Field(
        title="File",
        description="GeoPackage, Shapefile, GeoJSON, FlatGeobuf (zipped too) or GeoParquet: a path, or a URL such as "
        "s3://. Or a PostGIS database: postgresql://user@host/database, without a password.",
        examples=["data/land-use.gpkg", "postgresql://reader@db.example.org/land"],
        min_length=1,
    )
    layer: str | None = Field(
        default=None,
        title="Layer",
        description="Needed where the file has several. In a database, table, schema.table or schema.table.column. "
        "Rows have the order of the primary key; without one, of class, name and geometry.",
        examples=["land_use"],
    )
    class_column: str = Field(
        default="LULC_ID",
        title="Class column",
        description="Column with the classes, text or numbers.",
        examples=["LULC_ID"],
        min_length=1,
    )
    name_column: str | None = Field(
        default=None,
        title="Name column",
        description="Column with the classes' names. Empty: LULC_NAME if the file has it, else the class table's.",
        examples=["LULC_NAME"],
    )
    class_table: tuple[ReferenceClass, ...] | None = Field(
        default=None,
        title="Class table",
        description="Which values of the class column are which class. Empty: the values are the ids. In YAML and "
        "Python a mapping from values to ids will do.",
        examples=[[{"id": 2, "name": "FOREST", "colour": "#054907", "codes": ["2000", "31*"]}]],
        min_length=1,
    )
    unmapped: Literal["refuse", "leave out"] = Field(
        default="refuse",
        title="Values that are in no class",
        description="Refuse to run, before anything is bought, or leave these polygons out and list them in the "
        "report.",
        examples=["refuse"],
    )
    more_files: tuple[ReferenceFile, ...] = Field(
        default=(),
        title="Further files",
        description="Further files or layers with the same classes; their polygons cover those of earlier ones.",
        examples=[[{"file": "data/water.gpkg", "class_column": "CODE"}]],
    )
    buffer_m: float = Field(
        default=0.0,
        title="Buffer",
        description="Metres by which polygons grow, or shrink if it is negative, before they become pixels.",
        examples=[-10.0],
        ge=-100_000,
        le=100_000,
    )
    min_area_m2: float = Field(
        default=0.0,
        title="Smallest polygon",
        description="Square metres; smaller polygons are left out. It counts before the buffer.",
        examples=[1000.0],
        ge=0,
    )
    all_touched: bool = Field(
        default=False,
        title="All touched pixels",
        description="A pixel belongs to a polygon that touches it, instead of one that holds its centre.",
        examples=[False],
    )

    credentials_block: str | None = Field(
        default=None,
        title="Database credentials",
        description="Name of a 'PostGIS Credentials (eopatch-flow)' block; empty for PGPASSWORD in the environment.",
        examples=["land-reader"],
    )

    _no_secret = field_validator("file")(_without_secret)

    @field_validator("class_table", mode="before")
    @classmethod
    def _mapping_is_short_for_a_list(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        wrong = {
            as_text(key): number
            for key, number in value.items()
            if not (isinstance(number, int) and 0 <= number <= 255)
        }
        if wrong:
            raise ValueError(f"class ids must be 0 to 255, but the table has {wrong}")
        ids = dict.fromkeys(value.values())
        return [{"id": one, "codes": [key for key, number in value.items() if number == one]} for one in ids]

    @model_validator(mode="after")
    def _each_class_and_code_once(self) -> Self:
        table = self.class_table or ()
        for what, given in (
            ("id", [one.id for one in table]),
            ("code", [code for one in table for code in codes_of(one)]),
        ):
            twice = [str(value) for value, count in Counter(given).items() if count > 1]
            if twice:
                raise ValueError(
                    f"class_table has the {what} {', '.join(twice)} more than once; give each to one class"
                )
        return self

    @property
    def inputs(self) -> tuple["Input", ...]:
        """All files, the first one first."""
        columns, block = (self.class_column, self.name_column), self.credentials_block
        first = Input(self.file, self.layer, *columns, block)
        return first, *(
            Input(one.file, one.layer, one.class_column or columns[0], one.name_column or columns[1], block)
            for one in self.more_files
        )

    @property
    def classes(self) -> tuple[LandCoverClass, ...] | None:
        """The class table's classes with names and colours; None where the values are ids."""
        if self.class_table is None:
            return None
        return tuple(_filled(one) for one in sorted(self.class_table, key=lambda one: one.id))

    @property
    def class_table_sha256(self) -> str:
        """Hash of the class table, without the colours and whatever the order, which Prefect's server does not keep."""
        if self.class_table is None:
            return _sha256(None)
        classes = sorted(self.class_table, key=lambda one: one.id)
        return _sha256([one.model_dump(exclude={"colour"}) | {"codes": sorted(one.codes)} for one in classes])

    @property
    def options_sha256(self) -> str:
        """Hash of everything that changes labels, but the files and the class table."""
        inputs = [[one.layer, one.class_column, one.name_column] for one in self.inputs]
        options = self.model_dump(include={"unmapped", "buffer_m", "min_area_m2", "all_touched"})
        return _sha256([inputs, options])


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a reference.

    Attributes:
        file: path or URL.
        layer: None where the file has only one.
        class_column: exists in the file, or it is refused.
        name_column: the same; None where names come from elsewhere.
        credentials_block: for a database.
    """

    file: str
    layer: str | None
    class_column: str
    name_column: str | None
    credentials_block: str | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"Reference database {shown(self.file)}" if is_database(self.file) else f"Reference file {self.file}"


def codes_of(one: ReferenceClass) -> tuple[str, ...]:
    """Values of the class column that are this class."""
    return one.codes or (str(one.id),)


def _filled(one: ReferenceClass) -> LandCoverClass:
    known = known_class(one.id)
    return LandCoverClass(one.id, one.name or known.name, one.colour or known.colour)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
