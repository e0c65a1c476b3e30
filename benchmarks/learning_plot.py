"""The learning curves of benchmarks/real_learning.py: a panel for each part, dashed lines for what needs no model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PANELS = {
    "overfit": ("32 pictures by heart", "loss of a word, nats"),
    "flickr": ("Flickr8k, 600 pictures: validation", "CIDEr-D"),
    "scst": ("Flickr8k: self-critical after cross entropy", "CIDEr-D"),
    "scst_scenes": ("scenes: self-critical after cross entropy", "CIDEr-D"),
    "daquar": ("DAQUAR: validation", "accuracy"),
    "easy_vqa": ("easy-VQA: held-out fifth", "accuracy"),
}


def draw_curves(parts: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw the parts that there are into a PNG file.

    Args:
        parts: as benchmarks/real_learning.py writes them; "curves" holds [step, value] pairs by name.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [name for name in _PANELS if name in parts]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.7 * columns, 3.7 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        (title, quantity), part = _PANELS[name], parts[name]
        axis.set(title=title, xlabel="step", ylabel=quantity)
        axis.grid(alpha=0.3)
        for number, (curve, points) in enumerate(part["curves"].items()):
            # The seeds of one model share a colour.
            model, _, seed = curve.partition(", seed ")
            colour = f"C{['regions', 'question_only'].index(model)}" if seed else f"C{number}"
            axis.plot(*zip(*points, strict=True), ".-", markersize=3, label=curve, color=colour, linewidth=1)
        for label, value, style in _levels(name, part):
            axis.axhline(value, color="black", linestyle=style, linewidth=1, label=label)
        axis.legend(fontsize=7)
        if name == "overfit":
            axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _levels(name: str, part: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """What a panel's curves are compared with: label, value, line style."""
    if name == "overfit":
        return [("smallest possible", part["smallest_possible"], "--")]
    if name == "flickr":
        levels = [("most common caption", part["most_common_caption"]["cider_d"], ":")]
        for kind, style in (("regions", "--"), ("grid", "-.")):
            levels.append((f"nearest picture ({kind})", part[f"nearest_picture ({kind})"]["cider_d"], style))
        return levels
    if name.startswith("scst"):
        return [
            (f"{split} before", part[split]["before"]["cider_d"], style)
            for split, style in (("train", "--"), ("val", ":"))
        ]
    if name == "daquar":
        return [("most common answer", part["most_common_answer"]["accuracy"], ":")]
    return [("95%", 0.95, ":")]
