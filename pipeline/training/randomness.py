"""Random number generators: seeded together, saved and restored together.

The state is plain tensors, integers and lists, so that it loads with `weights_only=True`.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, *, rank: int = 0, step: int = 0) -> None:
    """Seed torch (all devices), numpy and python from (seed, rank, step).

    Call it before the model is built, so that its initial weights depend on the seed alone.
    """
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence([seed, rank, step]).generate_state(3)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))  # noqa: NPY002  (libraries draw from the old global generator)
    random.seed(int(python_seed))


def rng_state() -> dict[str, Any]:
    """The state of every generator of this process."""
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached_gaussian),
        ],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` gave. CUDA states are set on as many devices as there are."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(cuda_state, device)
    keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the generators as they were, whatever is drawn inside."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
