"""An experiment folder as the stages leave it, whose losses come from a known law, not training."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoscale import stages
from autoscale.config import ExperimentConfig, parse_config
from autoscale.manifest import DomainShards, Manifest, Shard, TokenizerRecord
from autoscale.planning import Experiment
from autoscale.runs import Evaluation, RunFailure, RunResult, RunSpec
from autoscale.shard_formats.indexed_writer import IndexedShardWriter

FOUR = ("python_code", "english_docs", "cpp_headers", "licences")
SEVEN = ("common_crawl", "github", "books", "wikipedia", "c4", "stack_exchange", "arxiv")
VERSIONS = {"autoscale": "0.1.0", "python": "3.11.4", "torch": "2.13.0", "deepspeed": "0.19.8"}


# Sections that make it an experiment with a joint law, small enough for tests.
JOINT = {
    "probe": {"budgets": ["160K"], "runs": 9, "reference_seeds": 3},
    "fit": {"law": "auto", "draws": 8},
    "project": {"projection": "auto"},
    "train": {"budget": "320K", "baselines": ["uniform", "natural"], "seeds": [0, 1, 2]},
}
_COMPLETE: dict[str, "FakeExperiment"] = {}


def complete_experiment(
    factory: pytest.TempPathFactory, law: str = "autoscale"
) -> "FakeExperiment":
    """An experiment with all stages done, shared by the tests that only read it.

    Args:
        law: `autoscale`, the published law, or `auto`, a joint one.
    """
    if law not in _COMPLETE:
        options = {} if law == "autoscale" else {"noise": 0.003, "tables": JOINT}
        fake = FakeExperiment(factory.mktemp(law), **options)
        fake.run()
        _COMPLETE[law] = fake
    return _COMPLETE[law]


class FakeExperiment:
    """Writes data and results into a folder; `config` describes it.

    Args:
        folder: where everything goes.
        domains: names.
        noise: standard deviation of a run's loss between seeds, nats.
        gain: how far the domains differ in worth; 0 makes them alike.
        available: training tokens of the first domain; each further one has 10_000 more.
        documents: that each shard is cut into.
        further: names of validation sets that nothing is trained on.
        tables: sections of the experiment file to change, e.g. {"train": {"seeds": [0]}}.
    """

    def __init__(
        self,
        folder: Path,
        domains: tuple[str, ...] = FOUR,
        *,
        noise: float = 0.01,
        gain: float = 1.0,
        available: int = 120_000,
        documents: int = 1,
        further: tuple[str, ...] = (),
        tables: dict | None = None,
    ) -> None:
        self.folder, self.domains, self.noise = folder, domains, noise
        self.further = further
        self._write_data(available, documents)
        (folder / "zero1.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
        self.config = self._config(tables or {})
        rng = np.random.default_rng(7)
        own = np.exp(rng.normal(0, 1.1 * gain, len(domains)))
        transfer = np.exp(rng.normal(-1.6, 0.6 * gain, (len(domains), len(domains))))
        self._worth = transfer + np.diag(1.2 + own)  # of a token of i for validation set j
        self._floor = 2.0 + 0.5 * rng.random(len(domains))
        elsewhere = np.exp(rng.normal(-0.5, 1.2 * gain, (len(further), len(domains))))
        self._worth = np.vstack([self._worth, elsewhere])
        self._floor = np.append(self._floor, 2.5 + 0.5 * rng.random(len(further)))

    def _write_data(self, available: int, documents: int) -> None:
        rng = np.random.default_rng(1)
        domains = []
        for index, name in enumerate((*self.domains, *self.further)):
            splits = {"train": ()}
            sizes = {"train": available + 10_000 * index, "validation": 4_000}
            if name in self.further:
                del sizes["train"]
            for split, tokens in sizes.items():
                prefix = f"shards/{name}/{split}-00000"
                writer = IndexedShardWriter(self.folder / prefix, "uint16")
                for document in np.array_split(rng.integers(0, 2048, tokens), documents):
                    writer.add_document(document)
                written = writer.close()
                text_bytes = int(tokens * (3.1 + 0.2 * index))
                splits[split] = (
                    Shard(
                        path=prefix,
                        tokens=written.tokens,
                        documents=written.documents,
                        text_bytes=text_bytes,
                        sha256=written.sha256,
                    ),
                )
            domains.append(DomainShards(name=name, **splits))
        (self.folder / "tokenizer").mkdir()
        tokenizer = TokenizerRecord(
            path="tokenizer", vocab_size=2048, end_of_text_id=0, sha256="0" * 64
        )
        manifest = Manifest(
            dtype="uint16", tokenizer=tokenizer, domains=tuple(domains), root=self.folder
        )
        manifest.save(self.folder / "manifest.json")

    def _config(self, tables: dict) -> ExperimentConfig:
        sections = {
            "name": "fake",
            "output_dir": "out",
            "data": {"manifest": "manifest.json", "sequence_length": 128, "max_epochs": 8},
            "model": {"name": "gpt2-nano"},
            "trainer": {"global_batch_tokens": "1024", "lr": 1e-3, "deepspeed": "zero1.json"},
            "probe": {"budgets": ["80K", "160K"], "reference_seeds": 3},
            "fit": {"law": "autoscale"},
            "project": {"projection": "full"},
            "train": {
                "budget": "640K",
                "baselines": ["uniform", "natural", "hold"],
                "seeds": [0, 1, 2],
            },
        }
        for name, changes in tables.items():
            known = sections.get(name)
            sections[name] = {**known, **changes} if isinstance(known, dict) else changes
        return parse_config(sections, base=self.folder, where="fake")

    def changed(self, tables: dict) -> ExperimentConfig:
        """The config with sections changed, in the same folder."""
        return self._config(tables)

    @property
    def experiment(self) -> Experiment:
        return Experiment(self.config)

    def worth_of(self, name: str) -> np.ndarray:
        """Of a token of each domain for a validation set, shape (num_domains,)."""
        return np.array(self._worth[(*self.domains, *self.further).index(name)])

    def probe(self, *, only: int | None = None) -> None:
        """Results of the first `only` probe runs; by default of all."""
        experiment = self.experiment
        for planned in experiment.probes()[:only]:
            self.finish(experiment, planned.spec)

    def fit_and_project(self) -> None:
        stages.fit(self.config)
        stages.project(self.config)

    def train(self, *, only: int | None = None) -> None:
        experiment = self.experiment
        targets = experiment.targets(stages.target_mixtures(experiment))
        for target in targets[:only]:
            self.finish(experiment, target.spec)

    def run(self) -> None:
        """All stages that a report shows."""
        self.probe()
        self.fit_and_project()
        self.train()

    def fail(self, spec: RunSpec) -> None:
        folder = self.experiment.store.start(spec)
        RunFailure(reason="diverged", message="loss is nan at step 12").save(folder)

    def finish(self, experiment: Experiment, spec: RunSpec, **changes) -> RunResult:
        steps = np.unique(np.geomspace(spec.num_steps / 10, spec.num_steps, 10).round().astype(int))
        rng = np.random.default_rng([spec.seed, spec.total_tokens])
        noise = self.noise * rng.normal(size=1 + len(self._floor))
        own = np.random.default_rng([spec.seed, *spec.sequences]).normal()
        evaluations = tuple(
            self._evaluation(spec, int(step), noise, 0.3 * self.noise * own)
            for step in steps[steps > 0]
        )
        seconds = spec.total_tokens / 11_500
        fields = {
            "spec": spec,
            "tokens": spec.tokens,
            "epochs": {
                name: count / windows
                for name, count, windows in zip(
                    spec.domains,
                    spec.sequences,
                    experiment.supply_of(spec).windows.tolist(),
                    strict=True,
                )
            },
            "evaluations": evaluations,
            "seconds": seconds,
            "tokens_per_second": 11_500.0,
            "mfu": 0.21,
            "flops": spec.total_tokens * 1.4e6,
            "world_size": 1,
            "device": "CPU (1 thread a rank)",
            "versions": VERSIONS,
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "started_at": "2026-11-20T18:00:00+00:00",
            "finished_at": "2026-11-20T18:00:30+00:00",
        }
        result = RunResult(**{**fields, **changes})
        result.save(experiment.store.start(spec))
        return result

    def _evaluation(self, spec: RunSpec, step: int, noise: np.ndarray, own: float) -> Evaluation:
        share = step / spec.num_steps
        tokens = np.array(list(spec.tokens.values())) * share
        reducible = 5.5 * (1 + self._worth @ tokens / 6_000) ** -0.42
        losses = self._floor + reducible + 0.12 * (1 - share) + noise[0] + 0.5 * noise[1:] + own
        return Evaluation(
            tokens=step * spec.tokens_per_batch,
            losses=dict(zip((*spec.domains, *self.further), losses.tolist(), strict=True)),
            mean_loss=float(losses[: len(spec.domains)].mean()),
        )
