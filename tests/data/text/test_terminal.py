"""What a command shows while it works: bars on a terminal, plain lines elsewhere, one rank only."""

import io
import re

import pytest
from rich.console import Console

from data.text import terminal
from data.text.escaping import print_text


class Screen(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    return clock


def screen_of(monkeypatch):
    """A terminal of 80 columns; within a test, because pytest replaces stderr after fixtures."""
    screen = Screen()
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_pipe_gets_a_line_now_and_then_with_the_time_that_is_left(capsys, clock):
    for _ in terminal.tracked(range(100), "scoring", 100):
        clock.seconds += 1.0
    lines = capsys.readouterr().err.splitlines()
    # A line at 30 s or later after the last; 30 of 100 took 30 s, so 70 are left.
    assert lines == [
        "scoring: 30 of 100, 0:01:10 left",
        "scoring: 60 of 100, 0:00:40 left",
        "scoring: 90 of 100, 0:00:10 left",
    ]


def test_a_short_step_says_nothing_in_a_pipe(capsys):
    assert list(terminal.tracked("abc", "short", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", [("RANK", "1"), (terminal.QUIET, "1")])
def test_other_ranks_and_quiet_commands_say_nothing(variable, clock, monkeypatch):
    screen = screen_of(monkeypatch)
    monkeypatch.setenv(*variable)
    terminal.say("a line")
    for _ in terminal.tracked(range(3), "scoring", 3):
        clock.seconds += 60.0
    assert screen.getvalue() == ""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv(terminal.QUIET, raising=False)
    terminal.say("a line")
    assert without_colours(screen.getvalue()) == "a line\n"


def test_forced_colours_draw_no_bars_into_a_log(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console(stderr=True).is_terminal  # rich takes the log for a terminal
    with terminal.step("scoring", 3) as step:
        step.advance(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_nested_bars_lines_above_them_and_its_cursor_back(monkeypatch):
    screen = screen_of(monkeypatch)
    with terminal.step("train", 20) as outer:
        bars = terminal._live[0]
        for task in bars.tasks:
            task.start_time -= 2.0  # a bar is drawn where a step lasts
        outer.at(10, "loss 0.5 [red]")
        with terminal.step("scoring", 1_000) as inner:
            bars.tasks[1].start_time -= 2.0
            inner.at(400, "a note that is far too long for a terminal of eighty columns")
            terminal.say("a line")
            bars.refresh()
        assert terminal._live  # the outer one goes on
    assert not terminal._live
    drawn = screen.getvalue()
    text = without_colours(drawn)
    assert "10/20     0:00:02, 0:00:02 left loss 0.5 [red]" in text
    assert "400/1,000 0:00:02, 0:00:03 left a note that is far" in text  # 600 at 200 a second
    assert "a line" in re.split(r"[\r\n]", text)
    assert max(map(len, re.split(r"[\r\n]", text))) <= 80
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_a_step_that_fails_takes_its_bar_away(monkeypatch):
    screen = screen_of(monkeypatch)
    with pytest.raises(ZeroDivisionError), terminal.step("train", 2):
        raise ZeroDivisionError
    assert not terminal._live
    assert "\x1b[?25h" in screen.getvalue()


def test_a_terminal_breaks_a_line_between_words_below_its_second_column():
    stream = io.StringIO()
    line = "  train      4800 functions, 2400 vulnerable; tokens mean 144"
    print_text(Console(file=stream, force_terminal=True, width=40), [line])
    assert stream.getvalue().splitlines() == [
        "  train      4800 functions, 2400",
        "             vulnerable; tokens mean 144",
    ]
    stream = io.StringIO()
    print_text(Console(file=stream, width=40), [line])  # a pipe has no width
    assert stream.getvalue() == f"{line}\n"
