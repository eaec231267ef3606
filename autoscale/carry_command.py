"""`autoscale carry`: a table of runs of two sizes, made a table of runs of the larger size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .loss_curves import FormName
from .run_table import Metric
from .run_table_file import read_run_table, write_run_table
from .size_transfer import Carried, SizeTransfer, carry_runs, fit_size_transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryOptions:
    """How to carry losses; see `fit_size_transfer`.

    Attributes:
        to_parameters: the target's model size.
        from_parameters: the size to carry from; None where the table has one other.
        form: "auto", or the name of one.
        perplexity: the losses of the table are perplexities.
        metric: unit of the losses otherwise.
        draws: of the bootstrap.
        seed: of the draws.
    """

    to_parameters: float
    from_parameters: float | None = None
    form: FormName | Literal["auto"] = "auto"
    perplexity: bool = False
    metric: Metric = "nats"
    draws: int = 200
    seed: int = 0


def carry_file(path: Path, output: Path, options: CarryOptions) -> tuple[SizeTransfer, Carried]:
    """Carry the losses of a table and write it for `fit --table`.

    `note/low/<set>` and `note/high/<set>` are bounds of 90% intervals, `note/origin` says which
    runs were measured at the target's size and which were carried there.

    Raises:
        ValueError: the table cannot be read, or has too few runs at both sizes.
    """
    table = read_run_table(path, perplexity=options.perplexity, metric=options.metric)
    transfer = fit_size_transfer(
        table,
        to_parameters=options.to_parameters,
        from_parameters=options.from_parameters,
        form=options.form,
        num_draws=options.draws,
        seed=options.seed,
    )
    carried = carry_runs(table, transfer)
    bounds = {"low": carried.low, "high": carried.high}
    write_run_table(
        output,
        carried.table,
        notes={
            "origin": ["measured" if here else "carried" for here in carried.measured],
            **{
                f"{bound}/{name}": values[:, j].tolist()
                for j, name in enumerate(transfer.sets)
                for bound, values in bounds.items()
            },
        },
    )
    return transfer, carried
