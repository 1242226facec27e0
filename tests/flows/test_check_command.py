"""``eopatch-flow check`` as its user calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.check import trial_of
from flows.cli import app
from localhub.engine.limits import DEFAULTS, imposed
from tasks.errors import InvalidInput

TRUE_COLOUR = "//VERSION=3\nreturn [2.5 * B04, 2.5 * B03, 2.5 * B02];\n"
WRONG = """//VERSION=3
function setup() { return {input: ["B04"], output: {bands: 1}}; }
function evaluatePixel(sample) {
  return [samples.B04];
}
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with a script that runs, one that fails, and a file that is no evalscript."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "true_colour.js").write_text(TRUE_COLOUR)
    (tmp_path / "deep" / "wrong.js").write_text(WRONG)
    (tmp_path / "webpack.config.js").write_text("module.exports = {};")
    return tmp_path


def test_a_script_is_told_of(scripts: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(scripts / "true_colour.js")])
    assert result.output.splitlines() == [
        f"runs    {scripts}/true_colour.js",
        "          reads   sentinel-2-l2a, SIMPLE: B04, B03, B02 (REFLECTANCE)",
        "          makes   default: 3 bands AUTO",
        "          costs   1.27 PU a tile of 1,000 x 1,000 pixels by Batch, 3.81 by the Process API",
        "1 of 1 evalscripts run.",
    ]
    assert result.exit_code == 0


def test_nothing_is_left_of_the_limits_in_this_process(scripts: Path) -> None:
    CliRunner().invoke(app, ["check", str(scripts)])
    assert imposed() == DEFAULTS


def test_a_folder_is_gone_through_and_a_failure_ends_with_status_1(scripts: Path) -> None:
    command = [str(Path(sys.executable).with_name("eopatch-flow")), "check", str(scripts)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1, result.stderr
    assert f"fails   {scripts}/deep/wrong.js" in result.stdout
    assert "evalscript.js:4: ReferenceError: samples is not defined" in result.stdout
    assert "no evalscript of version 3" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 of 2 evalscripts run, 1 fail; 1 files skipped."


def test_json_has_the_same(scripts: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(scripts), "--json"])
    found = {Path(entry["path"]).name: entry for entry in json.loads(result.stdout)}
    assert {name: entry["state"] for name, entry in found.items()} == {
        "true_colour.js": "runs",
        "wrong.js": "fails",
        "webpack.config.js": "skipped",
    }
    assert found["true_colour.js"]["outputs"][0] == {
        "id": "default",
        "bands": 3,
        "sample_type": "AUTO",
        "nodata_value": None,
    }
    assert found["true_colour.js"]["readings"][0]["units"] == dict.fromkeys(("B04", "B03", "B02"), "REFLECTANCE")


def test_json_has_what_json_has_no_number_for_as_text(tmp_path: Path) -> None:
    floats = WRONG.replace("samples", "sample").replace("bands: 1", "bands: 1, sampleType: 'FLOAT32', nodataValue: NaN")
    (tmp_path / "a.js").write_text(floats)
    (tmp_path / "b.js").write_bytes(b"//VERSION=3\nreturn [B04] // \xfcber")
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    runs, fails = json.loads(result.stdout, parse_constant=pytest.fail)
    assert (runs["state"], runs["outputs"][0]["nodata_value"]) == ("runs", "nan")
    assert (fails["state"], fails["error"][:24]) == ("fails", "It is no text in UTF-8: ")


def test_what_steers_a_terminal_is_not_printed(tmp_path: Path) -> None:
    script = tmp_path / "bell.js"
    script.write_text(TRUE_COLOUR.replace("return", "console.log('\\x1b[31m', '\\n\\u202e'); return"))
    result = CliRunner().invoke(app, ["check", str(script)])
    assert "note    it prints:  [31m" in result.output
    assert not set(result.output) & {"\x1b", "\u202e"}


def test_many_outputs_of_one_kind_take_one_line(tmp_path: Path) -> None:
    outputs = "Array.from({length: 40}, (_, i) => ({id: 'o' + i, bands: 1}))"
    all_of_them = f"Object.fromEntries({outputs}.map(({{id}}) => [id, [s.B04]]))"
    (tmp_path / "many.js").write_text(
        f"//VERSION=3\nsetup = () => ({{input: ['B04'], output: {outputs}}}); evaluatePixel = (s) => {all_of_them};"
    )
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert "makes   o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, 28 more: 1 band AUTO each\n" in result.output


def test_the_projects_own_script_runs() -> None:
    root = Path(__file__).parents[2]
    result = CliRunner().invoke(app, ["check", str(root / "evalscripts"), "--acquisitions", "5"])
    assert "runs" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((None, 12, "R,,B"), "--bands is 'R,,B'"),
        (("31.8.2026", 12, None), "--end is '31.8.2026'; give a day such as 2026-08-31"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: tuple[str | None, int, str | None], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        trial_of(*arguments)


@pytest.mark.parametrize(("name", "reason"), [("nothing.js", "cannot be read"), ("empty", r"has no file \*\.js")])
def test_a_path_without_scripts_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["check", str(tmp_path / name)])
    assert result.exit_code == 2
    assert re.search(reason, " ".join(result.stderr.replace("│", " ").split()))
