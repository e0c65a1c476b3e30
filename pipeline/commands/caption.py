"""Describe pictures with a trained captioner: files (stage one runs first), or pictures of a store.

example: butd caption runs/demo/caption-regions runs/demo/heldout/images/000000.jpg
         butd caption runs/demo/caption-regions --store runs/demo/regions.zarr --ids s1-000000
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from store_schema.errors import UsageError

if TYPE_CHECKING:
    from stage2_models.decoding import GeneratedCaption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd caption`."""
    add = parser.add_argument
    add("model", type=Path, help="a captioning run, checkpoint or model folder")
    add("images", type=Path, nargs="*", help="picture files or folders")
    add("--store", type=Path, help="a store to take regions from instead")
    add("--ids", nargs="*", metavar="IMAGE_ID", help="with --store: these pictures (default: all)")
    add("--beam-size", type=int, default=3, help="default 3; 1 is greedy")
    add("--weights", help="the model's detector, where it no longer lies where the model says")
    add("--boxes", help="for a model on given boxes: a table of boxes, or FastestDet as .onnx")
    add("--draw", type=Path, metavar="FOLDER", help="draw the attention on each word into this folder")
    add("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    add("--json", action="store_true", help="print JSON lines with words, log-probabilities and attention")


def run(options: argparse.Namespace) -> int:
    """Print one caption a picture."""
    from pipeline.inference import inputs_of
    from pipeline.training.processes import resolve_device
    from stage2_models.caption_inference import load_captioner

    if options.draw is not None and options.store is not None:
        raise UsageError("--draw needs picture files; a store holds none. Name the files instead of --store")
    device = str(resolve_device(options.device))
    loaded = load_captioner(options.model, device=device)
    given = inputs_of(
        loaded.info,
        loaded.check_store,
        images=options.images,
        store=options.store,
        ids=options.ids,
        weights=options.weights,
        boxes=options.boxes,
        device=device,
    )
    for picture in given.batches(size=50):
        captions = loaded.caption(picture.regions, loaded.decoding(beam_size=options.beam_size))
        for place, caption in enumerate(captions):
            print(_line(picture.image_ids[place], caption, as_json=options.json))
            if options.draw is not None:
                picture.draw_words(place, caption.words, caption.attention, options.draw)
    return 0


def _line(image_id: str, caption: "GeneratedCaption", *, as_json: bool) -> str:
    if not as_json:
        return f"{image_id}: {caption.text}"
    return json.dumps(
        {
            "image_id": image_id,
            "caption": caption.text,
            "log_prob": caption.log_prob,
            "words": [
                {
                    "word": word,
                    "log_prob": float(log_prob),
                    "attention": [round(float(w), 4) for w in weights],
                }
                for word, log_prob, weights in zip(
                    caption.words, caption.log_probs, caption.attention, strict=True
                )
            ],
        }
    )
