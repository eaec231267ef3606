"""Losses of a small model carried to a larger one: loss-to-loss curves, one a validation set.

    L_large = K (L_small - E_small)^kappa + E_large

fitted to paired runs: the same mixture, tokens and seed at both sizes. Shifted power laws relate
losses across training sets and tests (Brandfonbrener et al., arXiv 2411.12925: train-to-train,
train-to-test, test-to-test), along curves that depend on the data and hardly on the architecture
(Mayilvahanan et al., arXiv 2502.12120). Both papers vary the compute and take the irreducible
losses E from fits of scaling laws; here mixtures vary, the two models are the ends of the curve,
and the E are fitted with K and kappa, between 0 and the least loss seen. Few pairs carry a special
case with fewer parameters: the line (kappa = 1) or one factor (kappa = 1, both E = 0).
"""

# N pairs, J validation sets, M mixtures, P runs, S draws

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from .loss_curves import NUM_PARAMETERS, Curves, FormName, fit_curves
from .run_table import SAME_AMOUNT, Array, RunTable

Index = NDArray[np.int64]

SAME_SIZE = 0.02
"""Relative difference of parameter counts that count as one size."""
CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Losses of the same mixture, tokens and seed at two sizes; replicates without seeds averaged.

    Attributes:
        small: shape (num_pairs, num_sets).
        large: of the same shape.
        mixtures: numbers from 0, shape (num_pairs,): pairs of one mixture share theirs.
    """

    small: Array
    large: Array
    mixtures: Index

    @property
    def num_pairs(self) -> int:
        return len(self.small)

    @property
    def num_mixtures(self) -> int:
        return int(self.mixtures.max()) + 1 if self.num_pairs else 0

    def carry(self, form: FormName) -> bool:
        """Whether a form can be fitted with any one mixture left out."""
        if self.num_mixtures < 2:
            return False
        fewest = self.num_pairs - int(np.bincount(self.mixtures).max())
        return fewest >= NUM_PARAMETERS[form]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizeTransfer:
    """Curves from one model size to another, with what is known of their errors.

    Attributes:
        form: which of the forms, for all validation sets.
        reason: why this form, in a sentence.
        sets: the J validation sets.
        from_parameters: size of the small models.
        to_parameters: size of the large models.
        pairs: what the curves were fitted to.
        curves: parameters, shape (J,).
        draws: bootstrap draws over mixtures, shape (S, J).
        held_out: losses of the large model predicted with their mixture left out, shape (N, J).
        noise: residual standard deviation, shape (J,).
    """

    form: FormName
    reason: str
    sets: tuple[str, ...]
    from_parameters: float
    to_parameters: float
    pairs: Pairs
    curves: Curves
    draws: Curves
    held_out: Array
    noise: Array

    @property
    def degrees_of_freedom(self) -> int:
        return self.pairs.num_pairs - NUM_PARAMETERS[self.form]

    @property
    def held_out_error(self) -> Array:
        """Mean absolute error with the pair's mixture left out, shape (J,)."""
        return np.asarray(np.abs(self.held_out - self.pairs.large).mean(axis=0))

    def half_widths(self, small_losses: Array) -> Array:
        """Of 90% intervals for single runs of the large model, shape (P, J).

        Noise and spread of the draws, but no less than the held-out errors: those of few pairs, or
        of the runs of one mixture, are larger than what is left of them in the fit.
        """
        spread_PJ = self.draws.rows(None).at(small_losses).std(axis=0, ddof=1)
        held_out_J = np.sqrt(((self.held_out - self.pairs.large) ** 2).mean(axis=0))
        quantile = student.ppf((1 + CONFIDENCE) / 2, self.degrees_of_freedom)
        return np.asarray(quantile * np.maximum(np.hypot(self.noise, spread_PJ), held_out_J))

    def outside(self, small_losses: Array) -> NDArray[np.bool_]:
        """Which losses lie outside those of the pairs, shape (P, J): there a curve extrapolates."""
        low_J, high_J = self.pairs.small.min(axis=0), self.pairs.small.max(axis=0)
        return np.asarray((small_losses < low_J) | (small_losses > high_J))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Carried:
    """Runs at the target's size: measured where they were trained there, carried elsewhere.

    Attributes:
        table: first the runs measured, then those carried, under the names of the small runs.
        low: bounds of 90% intervals, shape (P, J); the loss itself where it was measured.
        high: likewise.
        measured: shape (P,).
        outside: which losses were carried from beyond the pairs' losses, shape (P, J).
    """

    table: RunTable
    low: Array
    high: Array
    measured: NDArray[np.bool_]
    outside: NDArray[np.bool_]


