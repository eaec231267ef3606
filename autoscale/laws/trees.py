"""Gradient-boosted trees, the non-parametric yardstick (RegMix, Liu et al., arXiv 2407.01492).

One LightGBM regression a validation set, on the weights and the logarithms of tokens and model
size. No gradients, no extrapolation beyond the runs seen. Needs the extra `autoscale[trees]`.
"""

# J validation sets, P runs, K domains

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..run_table import RunTable
from .mixture_term import Index

Array = NDArray[np.float64]

SETTINGS = {
    "objective": "regression",
    "learning_rate": 0.01,
    "num_threads": 1,
    "seed": 0,
    "deterministic": True,
    "verbosity": -1,
}
NUM_TREES = 1000  # learning rate and number of trees as published
LEAST_IN_LEAF = 20  # LightGBM's own default, less with few runs


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError as error:
        raise ValueError(
            "law 'trees' needs LightGBM, which is not installed: pip install 'autoscale[trees]'"
        ) from error
    return lightgbm  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TreeLaw:
    """Trees for every validation set, with the interface of `FittedLaw`.

    Attributes:
        domains: training domains, K of them.
        sets: validation sets, J of them.
        metric: unit of the losses.
        models: LightGBM's text format, one a set.
        uses_tokens: tokens are a feature.
        uses_parameters: model size is a feature.
    """

    domains: tuple[str, ...]
    sets: tuple[str, ...]
    metric: str
    models: tuple[str, ...]
    uses_tokens: bool
    uses_parameters: bool
    _boosters: list[Any] = field(default_factory=list, repr=False)

    law = "trees"

    @classmethod
    def fit(cls, table: RunTable, rows: Index | None = None) -> Self:
        """Fit to the rows (all by default) of a table."""
        table.check_for_fit()
        lightgbm = _lightgbm()
        rows = np.arange(table.num_runs) if rows is None else rows
        law = cls(
            domains=table.domains,
            sets=table.sets,
            metric=table.metric,
            models=(),
            uses_tokens=table.has_budgets,
            uses_parameters=table.has_sizes,
        )
        features = law._features(table.weights, table.tokens, table.parameters)[rows]
        leaf = max(2, min(LEAST_IN_LEAF, len(rows) // 10))
        models = tuple(
            lightgbm.train(
                SETTINGS | {"min_data_in_leaf": leaf},
                lightgbm.Dataset(features, losses_P[rows]),
                NUM_TREES,
            ).model_to_string()
            for losses_P in table.losses.T
        )
        return cls.from_dict({**law.to_dict(), "models": models})

    def predict(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        """Losses of runs, shape (num_runs, num_sets); arguments as in `FittedLaw.predict`."""
        if not self._boosters:
            lightgbm = _lightgbm()
            self._boosters.extend(lightgbm.Booster(model_str=text) for text in self.models)
        features = self._features(weights, tokens, parameters)
        return np.stack([model.predict(features) for model in self._boosters], axis=1)

    def surface(self, tokens: float | None, parameters: float | None) -> "TreeSurface":
        """Losses as functions of the weights at one budget and size."""
        return TreeSurface(self, tokens, parameters)

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "domains": list(self.domains),
            "sets": list(self.sets),
            "metric": self.metric,
            "models": list(self.models),
            "uses_tokens": self.uses_tokens,
            "uses_parameters": self.uses_parameters,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            domains=tuple(record["domains"]),
            sets=tuple(record["sets"]),
            metric=record["metric"],
            models=tuple(record["models"]),
            uses_tokens=record["uses_tokens"],
            uses_parameters=record["uses_parameters"],
        )

    def _features(
        self, weights: ArrayLike, tokens: ArrayLike | None, parameters: ArrayLike | None
    ) -> Array:
        weights_PK = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        columns = [weights_PK]
        for used, counts, what in (
            (self.uses_tokens, tokens, "tokens"),
            (self.uses_parameters, parameters, "parameters"),
        ):
            if used:
                if counts is None:
                    raise ValueError(f"the trees were fitted with {what}; give them to predict too")
                counts_P = np.broadcast_to(np.asarray(counts, np.float64), len(weights_PK))
                columns.append(np.log(counts_P)[:, None])
        return np.hstack(columns)


def predict_held_out_trees(table: RunTable, folds_P: Index) -> Array:
    """Losses of every run by trees fitted to the other folds, shape (num_runs, num_sets)."""
    predicted_PJ = np.full((table.num_runs, table.num_sets), np.nan)
    for number in np.unique(folds_P[folds_P >= 0]):
        law = TreeLaw.fit(table, np.flatnonzero(folds_P != number))
        held = table.select(np.flatnonzero(folds_P == number))
        predicted_PJ[folds_P == number] = law.predict(held.weights, held.tokens, held.parameters)
    return predicted_PJ


class TreeSurface:
    """See `LawSurface`; piecewise constant, so that only the losses exist."""

    convex = False
    differentiable = False

    def __init__(self, law: TreeLaw, tokens: float | None, parameters: float | None) -> None:
        self.law, self.tokens, self.parameters = law, tokens, parameters
        self.domains, self.sets = law.domains, law.sets

    def losses(self, weights: ArrayLike) -> Array:
        """Losses in the law's metric, shape (..., num_sets) for weights (..., num_domains)."""
        array = np.asarray(weights, dtype=np.float64)
        rows = array.reshape(-1, array.shape[-1])
        return self.law.predict(rows, self.tokens, self.parameters).reshape(*array.shape[:-1], -1)
