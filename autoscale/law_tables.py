"""Tables on the terminal for `fit --table`, `solve`, `carry`: choice of a law, mixture, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .size_transfer import Carried, SizeTransfer
from .token_count import round_token_count

MOST_COLUMNS = 7  # of weights beside a front; more are in the file alone


def fit_lines(fit: Mapping[str, Any]) -> RenderableType:
    """The candidates with their held-out errors, the choice, and reasons for doubt."""
    if "estimate" not in fit:
        return _published_laws(fit["budgets"][-1])
    found = fit["estimate"]
    several = len(found["scores"]) > 1
    table = _table("law", "objective", "sets", *["against eti"] * several)
    for number, score in enumerate(found["scores"]):
        errors = list(score["set_errors"].values())
        table.add_row(
            Text(score["law"], style="bold" if number == 0 else ""),
            f"{score['objective_error']:.4f}",
            f"{sum(errors) / len(errors):.4f}",
            *[f"{score['advantage']:+.1f} s.e."] * several,
        )
    parts: list[RenderableType] = [Text("Held-out errors"), table, Text(found["reason"])]
    for what, error in found["edge_errors"].items():
        where = "token budgets" if what == "tokens" else "model sizes"
        parts.append(Text(f"Largest {where} predicted from the rest: {error:.2%} error."))
    return Group(*parts, *_doubts(found["warnings"]))


def mixture_lines(mixture: Mapping[str, Any]) -> RenderableType:
    """Weights with their intervals, gains, and reasons for doubt."""
    has_intervals = mixture.get("low") is not None
    table = _table("domain", "weight", *(["90% interval"] if has_intervals else []))
    for name, weight in mixture["weights"].items():
        cells = [name, f"{weight:.4f}"]
        if has_intervals:
            cells.append(f"{mixture['low'][name]:.4f} to {mixture['high'][name]:.4f}")
        table.add_row(*cells)
    budget = mixture["token_budget"]
    title = "Best mixture" if budget is None else f"Best mixture at {round_token_count(budget)}"
    parts: list[RenderableType] = [Text(title), table]
    gains = mixture.get("gains") or {}
    if gains:
        rows = _table("baseline", "expected gain", "90% interval", "probability")
        for name, gain in gains.items():
            interval = f"{gain['low']:.4f} to {gain['high']:.4f}"
            rows.add_row(name, f"{gain['expected']:.4f}", interval, f"{gain['probability']:.2f}")
        parts.append(rows)
    if mixture.get("sentence"):
        parts.append(Text(mixture["sentence"]))
    if mixture["duality_gap"] is not None:
        gap = mixture["duality_gap"]
        parts.append(Text(f"No mixture allowed is better by more than {gap:.1g}, by this law."))
    if mixture.get("pareto"):
        parts += [Text("Front between the two objectives"), _front(mixture["pareto"])]
    return Group(*parts, *_doubts(mixture.get("warnings") or []))


def transfer_lines(transfer: SizeTransfer, carried: Carried) -> RenderableType:
    """The curves from one size to another, their held-out errors, and what was carried."""
    sizes = [round_token_count(n) for n in (transfer.from_parameters, transfer.to_parameters)]
    pairs = transfer.pairs
    table = _table("set", "gain", "from floor", "exponent", "to floor", "held-out error", "noise")
    rows = zip(*transfer.curves, transfer.held_out_error, transfer.noise, strict=True)
    for name, numbers in zip(transfer.sets, rows, strict=True):
        table.add_row(name, *(f"{number:.4f}" for number in numbers))
    num_carried = int((~carried.measured).sum())
    parts: list[RenderableType] = [
        Text(f"Losses of {sizes[0]} parameters carried to {sizes[1]}"),
        table,
        Text(
            f"Form {transfer.form}: {transfer.reason}. {pairs.num_pairs} paired runs of "
            f"{pairs.num_mixtures} mixtures."
        ),
        Text(f"{num_carried} runs carried, {int(carried.measured.sum())} measured at that size."),
    ]
    if outside := int(carried.outside.any(axis=1).sum()):
        doubt = f"{outside} of the runs carried have losses beyond those of the paired runs."
        parts += _doubts([doubt])
    return Group(*parts)


def _front(points: Sequence[Mapping[str, Any]]) -> Table:
    names = list(points[0]["weights"])
    shown = names if len(names) <= MOST_COLUMNS else []
    table = _table("point", "first", "second", *shown)
    for number, point in enumerate(points, start=1):
        objectives = [f"{point[key]:.4f}" for key in ("first", "second")]
        weights = [f"{point['weights'][name]:.3f}" for name in shown]
        table.add_row(str(number), *objectives, *weights)
    return table


def _published_laws(budget: Mapping[str, Any]) -> RenderableType:
    table = _table("domain", "exponent", "equivalent", "irreducible", "")
    for law in budget["laws"]:
        numbers = [f"{law[key]:.4g}" for key in ("exponent", "equivalent", "irreducible")]
        table.add_row(law["domain"], *numbers, law["status"].replace("_", " "))
    return table


def _doubts(warnings: list[str]) -> list[Text]:
    return [Text.assemble(("! ", "yellow"), warning) for warning in warnings]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table
