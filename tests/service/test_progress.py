"""The live display: plain lines now and then, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from service.progress import ProgressDisplay, duration
from workers.report import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[ProgressDisplay, io.StringIO, Clock]:
    output, clock = io.StringIO(), Clock()
    return ProgressDisplay(Console(file=output, width=40), clock), output, clock


def test_off_a_terminal_a_line_comes_at_most_every_ten_seconds():
    display, output, clock = plain()
    with display:
        for step in range(1, 100):
            clock.now = step * 0.5
            display.show(Progress("training", step, 600, loss=9.0))
    steps = [int(line.split()[2].split("/")[0]) for line in output.getvalue().splitlines()]
    assert steps == [1, 21, 41, 61, 81]


def test_a_new_phase_and_the_last_step_are_told_at_once():
    display, output, clock = plain()
    with display:
        display.show(Progress("starting", 0, 3))
        for step, phase in enumerate(["training", "training", "recovering", "training"]):
            clock.now += 0.1
            display.show(Progress(phase, step, 3))
    phases = [line.split()[0] for line in output.getvalue().splitlines()]
    assert phases == ["starting", "training", "recovering", "training"]


def test_a_line_holds_the_figures_that_are_known():
    display, output, _ = plain()
    with display:
        display.show(Progress("starting", 0, 600))
        display.show(Progress("training", 120, 600, 5.12345, 7412.3, 0.671, 130.4))
    first, second = output.getvalue().splitlines()
    assert first == "starting  step 0/600"
    assert second == ("training  step 120/600  loss 5.123  7,412 tokens/s  memory usage 67%  2:10 left")


@pytest.mark.parametrize("no_color", [True, False])
def test_a_terminal_shows_a_bar_and_is_given_back(no_color: bool):
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, no_color=no_color, color_system="standard")
    interrupted = False
    try:
        with ProgressDisplay(console) as display:
            display.show(Progress("training", 120, 600, 5.12345, 7412.3, None, 130.4))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    text = output.getvalue()
    assert "120/600" in text
    assert "loss 5.123  7,412 tokens/s  2:10 left" in text
    assert "memory" not in text  # a dense model
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown again
    coloured = any(f"\x1b[{code}m" in text for code in range(31, 38))
    assert coloured is not no_color


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (130, "2:10"), (3599.7, "1:00:00"), (3723, "1:02:03")],
)
def test_durations_are_rounded_as_a_whole(seconds: float, text: str):
    assert duration(seconds) == text
