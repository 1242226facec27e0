import pytest

from tasks.quality import LabelQuality, quality_csv, read_quality_csv, together

FIRST = LabelQuality({0: 50, 2: 30, 7: 20}, 12, 2, 5, 1, 3, {"99, bog": 4, "x": 1})
SECOND = LabelQuality({2: 100}, 1, 0, 0, 0, 0, {"x": 2})


def test_the_file_beside_the_data_gives_back_what_was_written() -> None:
    text = quality_csv({"b": FIRST, "a": SECOND}, "print")

    assert text.splitlines()[0].startswith("tile,reference,coverage,polygons,overlapping,overlap_pixels,")
    assert read_quality_csv(text, "print") == {"a": SECOND, "b": FIRST}


def test_very_many_unmapped_values_of_a_tile_are_given_back() -> None:
    many = LabelQuality({0: 5}, 0, 0, 0, 0, 0, {f"parcel {number:07d}": 1 for number in range(8000)})

    assert read_quality_csv(quality_csv({"a": many}, "print"), "print") == {"a": many}


def test_a_damaged_file_is_told_by_one_kind_of_error() -> None:
    with pytest.raises(ValueError, match="not a file of labels' quality: new-line character"):
        read_quality_csv("tile,reference\na\rb,print\n", "print")


def test_rows_about_another_reference_are_not_taken() -> None:
    assert read_quality_csv(quality_csv({"a": FIRST}, "print"), "other") == {}


def test_json_gives_back_what_was_written() -> None:
    assert LabelQuality.from_json(FIRST.as_json()) == FIRST


def test_tiles_are_added_up() -> None:
    whole = together([FIRST, SECOND])

    assert whole == LabelQuality({0: 50, 2: 130, 7: 20}, 13, 2, 5, 1, 3, {"99, bog": 4, "x": 3})
    assert whole.coverage == 0.75
    assert together([]).coverage == 0.0
