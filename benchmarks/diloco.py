"""DiLoCo against plain data parallel training at equal tokens: losses and bytes.

    unshare --net sh -c 'ip link set lo up && python benchmarks/diloco.py --work /tmp/diloco'

Two ranks on one host train the same small model on the same batches of real text (harvested from
this installation as for the demo, or `--text`, a folder of `<domain>.jsonl`): plainly, and in two
groups of one rank that meet every H steps, under three seeds. In a network namespace of its own, as
above (root), the bytes that the ranks really sent are read from the loopback interface beside those
counted. Writes `diloco.md` beside this file. Finished runs in `--work` are not run again.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data_prep"))
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

from installation_text import harvest  # noqa: E402

from autoscale.comparison import paired_difference  # noqa: E402
from autoscale.config import ExperimentConfig, load_config  # noqa: E402
from autoscale.distributed import free_port  # noqa: E402
from autoscale.mixture import Mixture  # noqa: E402
from autoscale.model_shape import model_size  # noqa: E402
from autoscale.planning import Experiment  # noqa: E402
from autoscale.prepare import prepare  # noqa: E402
from autoscale.provenance import commit, library_versions  # noqa: E402
from autoscale.runs import RunResult, RunSpec  # noqa: E402
from autoscale.worker import Assignment, Worker  # noqa: E402

SEEDS = (0, 1, 2)
INNER_STEPS = (5, 10, 30)
OUTER = ((0.7, 0.9), (1.0, 0.0))  # rate and momentum: as published, and the plain mean of groups
EXPERIMENT = """
name = "diloco"
output_dir = "{work}/out"
seed = 0

[prepare]
output = "{work}/shards"
validation_fraction = 0.05
tokenizer = {{ vocab_size = 1024, sample_bytes = 500_000 }}
domains = [
{domains}
]

[data]
sequence_length = 64

[model]
name = "gpt2-nano"
overrides = {{ n_layer = 2, n_embd = 64 }}

[trainer]
deepspeed = "{root}/ds_configs/zero1.json"
global_batch_tokens = 1024
micro_batch_size = 8
precision = "fp32"
lr = 4e-3
warmup_fraction = 0.05

[evaluation]
sequences_per_domain = 64
points = 1

[probe]
budgets = ["64K"]

[train]
budget = "{budget}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for text, shards and runs")
    parser.add_argument("--text", type=Path, help="folder of <domain>.jsonl instead of a harvest")
    parser.add_argument("--budget", default="240K", help="tokens of a run")
    options = parser.parse_args()
    file = write_experiment(options.work.resolve(), options.text, options.budget)
    config = load_config(file)
    if not config.manifest_path.is_file():
        prepare(config.prepare)
    worker = Worker(fork=True)
    settings: dict[str, list[str]] = {"plain": []}
    for rate, momentum in OUTER:
        for steps in INNER_STEPS:
            settings[arm(steps, rate, momentum)] = [
                "train.diloco.groups=2",
                f"train.diloco.inner_steps={steps}",
                f"train.diloco.outer_lr={rate}",
                f"train.diloco.outer_momentum={momentum}",
            ]
    runs = {
        name: [
            train(worker, load_config(file, [f"train.seeds=[{seed}]", *overrides]))
            for seed in SEEDS
        ]
        for name, overrides in settings.items()
    }
    Path(__file__).with_suffix(".md").write_text(report(runs), encoding="utf-8")


def arm(steps: int, rate: float, momentum: float) -> str:
    return f"H = {steps}, outer {rate:g} and {momentum:g}"


def write_experiment(work: Path, text: Path | None, budget: str) -> Path:
    if text is None:
        text = work / "text"
        if not text.is_dir():
            harvest(text, max_bytes_per_domain=1_500_000)
    domains = sorted(path.stem for path in text.resolve().glob("*.jsonl"))
    lines = [f'    {{ name = "{n}", train = ["{text.resolve()}/{n}.jsonl"] }},' for n in domains]
    file = work / "diloco.toml"
    file.write_text(
        EXPERIMENT.format(work=work, root=ROOT, domains="\n".join(lines), budget=budget),
        encoding="utf-8",
    )
    return file


