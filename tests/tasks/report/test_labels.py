from tasks.classes import LandCoverClass
from tasks.quality import LabelQuality
from tasks.report.labels import LabelReport, label_rows, labels_markdown

FULL = LabelQuality({2: 90, 200: 10}, 12, 2, 5, 1, 0, {})
HALF = LabelQuality({0: 50, 2: 50}, 3, 0, 0, 0, 3, {"bog|x": 4, "99": 1})


def test_the_summary_tells_classes_coverage_overlaps_repairs_and_what_was_left_out() -> None:
    report = LabelReport(
        tiles={"a": FULL, "b": HALF},
        classes=[LandCoverClass(2, "Gozd", "#00ff00"), LandCoverClass(200, "Drugo", "#ff0000")],
        findings={"too small": 7, "without a polygon": 0},
        file="s3://bucket/report/reference.csv",
    )

    text = labels_markdown(report)

    assert "| 2 Gozd | 140 | 70.0% |" in text
    assert "| 200 Drugo | 10 | 5.0% |" in text
    assert "| 0 no reference | 50 | 25.0% |" in text
    assert "**Coverage**: 75.0% of 200 pixels in 2 tiles" in text
    assert "**Overlaps**: 5 pixels lie in several of 2 polygons" in text
    assert "**Repaired**: 1 polygons had invalid geometries" in text
    assert r"3 with a null class, 5 with a value in no class, 7 too small (bog\|x: 4, 99: 1)" in text
    assert "`s3://bucket/report/reference.csv`" in text


def test_without_a_class_table_classes_have_their_si_lulc_names() -> None:
    text = labels_markdown(LabelReport(tiles={"a": FULL}))

    assert "| 2 FOREST |" in text
    assert "| 200 200 |" in text
    assert "**Left out**: nothing" in text


def test_without_labels_there_is_no_section() -> None:
    assert labels_markdown(LabelReport(tiles={})) == ""


def test_the_table_begins_with_the_tile_that_is_covered_least() -> None:
    rows = label_rows({"a": FULL, "b": HALF})

    assert [row["tile"] for row in rows] == ["b", "a"]
    assert rows[0] == {
        "tile": "b",
        "coverage": "50.0%",
        "classes": "1",
        "polygons": "3",
        "overlap": "0 pixels of 0 polygons",
        "repaired": "0",
        "without class": "3",
        "unmapped": "bog|x: 4, 99: 1",
    }
