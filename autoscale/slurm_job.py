"""When the Slurm job that this process belongs to will be ended."""

import logging
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 30.0
_NO_END = ("", "NONE", "N/A", "UNKNOWN", "INVALID")


def job_name(environment: Mapping[str, str]) -> str | None:
    """The job as Slurm's commands take it; None outside of Slurm.

    One task of an array bears the number of the whole array, so tasks go by their place in it.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environment.get("SLURM_JOB_ID")


def end_of_job(environment: Mapping[str, str]) -> float | None:
    """Seconds since 1970 at which Slurm ends the job; None when it does not, or cannot be asked."""
    job = job_name(environment)
    if job is None:
        return None
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=_ANSWER_SECONDS,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
        return parse_end(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        what = "the end of Slurm job %s is not known (%s): only a signal will stop it in time"
        logger.warning(what, job, error)
        return None


def parse_end(text: str) -> float | None:
    """What `squeue --format %e` prints, the local time; None for a job without an end.

    Raises:
        ValueError: it is no time.
    """
    text = text.strip()
    return None if text.upper() in _NO_END else datetime.fromisoformat(text).timestamp()
