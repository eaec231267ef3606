"""Megatron's index of a blend for many samples: prints seconds and bytes as JSON.

    python peer_megatron_blend.py SAMPLES WEIGHT...

Only the blend's own two arrays, by the function that `BlendedDataset` calls; the indices of the
domains' samples and documents come on top.
"""

import json
import sys
import time

import numpy as np
from megatron.core.datasets import helpers


def main() -> None:
    num_samples, weights = int(sys.argv[1]), np.array(sys.argv[2:], dtype=np.float64)
    start = time.perf_counter()
    dataset_index = np.zeros(num_samples, dtype=np.int16)
    dataset_sample_index = np.zeros(num_samples, dtype=np.int64)
    helpers.build_blending_indices(
        dataset_index, dataset_sample_index, weights, weights.size, num_samples, False
    )
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, dataset_index.nbytes + dataset_sample_index.nbytes]))


if __name__ == "__main__":
    main()
