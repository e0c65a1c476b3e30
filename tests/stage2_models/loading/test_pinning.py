"""What `pin` decides, and that the log says so. Without CUDA its answers are played; a `gpu` test pins for real."""

import logging

import numpy as np
import pytest
import torch

from stage2_models.loader import build_loader
from stage2_models.loading import pinning, stream
from stage2_models.loading.pinning import decide_pinning
from store_schema.errors import UsageError
from store_schema.reader import RegionStore


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CUDA and 1,000 bytes of free memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pinning, "available_bytes", lambda: 1000)


@pytest.mark.usefixtures("with_cuda")
def test_auto_pins_less_than_a_quarter_of_the_memory() -> None:
    assert decide_pinning("auto", 249) == (True, "CUDA is there and 0.00 GB are 25% of the available memory")
    pinned, reason = decide_pinning("auto", 250)
    assert not pinned
    assert "more than a quarter" in reason


@pytest.mark.usefixtures("with_cuda")
def test_on_and_off_are_obeyed_whatever_the_size() -> None:
    assert decide_pinning("on", 10**9) == (True, "pin=on")
    assert decide_pinning("off", 1) == (False, "pin=off")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "buffers for at most" in record.getMessage()]


def load_one(store: RegionStore, pin: str) -> np.ndarray:
    with build_loader(store, store.all_rows, batch_size=4, seed=0, workers=0, pin=pin) as loader:  # type: ignore[arg-type]
        return next(loader.epoch(0)).regions.features.numpy().copy()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
@pytest.mark.parametrize(("pin", "reason"), [("auto", "no CUDA device"), ("off", "pin=off")])
def test_one_line_of_the_log_says_what_was_decided_and_why(
    store: RegionStore, caplog: pytest.LogCaptureFixture, pin: str, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    load_one(store, pin)
    (line,) = messages(caplog)
    assert line.startswith("loader: batches of 4, 0 workers, ")
    assert line.endswith(f"at most 6 regions a picture, not pinned ({reason})")


@pytest.mark.usefixtures("with_cuda")
def test_where_cuda_refuses_auto_goes_on_unpinned_and_on_is_an_error(
    store: RegionStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(stream, "pin_memory", lambda memory: "cudaHostRegister gave error 2")
    caplog.set_level(logging.INFO)
    assert load_one(store, "auto").shape == (4, 6, store.metadata.feature_dim)
    assert messages(caplog)[0].endswith("not pinned (cudaHostRegister gave error 2)")
    with pytest.raises(UsageError, match="pin='on' was asked for, but cudaHostRegister gave error 2"):
        load_one(store, "on")