def train(worker: Worker, config: ExperimentConfig) -> Path:
    """Train the target run of the uniform mixture on two ranks; its folder."""
    experiment = Experiment(config)
    spec: RunSpec = experiment.targets({"uniform": Mixture.uniform(experiment.domains)})[0].spec
    folder = experiment.store.folder(spec)
    if experiment.store.status(spec) == "finished":
        return folder
    experiment.store.start(spec)
    execution, master = experiment.execution(spec, export=False), f"127.0.0.1:{free_port()}"
    before = bytes_on_loopback()
    children = [
        worker.start(
            Assignment(
                spec=spec, execution=execution, rank=rank, world_size=2, local_rank=rank,
                master=master,
            )
        )
        for rank in range(2)
    ]  # fmt: skip
    for child in children:
        while not child.poll(1.0):
            pass
        if child.error is not None:
            raise SystemExit(f"{folder}: {child.error.message}")
    after = bytes_on_loopback()
    if before is not None and after is not None:
        (folder / "loopback.json").write_text(json.dumps(after - before))
    print(folder.name, RunResult.load(folder).final_mean_loss, flush=True)
    return folder


def bytes_on_loopback() -> int | None:
    """Bytes sent so far where this process has a network of its own, else None."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    sent = {line.split(":")[0].strip(): int(line.split(":")[1].split()[8]) for line in lines}
    used = {name for name, count in sent.items() if count}
    return sent["lo"] if used <= {"lo"} else None


def counted(folder: Path) -> dict[str, float]:
    """Bytes that rank 0 sent, from the last training record of the run's log."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    last = [record for record in records if record["kind"] == "training"][-1]
    return {key.split("/")[1]: n for key, n in last.items() if key.startswith("bytes_sent/")}


def report(runs: dict[str, list[Path]]) -> str:
    results = {name: [RunResult.load(folder) for folder in runs[name]] for name in runs}
    plain, spec = results["plain"], results["plain"][0].spec
    of_plain = counted(runs[arm(INNER_STEPS[0], *OUTER[0])][0])["data_parallel"]
    lines = [
        "| run | mean loss | minus plain, 90% interval | MB between groups | share of plain "
        "| MB on the wire, both ranks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of_seeds in results.items():
        final = [result.final_mean_loss for result in of_seeds]
        difference = "" if name == "plain" else interval(final, plain)
        between = of_plain if name == "plain" else counted(runs[name][0])["between_groups"]
        wire = [folder / "loopback.json" for folder in runs[name]]
        measured = [json.loads(path.read_text()) / 1e6 for path in wire if path.is_file()]
        lines.append(
            f"| {name} | {sum(final) / len(final):.4f} | {difference} | {between / 1e6:.2f} "
            f"| {between / of_plain:.4f} | {', '.join(f'{each:.2f}' for each in measured)} |"
        )
    tokens, parameters = (
        plain[0].total_tokens,
        model_size(spec.model, spec.sequence_length).parameters,
    )
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return "\n".join(
        [
            "# DiLoCo against plain data parallel training",
            "",
            f"{date.today()}, commit {commit()}, {platform.machine()}, {os.cpu_count()} cores, "
            f"2 ranks of one thread, gloo; {versions}.",
            "",
            f"Command: `python benchmarks/{Path(__file__).name}`, in a network namespace where the "
            f"last column is filled. {parameters:_} parameters, {spec.num_steps} steps of "
            f"{spec.tokens_per_batch} tokens ({tokens:_} labels), fp32, ZeRO 1, lr "
            f"{spec.optimisation['lr']}, cosine; domains {', '.join(spec.domains)} (uniform), data "
            f"{spec.data}. Two groups of one rank; outer: rate and momentum. Seeds "
            f"{', '.join(map(str, SEEDS))}, paired; losses are means over the domains, nats a "
            "token.",
            "",
            *lines,
            "",
            "MB between groups: sent by each rank over the run, counted from the sizes of the "
            "collectives as a ring sends them, votes on stopping included. For plain training "
            "everything goes between the two ranks. On the wire, one number a seed: all that the "
            "loopback interface carried for the run, with headers, set-up, logging and evaluation.",
            "",
        ]
    )


def interval(final: list[float], plain: list[RunResult]) -> str:
    found = paired_difference(final, [result.final_mean_loss for result in plain])
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


if __name__ == "__main__":
    main()
