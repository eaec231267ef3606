import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from autoscale.execution import Progress
from autoscale.progress import (
    ProgressDisplay,
    Step,
    format_amount,
    format_rate,
    format_seconds,
)


@dataclass
class Campaign:
    """The fields of `campaign.CampaignProgress`, which lives beside torch."""

    stage: str = "probe"
    finished: int = 0
    total: int = 4
    tokens: int = 0
    total_tokens: int = 1_000_000
    active: tuple = ()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A display that writes into a string, on a terminal or into a log."""

    def __init__(self, *, terminal: bool, enabled: bool = True) -> None:
        self.stream, self.clock = io.StringIO(), Clock()
        console = Console(
            file=self.stream, force_terminal=terminal, width=120, _environ={"TERM": "xterm"}
        )
        self.display = ProgressDisplay(enabled=enabled, console=console, clock=self.clock)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_log_gets_a_line_at_the_start_every_ten_seconds_and_at_the_end():
    screen = Screen(terminal=False)
    with screen.display as display:
        for second in range(0, 26):
            screen.clock.now = float(second)
            display.stage("tokenize", second * 1_000_000, 25_000_000)
    assert screen.lines == [
        "tokenize: 25 MB to do",
        "tokenize: 40%, 10 MB, 1 MB/s, 15 s left",
        "tokenize: 80%, 20 MB, 1 MB/s, 5.0 s left",
        "tokenize: done, 25 MB in 25 s, 1 MB/s",
    ]


def test_a_new_step_ends_the_one_before():
    screen = Screen(terminal=False)
    with screen.display as display:
        display.stage("read", 5, 5, "documents")
        display.stage("tokenize", 0, 8)
    assert screen.lines == [
        "read: 5 documents of 5 documents done",
        "read: done, 5 documents in 0.0 s",
        "tokenize: 8 B to do",
        "tokenize: stopped at 0%, 0 B in 0.0 s",
    ]


def test_a_campaign_shows_its_runs_with_their_losses():
    screen = Screen(terminal=False)
    active = (
        ("probe-80K-arxiv-up3", Progress(tokens=1, total_tokens=2, loss=4.5678)),
        ("probe-80K-c4-up3", None),
    )
    with screen.display as display:
        display.campaign(Campaign())
        screen.clock.now = 20.0
        display.campaign(Campaign(tokens=500_000, finished=1, active=active))
        screen.clock.now = 40.0
        display.campaign(Campaign(tokens=1_000_000, finished=4))
    assert screen.lines == [
        "probe: 1M tokens to do, 0 of 4 runs",
        "probe: 50%, 500K tokens, 25K tokens/s, 20 s left, 1 of 4 runs, "
        "probe-80K-arxiv-up3  loss 4.568, probe-80K-c4-up3",
        "probe: 100%, 1M tokens, 25K tokens/s, 4 of 4 runs",
        "probe: done, 4 of 4 runs, 1M tokens in 40 s, 25K tokens/s",
    ]


def test_many_active_runs_are_counted_not_listed():
    screen = Screen(terminal=False)
    with screen.display as display:
        display.campaign(Campaign())
        screen.clock.now = 20.0
        display.campaign(Campaign(active=tuple((f"run{i}", None) for i in range(30))))
    assert "run5, and 24 more" in screen.lines[1]


def test_a_terminal_gets_a_live_bar_with_rate_and_time_left():
    screen = Screen(terminal=True)
    active = (("probe-80K-arxiv-up3", Progress(tokens=1, total_tokens=2, loss=4.5678)),)
    with screen.display as display:
        display.campaign(Campaign())
        screen.clock.now = 5.0
        display.campaign(Campaign(tokens=100_000, active=active))
        display._view._live.refresh()
    text = screen.stream.getvalue()
    for expected in ("10%", "20K tokens/s", "45 s left", "0 of 4 runs", "loss 4.568", "\u2501"):
        assert expected in text
    assert "probe: stopped at 10%" in text


def test_a_rank_that_is_not_enabled_shows_nothing():
    screen = Screen(terminal=True, enabled=False)
    with screen.display as display:
        display.stage("read", 0, 5)
        display.campaign(Campaign())
    assert screen.stream.getvalue() == ""


def test_an_error_ends_the_display_and_passes_through():
    screen = Screen(terminal=True)
    with pytest.raises(RuntimeError, match="rank 1 is gone"), screen.display as display:
        display.stage("read", 1, 5)
        raise RuntimeError("rank 1 is gone")
    assert "read: stopped at 20%" in screen.stream.getvalue()


def test_an_unknown_total_has_no_share_and_no_time_left():
    screen = Screen(terminal=False)
    with screen.display as display:
        display.stage("read", 0, 0, "documents")
        screen.clock.now = 10.0
        display.stage("read", 50, 0, "documents")
    assert screen.lines[:2] == ["read: 0 documents done", "read: 50 documents, 5 documents/s"]


def test_the_rate_forgets_what_was_long_ago():
    step = Step("probe", "tokens", 0.0, 0)
    for second in range(1, 101):
        step.update(float(second), 1_000 * min(second, 50) + 10 * max(second - 50, 0))
    assert step.rate == pytest.approx(10)


def test_a_run_that_starts_again_gives_no_negative_rate():
    step = Step("probe", "tokens", 0.0, 0)
    step.update(1.0, 500)
    step.update(2.0, 100)
    assert step.rate is None
    step.update(3.0, 300)
    assert step.rate == 200


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0, "tokens", "0 tokens"), (834, "documents", "834 documents"),
        (999_600, "tokens", "1M tokens"), (12_345_678, "tokens", "12.3M tokens"),
        (2.5e9, "tokens", "2.5B tokens"), (5_100_000, "bytes", "5.1 MB"),
        (2.5e9, "bytes", "2.5 GB"), (0.25, "documents", "0.25 documents"),
        (3e15, "tokens", "3000T tokens"),
    ],
)  # fmt: skip
def test_amounts_have_three_digits(amount, unit, text):
    assert format_amount(amount, unit) == text


def test_an_unknown_rate_is_left_out():
    assert format_rate(None, "tokens") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (8.14, "8.1 s"), (9.97, "10 s"), (59.7, "1 min 00 s"),
        (245, "4 min 05 s"), (7800, "2 h 10 min"), (3599.9, "1 h 00 min"),
    ],
)  # fmt: skip
def test_seconds_read_like_a_clock(seconds, text):
    assert format_seconds(seconds) == text
