"""One picture of many runs: training loss and the metric that chooses the best, over steps.

A row of two panels for each task among the runs. Reads metrics.jsonl alone, so running runs can be drawn too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.training.runs import list_runs, read_metrics
from store_schema.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg", ".pdf")


def plot_runs(paths: Sequence[Path], file: Path) -> int:
    """Draw the runs at or in `paths` into `file` (its ending says the format); return how many were drawn.

    Runs that have logged nothing yet are left out. The dot of a curve is its best checkpoint.

    Raises:
        UsageError: another ending than .png, .svg, .pdf; nothing to draw.
    """
    if file.suffix not in _SUFFIXES:
        raise UsageError(f"--plot {file}: expected a name that ends with {', '.join(_SUFFIXES)}")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    runs = list_runs(*paths)
    runs = runs[[(Path(path) / "metrics.jsonl").is_file() for path in runs["path"]]]
    if runs.empty:
        raise UsageError(f"no run in {', '.join(map(str, paths))} has logged anything yet: nothing to draw")
    tasks = sorted(set(runs["task"]))
    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(11, 0.8 + 3.4 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for number, run in enumerate(runs[runs["task"] == task].itertuples()):
            _draw(row[0], Path(run.path), run.name, "train", "loss", f"C{number % 10}")
            _draw(row[1], Path(run.path), run.name, "eval", run.metric, f"C{number % 10}")
            if run.best == run.best:  # there is a best
                row[1].plot(run.best_step, run.best, "o", color=f"C{number % 10}", markersize=6)
            row[1].set_ylabel(run.metric)
        row[0].set_ylabel("training loss")
        row[0].set_title(task, loc="left")
        row[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
        for axis in row:
            axis.grid(alpha=0.3)
            axis.set_xlabel("step")
    figure.tight_layout()
    # Beside and renamed: a reader never sees half a picture.
    partial = file.with_name(f".partial-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, dpi=120)
    partial.replace(file)
    pyplot.close(figure)
    return len(runs)


def _draw(axis: "Axes", run: Path, name: str, kind: str, quantity: str, colour: str) -> None:
    """Add a run's curve; its name is in the legend even where it has no such records."""
    records = read_metrics(run, kind)
    if quantity in records:
        axis.plot(records["step"], records[quantity], ".-", color=colour, label=name, markersize=4)
    else:
        axis.plot([], [], color=colour, label=name)
