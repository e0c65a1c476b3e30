"""What a run folder says when a session begins: configuration, task, parent, where it goes on.

A session is one process's work on a run; a run that is stopped and goes on has several.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import config_to_dict
from pipeline.training.records import point_to
from pipeline.training.resume import Start
from pipeline.training.runs import RunFolder, software_versions
from pipeline.training.state import TrainingState
from pipeline.training.task import B

logger = logging.getLogger(__name__)


def describe_session(
    run: RunFolder, state: TrainingState[B], start: Start, resolved_config: Mapping[str, Any]
) -> None:
    """Let the run folder agree with where the run begins, and note in run.json what runs here."""
    progress, task = state.progress, state.task
    if start.checkpoint is None or start.is_branch:
        run.write_config(config_to_dict(resolved_config))
        run.forget_metrics_after(-1)
    else:
        _return_to(run, state, start.checkpoint)
    facts = {
        "task": task.name,
        "identity": dict(task.identity()),
        "best_metric": task.best_metric,
        "higher_is_better": task.higher_is_better,
        "total_steps": state.total_steps,
    }
    if start.parent is not None:
        facts["parent"] = start.parent
        changes = ", ".join(
            f"{key} from {old} to {new}" for key, (old, new) in start.parent["changes"].items()
        )
        logger.info(
            "branching from %s at step %d: %s", start.checkpoint, progress.step, changes or "no changes"
        )
    if store := dict(resolved_config.get("inputs", {})).get("store"):
        logger.info("features are read from %s; nothing of stage one is computed", store)
    run.begin_session(facts, {"from_step": progress.step, **state.setting(), "versions": software_versions()})


def _return_to(run: RunFolder, state: TrainingState[B], checkpoint: Path) -> None:
    """Take back what the run folder says of later steps than the checkpoint's."""
    progress, best = state.progress, state.progress.best
    point_to(run.checkpoints, "latest", checkpoint.name)
    if best is not None and not (run.checkpoints / best.checkpoint).is_dir():
        logger.warning("the best checkpoint then, %s, was not kept; the best is chosen anew", best.checkpoint)
        best = progress.best = None
    point_to(run.checkpoints, "best", None if best is None else best.checkpoint)
    run.forget_metrics_after(progress.step)
    logger.info(
        "going on with %s from %s: step %d/%d, epoch %d",
        *(run.path, checkpoint.name, progress.step, state.total_steps, progress.epoch + 1),
    )
