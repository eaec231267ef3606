"""What a device is called and how fast it could be, for MFU."""

import time

import torch

# Dense peak in TFLOP/s a device: (bf16, fp32 as PyTorch runs it by default, without TF32).
# From the vendor's data sheets; SXM variants.
_PEAK_TFLOPS = {
    "H200": (989.0, 67.0), "H100": (989.0, 67.0), "A100": (312.0, 19.5), "L40S": (362.0, 91.6),
    "B200": (2250.0, 75.0), "MI300X": (1307.0, 163.4),
}  # fmt: skip


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} thread a rank)"


def peak_flops(device: torch.device, precision: str, given_tflops: float | None) -> float | None:
    """Peak FLOP/s of one rank: given, from the table of GPUs, or measured on a CPU.

    A CPU's peak is the rate of a 512 x 512 float32 product in this process, since its nominal rate
    says little about one thread that shares the machine. None for a GPU that is not in the table.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bf16, fp32) in _PEAK_TFLOPS.items():
            if known in name:
                return (bf16 if precision == "bf16" else fp32) * 1e12
        return None
    return _measured_flops()


def _measured_flops(width: int = 512, repeats: int = 5) -> float:
    matrix = torch.ones(width, width)
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(repeats):
        matrix @ matrix
    return 2 * width**3 * repeats / (time.perf_counter() - start)
