"""Progress: told to a listener, to a terminal, or to the log."""

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from flows import terminal
from flows.progress import Progress, listening, tell


def test_a_listener_gets_everything_within_its_block_and_nothing_after() -> None:
    heard: list[Progress] = []
    with listening(heard.append):
        tell("Convert", 1, 4)
        tell("Convert", 4, 4, "all")
    tell("Convert", 2, 4)
    assert heard == [Progress("Convert", 1, 4), Progress("Convert", 4, 4, "all")]
    assert [one.finished for one in heard] == [False, True]


def test_a_listener_within_another_hears_alone() -> None:
    outer: list[Progress] = []
    inner: list[Progress] = []
    with listening(outer.append):
        with listening(inner.append):
            tell("a", 1, 2)
        tell("b", 1, 2)
    assert ([one.stage for one in outer], [one.stage for one in inner]) == (["b"], ["a"])


def test_a_listener_that_fails_is_forgotten() -> None:
    def fail(_: Progress) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError), listening(fail):
        tell("a")
    tell("a", 1, 2)


def test_without_a_listener_the_log_gets_ends_and_notes_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("prefect.eopatch_flow")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="prefect.eopatch_flow"):
            tell("Convert", 1, 4)
            tell("Convert", 2, 4, "a note")
            tell("Convert", 4, 4)
            tell("Servers")
    finally:
        logger.removeHandler(caplog.handler)
    messages = dict.fromkeys(record.getMessage() for record in caplog.records)
    assert list(messages) == ["Convert 2/4: a note", "Convert 4/4", "Servers"]


def plain(*told: Progress) -> list[str]:
    out = io.StringIO()
    show = terminal._plain_lines(Console(file=out, width=40))
    for one in told:
        show(one)
    return out.getvalue().splitlines()


def test_without_a_terminal_a_stage_is_told_of_once_when_it_ends() -> None:
    steps = [Progress("Convert", done, 3) for done in range(4)]
    assert plain(*steps, Progress("Convert", 3, 3)) == ["Convert              3/3  "]


def test_without_a_terminal_a_long_stage_is_told_of_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_LINE_SECONDS", 0.0)
    assert len(plain(*(Progress("Process", done, 3) for done in range(4)))) == 4


def test_what_a_stage_says_is_a_plain_line_at_once() -> None:
    told = plain(Progress("Ownership", note="Waiting for run a"), Progress("Repair", note="Ordering 1 tiles again"))
    assert [line.split(maxsplit=1)[1].strip() for line in told] == ["Waiting for run a", "Ordering 1 tiles again"]


@pytest.mark.parametrize("note", ["[Errno 111] refused", "[red]no style[/red]", "a [/] b", "[link=x]"])
def test_a_note_is_text_whatever_brackets_it_has(note: str) -> None:
    assert note in plain(Progress("Process", 3, 3, note))[0]
    out = io.StringIO()
    with Bars(TextColumn("{task.fields[note]}"), console=Console(file=out, width=80)) as bars:
        terminal._bars(bars)(Progress("Process", 3, 3, note))
    assert note in out.getvalue()
