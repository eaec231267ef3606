"""From an experiment to its runs: the specs of all probe and target runs, without running any.

Everything that can be wrong with an experiment and its data is found here, before compute is spent.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import ExperimentConfig, named_mixture
from .config_data import ModelConfig
from .config_method import BudgetConfig, DilocoConfig
from .constraints import Constraints, Group, weight_bounds
from .deepspeed_file import load_deepspeed_file
from .execution import Execution
from .initial_weights import require_fitting, weights_digest
from .manifest import Manifest
from .mixture import Mixture, largest_remainder, require_same_names
from .model_shape import check_masked, model_size, resolve_model
from .probes import Design, ProbeRun, design_probes
from .runs import RunSpec, RunStore
from .supply import Supplies, Supply
from .token_count import format_token_count
from .tokenizer import mask_token_id
from .validation_sets import make_objective, training_domains, validation_sets


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedProbe:
    """A probe run of one budget with its spec.

    Attributes:
        token_budget: as the experiment file gives it; the run's own tokens are in the spec.
        parameters: of the model that it trains.
        probe: its place in the design.
        spec: what it trains.
    """

    token_budget: int
    parameters: int
    probe: ProbeRun
    spec: RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTarget:
    """A target run: the mixture called `mixture` under one seed."""

    mixture: str
    seed: int
    spec: RunSpec


class Experiment:
    """A checked experiment: its config with the data that it names.

    Attributes:
        domains: names of the domains that runs train on.
        sets: names of the validation sets that runs are measured on, those of `domains` first.

    Raises:
        ValueError: the data, the model or the DeepSpeed file do not fit the config.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        if not config.manifest_path.is_file():
            raise ValueError(
                f"{config.manifest_path} does not exist; run `autoscale prepare` first, or check "
                "data.manifest"
            )
        self.manifest = Manifest.load(config.manifest_path)
        self.manifest.check()
        self.store = RunStore(root=Path(config.output_dir) / "runs")
        self.domains = training_domains(config, self.manifest)
        self.sets = validation_sets(config, self.manifest, self.domains)
        # What no run uses is no part of any run's identity.
        self.data_fingerprint = self.manifest.of_runs(self.domains, self.sets).fingerprint
        self.deepspeed = load_deepspeed_file(config.trainer.deepspeed)
        stage = self.deepspeed.get("zero_optimization", {}).get("stage", 0)
        if stage == 0 and config.trainer.precision == "bf16":
            raise ValueError(
                f"trainer.precision 'bf16' with ZeRO stage 0 ({config.trainer.deepspeed}): there "
                "DeepSpeed sums gradients in bf16 and takes an optimiser step of its own at the "
                "start, so runs would differ from those of other stages; use zero1.json or fp32"
            )
        self.model = self._resolve_model(config.model)
        self.probe_models = [
            self._resolve_model(budget.model) if budget.model else self.model
            for budget in config.probe.budgets
        ]
        check_masked(
            [self.model, *self.probe_models], packing=config.data.packing, metric=config.fit.metric
        )
        self._folder_of_weights: dict[str, str] = {}
        self._start_from = self._initial_weights(config.model, self.model)
        self._probes_start_from = [
            self._initial_weights(config.probe_model(budget), model)
            for budget, model in zip(config.probe.budgets, self.probe_models, strict=True)
        ]
        self._supplies = Supplies(
            self.manifest,
            self.domains,
            sets=self.sets,
            sequence_length=config.data.sequence_length,
            packing=config.data.packing,
        )
        supply = self._supplies.of_share(1.0)
        self.num_windows, self.available_tokens = supply.windows.tolist(), supply.tokens.tolist()
        self.reference = config.reference_mixture(self.domains, self.available_tokens)
        prior = config.solve.prior
        self.prior = (
            None
            if prior is None
            else named_mixture(prior.mixture, self.domains, self.available_tokens)
        )
        self.objective = make_objective(config, self.manifest, domains=self.domains, sets=self.sets)
        for _, budget in config.budgets():
            self.constraints(budget.tokens).check()
        for baseline in config.train.baselines:
            if baseline.weights is not None:
                self.mixture(baseline.weights)
        self.later_mixtures = [
            named_mixture(stage.weights, self.domains, self.available_tokens)
            for stage in config.train.stages
        ]

    def share(self, token_budget: int) -> float:
        """Of every domain's documents that runs of a budget draw from."""
        if not self.config.probe.match_repetition:
            return 1.0
        return min(1.0, token_budget / self.config.train.budget.tokens)

    def supply(self, token_budget: int) -> Supply:
        """What runs of a budget can draw from."""
        return self._supplies.of_share(self.share(token_budget))

    def supply_of(self, spec: RunSpec) -> Supply:
        """What a run can draw from."""
        return self._supplies.of_share(spec.share)

    def _resolve_model(self, model: ModelConfig) -> dict[str, Any]:
        tokenizer = self.manifest.tokenizer_folder
        return resolve_model(
            model.config_source,
            model.overrides,
            vocab_size=self.manifest.tokenizer.vocab_size,
            end_of_text_id=self.manifest.tokenizer.end_of_text_id,
            sequence_length=self.config.data.sequence_length,
            mask_token_id=None if tokenizer is None else mask_token_id(tokenizer),
        )

    def _initial_weights(self, model: ModelConfig, fields: Mapping[str, Any]) -> str:
        """Digest of the weights that runs of a model start from; empty for random ones."""
        folder = model.start_from
        if folder is None:
            return ""
        require_fitting(
            folder,
            fields,
            vocab_size=self.manifest.tokenizer.vocab_size,
            tokenizer=self.manifest.tokenizer_folder,
        )
        digest = weights_digest(folder, Path(self.config.output_dir) / "weights.json")
        self._folder_of_weights[digest] = folder
        return digest

    def bounds(self, token_budget: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and greatest weights at a budget, from the config and the tokens that exist."""
        solve, domains = self.config.solve, self.domains
        minimum = 0.2 / len(domains) if solve.min_weight is None else solve.min_weight
        return weight_bounds(
            domains,
            minimum=by_domain(minimum, domains, what="solve.min_weight"),
            maximum=by_domain(solve.max_weight, domains, what="solve.max_weight"),
            available_tokens=self.supply(token_budget).tokens,
            token_budget=token_budget,
            max_epochs=self.config.data.max_epochs,
        )

    def constraints(self, token_budget: int) -> Constraints:
        """What a mixture of a budget must satisfy: its bounds, and those of groups of domains."""
        lower_K, upper_K = self.bounds(token_budget)
        groups = tuple(
            Group(
                name=group.name,
                domains=group.domains,
                lower=group.min_weight,
                upper=group.max_weight,
            )
            for group in self.config.solve.groups
        )
        return Constraints(domains=self.domains, lower=lower_K, upper=upper_K, groups=groups)

    def probes(self) -> list[PlannedProbe]:
        """All probe runs, budget by budget."""
        return list(self._planned_probes)

    @cached_property
    def _planned_probes(self) -> tuple[PlannedProbe, ...]:
        return tuple(
            planned
            for index in range(len(self.config.probe.budgets))
            for planned in self._probes_of_budget(index)
        )

    def _probes_of_budget(self, index: int) -> Iterator[PlannedProbe]:
        config = self.config
        budget, model = config.probe.budgets[index], self.probe_models[index]
        length, supply = config.data.sequence_length, self.supply(budget.tokens)
        parts = ["probe", format_token_count(budget.tokens)]
        if budget.model is not None:
            parts.append(_model_label(budget.model))
        for probe in design_probes(
            supply.mixture_of_windows(self.reference),
            self._design(index),
            num_sequences=budget.tokens // length,
            sequences_per_batch=self._sequences_per_batch(budget),
            max_sequences=np.floor(config.data.max_epochs * supply.windows),
        ):
            spec = self._spec(
                "-".join([*parts, probe.label]),
                [probe.sequences],
                seed=probe.seed,
                budget=budget,
                model=model,
                evaluations=config.evaluation.probe_points,
                share=self.share(budget.tokens),
                start_from=self._probes_start_from[index],
            )
            yield PlannedProbe(
                token_budget=budget.tokens,
                parameters=model_size(model, length).parameters,
                probe=probe,
                spec=spec,
            )

    def _design(self, index: int) -> Design:
        """The design of probe budget `index`."""
        probe = self.config.probe
        return Design(
            kind=self.config.probe_design,
            seed=self.config.seed,
            reference_seeds=probe.reference_seeds,
            replicates=probe.replicates,
            factors=probe.factors,
            fixed_budget=self.config.fixed_budget,
            num_mixtures=self.config.num_mixtures(index, len(self.domains)),
            concentration=probe.concentration,
        )

    def targets(self, mixtures: Mapping[str, Mixture]) -> list[PlannedTarget]:
        """The target runs of these mixtures, every mixture under every seed."""
        budget = self.config.train.budget
        planned = []
        for name, mixture in mixtures.items():
            stages = self._target_stages(mixture.reordered(self.domains))
            for seed in self.config.train_seeds:
                label = f"train-{format_token_count(budget.tokens)}-{name}-seed{seed}"
                spec = self._spec(
                    label,
                    stages,
                    seed=seed,
                    budget=budget,
                    model=self.model,
                    evaluations=self.config.evaluation.points,
                    diloco=self.config.train.diloco,
                    start_from=self._start_from,
                )
                planned.append(PlannedTarget(mixture=name, seed=seed, spec=spec))
        return planned

    def trial(
        self, label: str, mixture: Mixture, *, tokens: int, seed: int, evaluations: int
    ) -> RunSpec:
        """A run of the target's model on one mixture, of any budget.

        Args:
            tokens: of the run; a part of a batch is left out.
            evaluations: validation points.
        """
        budget = self.config.train.budget.model_copy(update={"tokens": tokens})
        batch = self._sequences_per_batch(budget)
        windows = self._supplies.of_share(1.0).mixture_of_windows(mixture.reordered(self.domains))
        num_sequences = tokens // (batch * self.config.data.sequence_length) * batch
        return self._spec(
            label,
            [tuple(largest_remainder(windows.as_array(), num_sequences).tolist())],
            seed=seed,
            budget=budget,
            model=self.model,
            evaluations=evaluations,
            start_from=self._start_from,
        )

    def _target_stages(self, mixture: Mixture) -> list[tuple[int, ...]]:
        """Windows of each domain in each part of a target run that begins with `mixture`."""
        config, budget = self.config, self.config.train.budget
        batch = self._sequences_per_batch(budget)
        # Never more than the budget: the epoch caps of the solved mixture were those of the budget.
        num_steps = budget.tokens // (batch * config.data.sequence_length)
        begins = [0, *(round(stage.begin * num_steps) for stage in config.train.stages)]
        ends = [*begins[1:], num_steps]
        stages = []
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if begin >= end:
                raise ValueError(
                    f"train.stages: part {index + 1} of a run of {num_steps} steps begins at step "
                    f"{begin} and ends at step {end}; move the begins apart, or raise train.budget"
                )
            weights = mixture if index == 0 else self.later_mixtures[index - 1]
            of_windows = self._supplies.of_share(1.0).mixture_of_windows(weights).as_array()
            stages.append(tuple(largest_remainder(of_windows, (end - begin) * batch).tolist()))
        return stages

    def baselines(self, alternatives: Mapping[str, Mapping[str, float]]) -> dict[str, Mixture]:
        """The baselines' mixtures; `alternatives` are the projections' weights by kind.

        Raises:
            ValueError: a baseline is a projection that the fit does not have.
        """
        mixtures = {}
        for baseline in self.config.train.baselines:
            if baseline.weights is not None:
                mixture = self.mixture(baseline.weights)
            elif baseline.name == "uniform":
                mixture = Mixture.uniform(self.domains)
            elif baseline.name == "natural":
                mixture = Mixture.natural(self.domains, self.available_tokens)
            elif baseline.name == "reference":
                mixture = self.reference
            elif baseline.name in alternatives:
                mixture = self.mixture(alternatives[baseline.name])
            else:
                raise ValueError(
                    f"train.baselines names {baseline.name!r}, and this fit gives no such mixture, "
                    f"only {', '.join(alternatives)}; leave that baseline out"
                )
            mixtures[baseline.name] = mixture
        return mixtures

    def mixture(self, weights: Mapping[str, float]) -> Mixture:
        """A mixture of this experiment's domains, in their order."""
        return Mixture.from_mapping(weights).reordered(self.domains)

    def execution(self, spec: RunSpec, *, export: bool, is_probe: bool = False) -> Execution:
        """How to execute a run of this experiment."""
        trainer, checkpoint = self.config.trainer, self.config.checkpoint
        minutes = checkpoint.save_minutes
        folder = self.store.folder(spec)
        reference = self.store.exported_model(spec.online.get("reference", ""))
        return Execution(
            manifest=str(self.config.manifest_path),
            folder=str(folder),
            deepspeed=self.deepspeed,
            micro_batch_size=trainer.micro_batch_size,
            activation_checkpointing=trainer.activation_checkpointing,
            save_every=checkpoint.save_every,
            save_seconds=None if minutes is None else 60 * minutes,
            keep_last=checkpoint.keep_last,
            staging=checkpoint.staging,
            keep_checkpoints=is_probe and checkpoint.keep_probe_checkpoints,
            step_timeout=60 * self.config.limits.step_timeout_minutes,
            peak_tflops=trainer.peak_tflops,
            start_from=self._folder_of_weights.get(spec.start_from),
            export=str(folder / "model") if export else None,
            reference_model=str(reference) if reference else None,
        )

    def batches(self) -> Iterator[tuple[str, int]]:
        """Sequences a batch at every token budget, each with the name of its place in the file."""
        for where, budget in self.config.budgets():
            yield where, self._sequences_per_batch(budget)

    def _sequences_per_batch(self, budget: BudgetConfig) -> int:
        batch = budget.global_batch_tokens or self.config.trainer.global_batch_tokens
        return batch // self.config.data.sequence_length

    def _spec(
        self,
        label: str,
        stages: Sequence[tuple[int, ...]],
        *,
        seed: int,
        budget: BudgetConfig,
        model: Mapping[str, Any],
        evaluations: int,
        share: float = 1.0,
        diloco: DilocoConfig | None = None,
        start_from: str = "",
    ) -> RunSpec:
        sequences = tuple(map(sum, zip(*stages, strict=True)))
        self._check_epochs(label, sequences, self._supplies.of_share(share))
        return RunSpec(
            label=label,
            domains=self.domains,
            sequences=sequences,
            sequence_length=self.config.data.sequence_length,
            seed=seed,
            model=model,
            optimisation=self._optimisation(budget),
            evaluation={
                "domains": list(self.sets),
                "sequences_per_domain": self.config.evaluation.sequences_per_domain,
                "points": evaluations,
            },
            data=self.data_fingerprint,
            packing=self.config.data.packing,
            locality=self.config.data.locality,
            share=share,
            stages=tuple(stages) if len(stages) > 1 else (),
            diloco=diloco.model_dump() if diloco else {},
            start_from=start_from,
        )

    def _optimisation(self, budget: BudgetConfig) -> dict[str, Any]:
        trainer = self.config.trainer
        warmup = budget.warmup_fraction
        return {
            "sequences_per_batch": self._sequences_per_batch(budget),
            "lr": budget.lr or trainer.lr,
            "warmup_fraction": trainer.warmup_fraction if warmup is None else warmup,
            **trainer.model_dump(
                include={
                    "min_lr_ratio", "schedule", "decay_fraction", "betas", "eps",
                    "weight_decay", "grad_clip", "precision",
                }
            ),
        }  # fmt: skip

    def _check_epochs(self, label: str, sequences: Sequence[int], supply: Supply) -> None:
        limit = self.config.data.max_epochs
        available_K = supply.windows.tolist()
        for name, wanted, available in zip(self.domains, sequences, available_K, strict=True):
            # Rounding a weight at its cap to whole sequences may add less than one.
            if wanted >= limit * available + 1:
                length = self.config.data.sequence_length
                raise ValueError(
                    f"run {label!r} needs {wanted * length:_} tokens of domain {name!r}, which has "
                    f"{available * length:_}: {wanted / available:.2f} epochs, but "
                    f"data.max_epochs is {limit:g}; allow more repetition, prepare more text, or "
                    "lower the budget"
                )


def by_domain(
    given: float | Mapping[str, float], domains: Sequence[str], *, what: str
) -> float | list[float]:
    """What is given for all domains or by name, in their order; ValueError for other names."""
    if isinstance(given, Mapping):
        require_same_names(given, domains, what=what)
        return [given[name] for name in domains]
    return given


def _model_label(model: ModelConfig) -> str:
    """A model as part of a run's label, e.g. `gpt2-nano-n_layer1`."""
    parts = [
        Path(model.config_source).name,
        *(f"{key}{value}" for key, value in model.overrides.items()),
    ]
    return re.sub(r"[^A-Za-z0-9_.-]", "", "-".join(parts))
