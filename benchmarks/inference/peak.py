"""The floor of a network on this machine: multiply-adds that one thread does in a second at best, measured.

    python benchmarks/inference/peak.py

The rate of a precision is that of the better of two kernels: a product of two matrices, and one 3x3x3 convolution of
64 channels, of which nothing leaves the caches that need not. No network of such convolutions can be faster.
"""

import time
from collections.abc import Callable
from functools import cache

import torch

SIDE, CHANNELS, GRID = 1024, 64, (24, 48, 48)
TURNS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@cache
def peak_gmacs(precision: str) -> float:
    """Return 10^9 multiply-adds a CPU second of one thread at ``fp32``, ``bf16`` or ``int8``."""
    return max(_rate(run, macs) for run, macs in _kernels(DTYPES[precision]))


def _kernels(dtype: torch.dtype) -> list[tuple[Callable[[], torch.Tensor], int]]:
    """Return functions that compute, and the multiply-adds of each."""
    if dtype == torch.int8:  # torch has no convolution of integers
        whole = torch.randint(-100, 100, (SIDE, SIDE), dtype=dtype)
        return [(lambda: torch._int_mm(whole, whole), SIDE**3)]
    square = torch.randn(SIDE, SIDE).to(dtype)
    convolution = torch.nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1).to(dtype=dtype)
    weight, bias = convolution.to(memory_format=torch.channels_last_3d).parameters()
    image = torch.randn(1, CHANNELS, *GRID).to(dtype=dtype, memory_format=torch.channels_last_3d)
    ones = (1, 1, 1)
    return [
        (lambda: square @ square, SIDE**3),
        (lambda: torch.mkldnn_convolution(image, weight, bias, ones, ones, ones, 1), image.numel() * CHANNELS * 27),
    ]


def _rate(run: Callable[[], torch.Tensor], macs: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    with torch.inference_mode():
        for _ in range(TURNS):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return macs / min(seconds) / 1e9


def main() -> None:
    for precision in DTYPES:
        print(f"{precision}: {peak_gmacs(precision):.0f} GMAC/s")


if __name__ == "__main__":
    main()
