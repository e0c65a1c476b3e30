"""The captioner through the real trainer: a run that is cut ends with the very weights of one that was not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import stages
from pipeline.training.runs import read_metrics
from pipeline.training.trainer import TrainResult
from stage2_models.caption_data import CaptionBatch
from stage2_models.caption_task import CaptionTask
from tests.stage2_models.caption_world import World, write_world

SMALL = (
    "model.hidden_dim=16", "model.embed_dim=12", "model.attention_dim=8", "model.dropout=0.4",
    "model.embed_regions=true", "data.batch_size=3", "data.captions_per_image=2", "data.max_length=8",
    "training.num_threads=1", "training.device=cpu", "training.epochs=4", "training.tensorboard=false",
    "training.save_every_steps=2",
)  # fmt: skip
SCHEDULED = ("losses.scheduled_sampling_increase=0.4", "losses.scheduled_sampling_every_epochs=1",
             "losses.scheduled_sampling_max=0.8")  # fmt: skip


class PowerCut(Exception):
    """Stands for one: nothing may catch it."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return write_world(tmp_path)


def _train(world: World, run: Path, *sets: str) -> TrainResult:
    return stages.train_captioner(world.tables, world.store, run, stages.TrainOptions(sets=(*SMALL, *sets)))


def _train_with_cut(world: World, run: Path, cut_step: int, *sets: str) -> None:
    whole = CaptionTask.loss

    def cut(
        self: CaptionTask, batch: CaptionBatch, *, step: int, epoch: int
    ) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        if step == cut_step:
            raise PowerCut
        return whole(self, batch, step=step, epoch=epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionTask, "loss", cut)
        with pytest.raises(PowerCut):
            _train(world, run, *sets)


def _weights(result: TrainResult) -> dict[str, Tensor]:
    return load_file(result.last / "model.safetensors")


def _are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_cut_in_an_epoch_with_dropout_and_scheduled_sampling_ends_bit_equal(
    world: World, tmp_path: Path
) -> None:
    """Three steps an epoch, cut before the eighth: the checkpoint of step 6 or 7 lies within the third epoch."""
    quiet = _train(world, tmp_path / "quiet", *SCHEDULED, "data.num_workers=0")
    _train_with_cut(
        world, tmp_path / "cut", 8, *SCHEDULED, "data.num_workers=0", "training.save_every_steps=7"
    )
    resumed = _train(world, tmp_path / "cut", *SCHEDULED, "data.num_workers=1", "training.save_every_steps=7")
    assert (quiet.steps, resumed.steps, resumed.status) == (12, 12, "finished")
    assert _are_equal(_weights(quiet), _weights(resumed))
    without = _train(world, tmp_path / "without", "data.num_workers=0")
    assert not _are_equal(_weights(quiet), _weights(without))


BOTH_PHASES = (
    "losses.self_critical_from_epoch=2", "losses.self_critical_lr=0.002", "losses.samples_per_image=3",
    "training.lr=0.01", "training.log_every=1",
)  # fmt: skip


@pytest.mark.parametrize("cut_step", [5, 8], ids=["in the first phase", "in the second phase"])
def test_one_run_and_one_resume_go_through_both_phases_bit_equal(
    world: World, tmp_path: Path, cut_step: int
) -> None:
    """Cross entropy in steps 0 to 5, self-critical in 6 to 11, scored here by processes, there in this one."""
    quiet = _train(world, tmp_path / "quiet", *BOTH_PHASES, "losses.score_workers=0", "data.num_workers=0")
    _train_with_cut(
        world, tmp_path / "cut", cut_step, *BOTH_PHASES, "losses.score_workers=2", "data.num_workers=0"
    )
    resumed = _train(world, tmp_path / "cut", *BOTH_PHASES, "losses.score_workers=2", "data.num_workers=1")
    assert _are_equal(_weights(quiet), _weights(resumed))
    metrics = read_metrics(tmp_path / "cut", "train")
    assert metrics["token_accuracy"].notna().tolist() == [True] * 6 + [False] * 6
    assert metrics["sample_cider_d"].notna().tolist() == [False] * 6 + [True] * 6
    assert metrics["lr"].iloc[6:].tolist() == [0.002] * 6
    assert 0.002 not in metrics["lr"].iloc[:6].tolist()
