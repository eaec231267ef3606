"""Time and memory of the mixture order by number of samples and of domains."""

import gc
import json
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from typing import Final

import numpy as np
from data_path_environments import python_of
from data_path_throughput import Setting
from data_path_worker import SCRIPTS
from data_path_workload import WEIGHTS

from autoscale.sampler import MixtureOrder
from autoscale.stage_quotas import Stage

_GOAL_BYTES: Final = 100
_SAMPLES: Final = (10**8, 10**12)
_DOMAINS: Final = (7, 1000, 2000)
_REPEATS: Final = 21
_PEER_SAMPLES: Final = 10**8


def setup(setting: Setting) -> Iterator[str]:
    yield (
        f"A `MixtureOrder` with one stage of Zipf weights: median of {_REPEATS} constructions, "
        "then the first batch of 8 positions at 90% of the stage; bytes that it keeps by "
        "`tracemalloc`, without the names and the numbers of windows that the caller has. Bytes a "
        f"domain: the slope from {_DOMAINS[1]} to {_DOMAINS[2]} domains. Goal: at most "
        f"{_GOAL_BYTES}, at {_SAMPLES[0]:.0e} as at {_SAMPLES[1]:.0e} samples."
    )
    yield ""
    yield "| samples | domains | set-up, ms | first batch, ms | bytes | bytes / domain |"
    yield "| --- | --- | --- | --- | --- | --- |"
    met = True
    for num_samples in _SAMPLES:
        kept: dict[int, int] = {}
        for num_domains in _DOMAINS:
            build, first, kept[num_domains] = _measure(num_domains, num_samples)
            slope = ""
            if num_domains == _DOMAINS[-1]:
                grown = kept[_DOMAINS[2]] - kept[_DOMAINS[1]]
                each = grown / (_DOMAINS[2] - _DOMAINS[1])
                met, slope = met and each <= _GOAL_BYTES, f"{each:.0f}"
            yield (
                f"| {num_samples:.0e} | {num_domains} | {build * 1e3:.3f} | {first * 1e3:.3f} | "
                f"{kept[num_domains]} | {slope} |"
            )
    yield ""
    seconds, num_bytes = _of_megatron(setting)
    yield (
        f"Goal {'met' if met else 'missed'}. Megatron's index of the blend alone, "
        f"{_PEER_SAMPLES:.0e} samples of {len(WEIGHTS)} domains: {seconds:.1f} s, "
        f"{num_bytes / 1e9:.2f} GB."
    )


def _measure(num_domains: int, num_samples: int) -> tuple[float, float, int]:
    """Seconds to build, seconds of the first batch, and bytes kept."""
    weights = [1 / rank for rank in range(1, num_domains + 1)]
    names = [f"domain-{number}" for number in range(num_domains)]
    num_windows = [10**6 + number for number in range(num_domains)]
    batch = np.arange(8) + num_samples * 9 // 10

    def build() -> MixtureOrder:
        stage = Stage.of_weights(weights, num_samples)
        return MixtureOrder(domains=names, num_windows=num_windows, seed=0, stages=[stage])

    times = np.empty((_REPEATS, 2))
    for repeat in range(_REPEATS):
        start = time.perf_counter()
        order = build()
        built = time.perf_counter()
        order.locate(batch)
        times[repeat] = built - start, time.perf_counter() - built
    gc.collect()
    tracemalloc.start()
    order = build()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return float(np.median(times[:, 0])), float(np.median(times[:, 1])), kept


def _of_megatron(setting: Setting) -> tuple[float, int]:
    command = [str(python_of(setting.peers, "megatron")), str(SCRIPTS / "peer_megatron_blend.py")]
    command += [str(_PEER_SAMPLES), *map(str, WEIGHTS.values())]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, num_bytes = json.loads(finished.stdout.splitlines()[-1])
    return seconds, num_bytes
