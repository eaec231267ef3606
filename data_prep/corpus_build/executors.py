"""Run stages on this machine, or submit them to Slurm, with datatrove's executors.

On Slurm a stage is a job array that waits for the one before it; all of it is submitted at once,
and the last job writes the manifest. The output must lie on a file system that all nodes share.
"""

import fcntl
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from .stages import Stage

DATA_PREP = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """What Slurm is asked for, for every task of every stage.

    Attributes:
        partition: of the cluster.
        time: limit of a task, e.g. "10:00:00".
        cpus_per_task: CPUs.
        mem_per_cpu_gb: memory of a CPU.
        qos: quality of service; "" asks for none.
        setup: shell commands before a task, e.g. "module load python".
        workers: most tasks of a stage at once; -1 for no limit.
    """

    partition: str
    time: str
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    qos: str = ""
    setup: str = ""
    workers: int = -1


def run_locally(stages: Iterable[Stage], output: Path, workers: int) -> None:
    """Run one stage after the other; finished tasks of an earlier call are passed over.

    Raises:
        ValueError: another build is writing into the same folder.
    """
    with _only_writer(output):
        for stage in stages:
            LocalPipelineExecutor(
                pipeline=list(stage.pipeline),
                tasks=stage.tasks,
                workers=min(workers, stage.tasks),
                logging_dir=str(stage.logs),
                skip_completed=not stage.always,
            ).run()


def submit(stages: Iterable[Stage], options: SlurmOptions) -> str:
    """Submit all stages, each after the one before.

    Returns:
        The id of the last job; "-1" where everything was finished before.

    Raises:
        ValueError: this machine has no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "--executor slurm: this machine has no sbatch; run the command on a login node"
        )
    executor: SlurmPipelineExecutor | None = None
    for stage in stages:
        executor = SlurmPipelineExecutor(
            pipeline=list(stage.pipeline),
            tasks=stage.tasks,
            time=options.time,
            partition=options.partition,
            cpus_per_task=options.cpus_per_task,
            mem_per_cpu_gb=options.mem_per_cpu_gb,
            qos=options.qos,
            workers=options.workers,
            job_name=f"build-{stage.name}",
            env_command=_environment(options.setup),
            depends=executor,
            logging_dir=str(stage.logs.resolve()),
            skip_completed=not stage.always,
        )
    assert executor is not None, "a build has stages"
    executor.run()
    return str(executor.job_id)


def _environment(setup: str) -> str:
    """Commands that make a task find this interpreter's programs and these modules."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    modules = f"{shlex.quote(str(DATA_PREP))}:{shlex.quote(str(DATA_PREP.parent))}"
    commands = [
        setup,
        f"export PATH={programs}:$PATH",
        f"export PYTHONPATH={modules}:$PYTHONPATH",
    ]
    return " && ".join(command for command in commands if command)


@contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    """Refuse a second build into the same folder; the lock ends with the process."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".build.lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process's own, no child's
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"another build is writing into {output}; wait for it, or choose another output"
            ) from error
        yield
