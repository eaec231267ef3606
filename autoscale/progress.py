"""How far a long step is, on stderr: a bar on a terminal, a line now and then in a log.

A step is either one that reports what is done of what (`ProgressDisplay.stage`), or a campaign of
training runs side by side (`ProgressDisplay.campaign`). On a terminal it shows a bar, the share
done, the rate, the time taken and the time left; elsewhere one line at the start, at most one
every ten seconds, and one at the end.
"""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .campaign import CampaignProgress

LOG_SECONDS = 10.0
RATE_SECONDS = 30.0
"""The rate is that of the last half minute: a campaign's rate changes as its ranks run dry."""
ACTIVE_SHOWN = 6
_BAR_WIDTH = 24


class Step:
    """One step: what is done, how fast it goes, what is left.

    Attributes:
        name, unit: e.g. "tokenize" and "bytes".
        done, total: in that unit; a total of 0 is not known.
        note: beside the bar.
        active: the parts in progress, a line each.
    """

    def __init__(self, name: str, unit: str, now: float, done: int) -> None:
        self.name, self.unit = name, unit
        self.total, self.note = 0, ""
        self.active: tuple[str, ...] = ()
        self._started, self._first = now, done
        self._readings = deque([(now, done)])

    def update(self, now: float, done: int) -> None:
        if done < self.done:
            self._readings.clear()  # a run starts again: what it had does not count
        self._readings.append((now, done))
        while len(self._readings) > 2 and now - self._readings[1][0] > RATE_SECONDS:
            self._readings.popleft()

    @property
    def now(self) -> float:
        return self._readings[-1][0]

    @property
    def done(self) -> int:
        return self._readings[-1][1]

    @property
    def seconds(self) -> float:
        return self.now - self._started

    @property
    def rate(self) -> float | None:
        """Units a second lately; None before anything moved."""
        (start, before), (end, after) = self._readings[0], self._readings[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def overall_rate(self) -> float | None:
        return (self.done - self._first) / self.seconds if self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """None when it is not known, and at the end."""
        if not self.rate or self.done >= self.total:
            return None
        return (self.total - self.done) / self.rate

    @property
    def share(self) -> str:
        return f"{self.done / self.total:.0%}" if self.total else ""


class _View(Protocol):
    """Where steps are shown."""

    def start(self, step: Step) -> None: ...

    def update(self, step: Step) -> None: ...

    def finish(self, step: Step) -> None: ...

    def close(self) -> None: ...


class ProgressDisplay:
    """Shows the steps of a job; a context manager.

    Args:
        enabled: False on ranks that show nothing.
        console: where to; by default stderr.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._view: _View | None = None
        self._step: Step | None = None

    def __enter__(self) -> Self:
        if self._enabled:
            live = self._console.is_terminal and not self._console.is_dumb_terminal
            self._view = _Bars(self._console) if live else _Lines(self._console)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish()
        if self._view is not None:
            self._view.close()
        self._view = None

    def stage(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """The step `name` has done `done` of `total` units; a total of 0 is not known."""
        self._show(name, done, total, unit)

    def campaign(self, progress: "CampaignProgress") -> None:
        """A campaign of training runs is at `progress`."""
        active = tuple(
            label if run is None or run.loss is None else f"{label}  loss {run.loss:.3f}"
            for label, run in progress.active
        )
        note = f"{progress.finished} of {progress.total} runs"
        self._show(progress.stage, progress.tokens, progress.total_tokens, "tokens", note, active)

    def _show(
        self,
        name: str,
        done: int,
        total: int,
        unit: str,
        note: str = "",
        active: tuple[str, ...] = (),
    ) -> None:
        if self._view is None:
            return
        if self._step is not None and self._step.name != name:
            self._finish()
        is_new = self._step is None
        step = self._step or Step(name, unit, self._clock(), done)
        step.update(self._clock(), done)
        step.total, step.note, step.active = total, note, active
        self._step = step
        (self._view.start if is_new else self._view.update)(step)

    def _finish(self) -> None:
        if self._step is not None and self._view is not None:
            self._view.finish(self._step)
        self._step = None


class _Bars:
    """A live bar with the parts in progress beneath it; finished steps stay as one line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def start(self, step: Step) -> None:
        self.update(step)

    def update(self, step: Step) -> None:
        shown = [Text(f"  {line}", style="dim", no_wrap=True) for line in _shortened(step.active)]
        self._live.update(Group(self._bar(step), *shown))

    def finish(self, step: Step) -> None:
        self._live.update(Text(""))
        self._console.print(Text(_last_line(step)))

    def close(self) -> None:
        self._live.stop()

    def _bar(self, step: Step) -> Table:
        # What has no bound comes last, so that a narrow terminal cuts the least important.
        left = "" if step.seconds_left is None else f"{format_seconds(step.seconds_left)} left"
        row = Table.grid(padding=(0, 1))
        for style in ("bold", "", "", "", "dim", "cyan", "dim"):
            row.add_column(style=style, no_wrap=True)
        row.add_row(
            step.name,
            ProgressBar(total=step.total or None, completed=step.done, width=_BAR_WIDTH),
            step.share,
            format_rate(step.rate, step.unit),
            format_seconds(step.seconds),
            left,
            step.note,
        )
        return row


class _Lines:
    """Plain lines for logs, at most one every `LOG_SECONDS` within a step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._written = 0.0

    def start(self, step: Step) -> None:
        done, total = (format_amount(amount, step.unit) for amount in (step.done, step.total))
        amount = f"{total} to do" if step.total and not step.done else f"{done} done"
        if step.done and step.total:
            amount = f"{done} of {total} done"
        self._write(step, f"{step.name}: {_joined(amount, step.note)}")

    def update(self, step: Step) -> None:
        if step.now - self._written < LOG_SECONDS:
            return
        left = "" if step.seconds_left is None else f"{format_seconds(step.seconds_left)} left"
        done = format_amount(step.done, step.unit)
        parts = (step.share, done, format_rate(step.rate, step.unit), left, step.note)
        self._write(step, f"{step.name}: {_joined(*parts, *_shortened(step.active))}")

    def finish(self, step: Step) -> None:
        self._write(step, _last_line(step))

    def close(self) -> None:
        pass

    def _write(self, step: Step, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._written = step.now


def _last_line(step: Step) -> str:
    end = "done" if step.done >= step.total else f"stopped at {step.share}"
    rate = format_rate(step.overall_rate, step.unit) if step.seconds >= 1 else ""
    amount = f"{format_amount(step.done, step.unit)} in {format_seconds(step.seconds)}"
    return f"{step.name}: {_joined(end, step.note, amount, rate)}"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _shortened(active: tuple[str, ...]) -> list[str]:
    """The first few lines, and how many there are besides."""
    more = len(active) - ACTIVE_SHOWN
    return [*active[:ACTIVE_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def format_amount(amount: float, unit: str) -> str:
    """Three digits with a prefix: `12.3M tokens`, `5.1 MB`, `834 documents`."""
    scales = ((1e12, "T"), (1e9, "G" if unit == "bytes" else "B"), (1e6, "M"), (1e3, "K"))
    scale, prefix = next(((s, p) for s, p in scales if amount >= s), (1.0, ""))
    # rounded before it is divided, so that 999_600 reads 1M
    value = float(f"{amount:.3g}") / scale
    if value >= 1000 and prefix != "T":
        return format_amount(float(f"{amount:.3g}"), unit)
    return f"{value:.4g} {prefix}B" if unit == "bytes" else f"{value:.4g}{prefix} {unit}"


def format_rate(per_second: float | None, unit: str) -> str:
    return "" if per_second is None else f"{format_amount(per_second, unit)}/s"


def format_seconds(seconds: float) -> str:
    """`8.1 s`, `45 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