def fit_size_transfer(
    table: RunTable,
    *,
    to_parameters: float,
    from_parameters: float | None = None,
    form: FormName | Literal["auto"] = "auto",
    num_draws: int = 200,
    seed: int = 0,
) -> SizeTransfer:
    """Fit curves from one size of a table's models to another.

    Args:
        table: runs of both sizes with losses; some mixtures at both.
        to_parameters: the target's size; some run has it, within 2%.
        from_parameters: the other size; None where the table has one other only.
        form: "auto" takes a form with more parameters only where its held-out errors are smaller
            by more than one standard error over mixtures.
        num_draws: bootstrap draws over mixtures, at least 2.
        seed: of the draws.

    Raises:
        ValueError: a size has no runs, or there are too few paired runs; says how many are needed.
    """
    if not table.sets:
        raise ValueError("the runs have no losses; carrying them needs loss/<set> columns")
    small_P, large_P = _at_sizes(table, from_parameters, to_parameters)
    pairs = pair_runs(table, small_P, large_P)
    assert table.parameters is not None
    chosen, held_out, reason = _choose(pairs, form)
    everything_1N = np.ones((1, pairs.num_pairs))
    curves = Curves(
        *(values[0] for values in fit_curves(chosen, pairs.small, pairs.large, everything_1N))
    )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x512E]))
    weights_SM = rng.exponential(size=(num_draws, pairs.num_mixtures))  # Rubin's bootstrap, 1981
    squares_J = ((curves.at(pairs.small) - pairs.large) ** 2).sum(axis=0)
    return SizeTransfer(
        form=chosen,
        reason=reason,
        sets=table.sets,
        from_parameters=float(table.parameters[small_P][0]),
        to_parameters=float(table.parameters[large_P][0]),
        pairs=pairs,
        curves=curves,
        draws=fit_curves(chosen, pairs.small, pairs.large, weights_SM[:, pairs.mixtures]),
        held_out=held_out,
        noise=np.sqrt(squares_J / (pairs.num_pairs - NUM_PARAMETERS[chosen])),
    )


def carry_runs(table: RunTable, transfer: SizeTransfer) -> Carried:
    """All runs of the two sizes as runs of the larger: see `Carried`.

    A small run that has a partner at the target's size is left to that partner.
    """
    small_P, large_P = _at_sizes(table, transfer.from_parameters, transfer.to_parameters)
    keys = _pair_keys(table)
    partners = set(keys[large_P].tolist())
    alone_P = small_P & np.array([key not in partners for key in keys.tolist()])
    here = table.select(large_P)
    measured_P = np.ones(here.num_runs, dtype=bool)
    nothing = np.zeros((here.num_runs, table.num_sets))
    if not alone_P.any():
        return Carried(
            table=here, low=here.losses, high=here.losses, measured=measured_P, outside=nothing > 0
        )
    small = table.select(alone_P)
    carried = replace(
        small,
        parameters=np.full(small.num_runs, transfer.to_parameters),
        losses=transfer.curves.at(small.losses),
    )
    half_PJ = np.concatenate([nothing, transfer.half_widths(small.losses)])
    joined = RunTable.concatenate([here, carried])
    return Carried(
        table=joined,
        low=joined.losses - half_PJ,
        high=joined.losses + half_PJ,
        measured=np.concatenate([measured_P, np.zeros(small.num_runs, dtype=bool)]),
        outside=np.concatenate([nothing > 0, transfer.outside(small.losses)]),
    )


def pair_runs(table: RunTable, small_P: NDArray[np.bool_], large_P: NDArray[np.bool_]) -> Pairs:
    """Pair the runs of two sizes by mixture, tokens and seed."""
    keys, groups_P = _pair_keys(table), table.mixture_groups()
    both = np.intersect1d(keys[small_P], keys[large_P])
    means = [
        [table.losses[rows & (keys == key)].mean(axis=0) for key in both]
        for rows in (small_P, large_P)
    ]
    shape = (len(both), table.num_sets)
    mixtures = [groups_P[np.argmax(keys == key)] for key in both]
    return Pairs(
        small=np.array(means[0]).reshape(shape),
        large=np.array(means[1]).reshape(shape),
        mixtures=np.unique(mixtures, return_inverse=True)[1].astype(np.int64).reshape(-1),
    )


