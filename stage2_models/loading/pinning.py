"""Whether the loader's memory is page-locked, so that a GPU copies from it by itself, and the locking.

Page-locked ("pinned") memory cannot be swapped or used for files: worth it for a few buffers that a GPU reads
all the time, harmful for a large part of the machine's memory, and of no use without a GPU.
"""

import weakref
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stage2_models.loading.memory import GIGABYTE, available_bytes
from store_schema.errors import UsageError

Pin = Literal["auto", "on", "off"]
LARGEST_SHARE = 0.25
"""Of the available memory, that `auto` locks at most."""


def decide_pinning(pin: Pin, num_bytes: int) -> tuple[bool, str]:
    """Decide whether `num_bytes` of buffers are to be pinned, with the reason in words for the log.

    Errors: `UsageError` for "on" where there is no CUDA.
    """
    if pin == "off":
        return False, "pin=off"
    if not torch.cuda.is_available():
        if pin == "on":
            raise UsageError(
                "pin='on' needs CUDA, and torch finds no CUDA device here; use pin='auto' or 'off'"
            )
        return False, "no CUDA device"
    if pin == "on":
        return True, "pin=on"
    share = num_bytes / max(available_bytes(), 1)
    sizes = f"{num_bytes / GIGABYTE:.2f} GB are {share:.0%} of the available memory"
    if share >= LARGEST_SHARE:
        return False, f"{sizes}, more than a quarter"
    return True, f"CUDA is there and {sizes}"


def pin_memory(memory: NDArray[np.uint8]) -> str | None:
    """Lock the pages of the loader's memory until the array is gone; give CUDA's complaint if it refuses."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    complaint = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if complaint:
        return f"cudaHostRegister gave error {complaint}"
    weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
    return None
