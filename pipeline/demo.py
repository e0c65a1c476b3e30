"""The whole pipeline on generated scenes: the order of work, from pictures to the report.

Read `run_demo` from top to bottom to know what happens. Every step is a command of `butd` that prints itself; run
again, the demo goes on where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation import write_json
from pipeline.report import read_scores, write_report
from pipeline.sequence import CommandSequence, Say, Step, settings, step


@dataclass(frozen=True, kw_only=True)
class DemoSetting:
    """How much of everything. Numbers of steps, not of seconds: so that a demo can be repeated exactly."""

    images: int
    heldout: int
    regions: int
    detector_steps: int
    caption_epochs: int
    vqa_epochs: int
    question_only_epochs: int


SETTINGS = {
    "full": DemoSetting(
        images=9000,
        heldout=1000,
        regions=12,
        detector_steps=1850,
        caption_epochs=4,
        vqa_epochs=7,
        question_only_epochs=3,
    ),
    "long": DemoSetting(
        images=18000,
        heldout=2000,
        regions=12,
        detector_steps=3500,
        caption_epochs=10,
        vqa_epochs=6,
        question_only_epochs=3,
    ),
    "small": DemoSetting(
        images=600,
        heldout=100,
        regions=12,
        detector_steps=120,
        caption_epochs=2,
        vqa_epochs=2,
        question_only_epochs=1,
    ),
}
"""full: eleven minutes on two fast cores. long: twice the scenes, half an hour for a captioner, for docs/results.md.
small: the same path in two minutes, for CI; its scores mean nothing."""

TITLE = "From pixels to words and answers: bottom-up regions, top-down attention"


def run_demo(out: Path, setting: DemoSetting, *, seed: int, say: Say) -> Path:
    """Draw scenes, train a detector, fill stores, train captioners and VQA models, score on unseen scenes, report.

    Args:
        out: folder for everything: scenes, stores, runs, report.
        setting: how much of everything.
        seed: of scenes and training; the held-out scenes have the next one.
        say: told of each step.

    Returns:
        The path of report.html.

    Errors: `StepFailedError` with the failed command's exit code.
    """
    work = CommandSequence(out, say)
    scenes, heldout = out / "scenes", out / "heldout"
    detector = out / "detector"
    regions, grid = out / "regions.zarr", out / "grid.zarr"
    regions_heldout, grid_heldout = out / "regions-heldout.zarr", out / "grid-heldout.zarr"
    k = ("--regions", str(setting.regions))
    seeds = ("--seed", str(seed))

    # Pictures with boxes, captions and questions; the held-out ones are of another seed.
    work.run(
        step(
            "scenes",
            scenes,
            "scenes",
            scenes,
            "--images",
            str(setting.images),
            *seeds,
            "--splits",
            "train=.97,val=.03",
        )
    )
    work.run(
        step(
            "heldout scenes", heldout,
            "scenes", heldout, "--images", str(setting.heldout), "--seed", str(seed + 1), "--splits", "test=1",
        )
    )  # fmt: skip

    # Stage one: a detector, and its regions (and, for comparison, its grid) of every picture into stores.
    work.run(
        step(
            "detector", detector / "checkpoints" / "best.json",
            "train", "detector", "--tables", scenes, "--out", detector, *seeds,
            *settings(training__max_steps=setting.detector_steps),
        )
    )  # fmt: skip
    # Four jobs, side by side: each works on one block at a time.
    weights = ("--weights", detector, *k, "--num-workers", "1")
    work.run(
        step("regions", regions, "detect", scenes, "--store", regions, *weights),
        step("grid", grid, "detect", scenes, "--store", grid, "--mode", "grid", *weights),
        step("heldout regions", regions_heldout, "detect", heldout, "--store", regions_heldout, *weights),
        step(
            "heldout grid",
            grid_heldout,
            "detect",
            heldout,
            "--store",
            grid_heldout,
            "--mode",
            "grid",
            *weights,
        ),
    )

    # Stage two: the stores are read, again and again; nothing of stage one is computed any more.
    def train(name: str, task: str, *arguments: str | Path, epochs: int) -> Step:
        run = out / name
        return step(
            name, run / "checkpoints" / "best.json",
            "train", task, "--tables", scenes, "--out", run, *seeds, *arguments,
            *settings(training__epochs=epochs, training__num_threads=1),
        )  # fmt: skip

    binding, paper = ("--config", "vqa-binding"), ("--config", "vqa-paper")
    blind = ("--config", "vqa-question-only")
    # The longest first, so that the cores end together.
    work.run(
        train("caption-regions", "caption", "--store", regions, epochs=setting.caption_epochs),
        train("caption-grid", "caption", "--store", grid, epochs=setting.caption_epochs),
        train("vqa-regions-paper", "vqa", "--store", regions, *paper, epochs=setting.vqa_epochs),
        train("vqa-regions", "vqa", "--store", regions, *binding, epochs=setting.vqa_epochs),
        train("vqa-grid", "vqa", "--store", grid, *binding, epochs=setting.vqa_epochs),
        train("vqa-question-only", "vqa", *blind, epochs=setting.question_only_epochs),
    )

    # All of it on scenes that no part has seen.
    work.run(
        step(
            "evaluate", out / "report.json",
            "evaluate", out, "--tables", heldout, "--store", regions_heldout, "--store", grid_heldout, "--out", out,
        )
    )  # fmt: skip
    report = read_scores(out) | {"title": TITLE, "seconds": work.seconds, "seed": seed}
    write_json(out / "report.json", report)
    _, page = write_report(out)
    return page