def _choose(pairs: Pairs, form: FormName | Literal["auto"]) -> tuple[FormName, Array, str]:
    """The form, its held-out predictions (N, J), and the reason in a sentence."""
    able = [name for name in NUM_PARAMETERS if pairs.carry(name)]
    if not able or (form != "auto" and form not in able):
        raise ValueError(_too_few(pairs, "factor" if form == "auto" else form))
    if form != "auto":
        return form, _held_out(form, pairs), "asked for"
    held = {name: _held_out(name, pairs) for name in able}
    chosen = able[0]
    for name in able[1:]:
        fall_M = _mixture_errors(held[chosen], pairs) - _mixture_errors(held[name], pairs)
        if fall_M.mean() > fall_M.std(ddof=1) / np.sqrt(len(fall_M)):
            chosen = name
    reason = "no form with more parameters has smaller held-out errors by one standard error"
    missing = [f"{name} needs {_needed(name)}" for name in NUM_PARAMETERS if name not in able]
    if missing:
        reason = f"of {pairs.num_mixtures} paired mixtures; {', '.join(missing)}"
    return chosen, held[chosen], reason


def _held_out(form: FormName, pairs: Pairs) -> Array:
    """Every pair's large loss from the pairs of other mixtures, shape (N, J)."""
    others_MN = (pairs.mixtures != np.arange(pairs.num_mixtures)[:, None]).astype(np.float64)
    curves = fit_curves(form, pairs.small, pairs.large, others_MN)
    return curves.rows(pairs.mixtures).at(pairs.small)


def _mixture_errors(held_out_NJ: Array, pairs: Pairs) -> Array:
    """Mean absolute error of every mixture, shape (M,)."""
    error_N = np.abs(held_out_NJ - pairs.large).mean(axis=1)
    return np.asarray(np.bincount(pairs.mixtures, error_N) / np.bincount(pairs.mixtures))


def _at_sizes(
    table: RunTable, from_parameters: float | None, to_parameters: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which runs have the smaller and which the target's size, two masks of shape (P,)."""
    if table.parameters is None:
        raise ValueError(
            "the runs have no parameters, so that sizes cannot be told apart; add a column "
            "parameters"
        )
    sizes = list(_distinct(table.parameters, SAME_SIZE))
    shown = ", ".join(f"{size:.4g}" for size in sizes)
    large_P = _near(table.parameters, to_parameters)
    if not large_P.any():
        raise ValueError(
            f"no run has {to_parameters:.4g} parameters, the size to carry losses to; the table "
            f"has {shown}. Train a few of the mixtures at that size too: 2 at least, better "
            f"{_needed('shifted_power')}"
        )
    if from_parameters is None:
        others = [size for size in sizes if abs(size / to_parameters - 1) > SAME_SIZE]
        if len(others) != 1:
            raise ValueError(
                f"the table has runs of {shown} parameters; say which of them to carry losses from "
                "(--from-parameters)"
            )
        [from_parameters] = others
    small_P = _near(table.parameters, from_parameters)
    if not small_P.any() or (small_P & large_P).any():
        raise ValueError(
            f"runs of {from_parameters:.4g} parameters cannot be carried to {to_parameters:.4g}: "
            f"expected two sizes of the table, which has {shown}"
        )
    return small_P, large_P


def _near(counts: Array, wanted: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(counts / wanted - 1) <= SAME_SIZE)


def _distinct(counts: Array, tolerance: float) -> Iterator[float]:
    """The least count of every group of counts that lie within the tolerance of each other."""
    last = 0.0
    for count in np.sort(counts).tolist():
        if count > (1 + tolerance) * last:
            yield count
        last = count


def _pair_keys(table: RunTable) -> Index:
    """Numbers of shape (P,): runs of one mixture, budget and seed share one."""
    columns = [table.mixture_groups()]
    if table.tokens is not None:
        budgets = np.array(list(_distinct(table.tokens, SAME_AMOUNT)))
        columns.append(np.searchsorted(budgets, table.tokens, side="right"))
    if table.seeds is not None:
        columns.append(np.array(table.seeds))
    keys = np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1]
    return np.asarray(keys.reshape(-1), dtype=np.int64)


def _needed(form: FormName) -> int:
    """Mixtures, with one pair each, that a form needs so that one can be left out."""
    return NUM_PARAMETERS[form] + 1


def _too_few(pairs: Pairs, form: FormName) -> str:
    return (
        f"{pairs.num_pairs} paired run(s) of {pairs.num_mixtures} mixture(s) were found, with the "
        f"same weights, tokens and seed at both sizes; form {form!r} has {NUM_PARAMETERS[form]} "
        f"parameter(s) and needs {_needed(form)} paired mixtures, one of them to be left out. "
        "Train more of the mixtures at both sizes"
    )
