"""Runs in processes of their own, as `worker.py` starts them: trained, stopped, killed."""

import re
import time
from dataclasses import replace

from autoscale.checkpoint_files import newest_step
from autoscale.config import load_config
from autoscale.distributed import free_port
from autoscale.mixture import Mixture
from autoscale.planning import Experiment
from autoscale.runs import RunResult
from autoscale.worker import Assignment

DEADLINE = 200


def planned(tiny, *overrides):
    """An experiment with its first target run, of the uniform mixture.

    With a large eps AdamW does not amplify the rounding of tiny gradients.
    """
    config = load_config(tiny.path, ["train.seeds=[0]", "trainer.eps=1e-3", *overrides])
    experiment = Experiment(config)
    target = experiment.targets({"uniform": Mixture.uniform(experiment.domains)})[0]
    return experiment, target.spec


def start(worker, experiment, spec, folder, *, world_size=1, **settings):
    """The children of all ranks of a run."""
    execution = replace(experiment.execution(spec, export=False), folder=str(folder), **settings)
    return start_ranks(worker, spec, execution, world_size)


def start_ranks(worker, spec, execution, world_size=1):
    """The children of all ranks of a run that is executed like this."""
    master = f"127.0.0.1:{free_port()}"
    return [
        worker.start(
            Assignment(
                spec=spec, execution=execution, rank=rank, world_size=world_size,
                local_rank=rank, master=master,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip


def ended(children):
    """Wait until all have ended; the error of each, None for one without."""
    end = time.monotonic() + DEADLINE
    for child in children:
        while not child.poll(0.1):
            assert time.monotonic() < end, "a child did not end in time"
    return [child.error for child in children]


def train(worker, experiment, spec, folder, **settings) -> RunResult:
    """Train a run to its end."""
    errors = ended(start(worker, experiment, spec, folder, **settings))
    assert not any(errors), errors
    return RunResult.load(folder)


def train_a_part(worker, experiment, spec, folder, **settings) -> int:
    """Train a run, ask it to stop on the way, and return the step that it was saved after."""
    children = start(worker, experiment, spec, folder, **settings)
    while children[0].progress is None or children[0].progress.tokens < spec.total_tokens / 4:
        assert not children[0].poll(0.01), children[0].error
    children[-1].ask_to_stop("the test wants it")
    errors = ended(children)
    assert not any(errors), errors
    for child in children:
        assert re.match(r"stopped after step \d+ of \d+, saved", child.stopped), child.stopped
    step = newest_step(folder / "checkpoints")
    assert 0 < step < spec.num_steps
    return step


def run_log(folder, rank=0):
    return (folder / f"log-rank{rank}.txt").read_text()
