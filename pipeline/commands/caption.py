"""Describe pictures with a trained captioner: files (stage one runs first), or pictures of a store.

example: butd caption runs/demo/caption-regions runs/demo/heldout/images/000000.jpg
         butd caption runs/demo/caption-regions --store runs/demo/regions.zarr --ids s1-000000
five:    butd caption ... --beam-size 5 --num-captions 5 --length-penalty wu_0.5 --block-trigrams
drawn:   butd caption ... --sample --num-captions 5 --top-p 0.9 --seed 1
server:  butd caption ... --store test.zarr --tables test --split test --results results.json
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.store_place import store_place
from store_schema.errors import UsageError

if TYPE_CHECKING:
    from stage2_models.decoding import GeneratedCaption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd caption`."""
    add = parser.add_argument
    add("model", type=Path, help="a captioning run, checkpoint or model folder")
    add("images", type=Path, nargs="*", help="picture files or folders")
    add("--store", type=store_place, help="a store to take regions from instead")
    add(
        "--ids",
        nargs="*",
        metavar="IMAGE_ID",
        help="with --store: these pictures (default: all, with --results those of the split)",
    )
    add_decoding_arguments(parser)
    add("--weights", help="the model's detector, where it no longer lies where the model says")
    add("--boxes", help="for a model on given boxes: a table of boxes, or FastestDet as .onnx")
    add("--draw", type=Path, metavar="FOLDER", help="draw the attention on each word into this folder")
    add("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    add("--json", action="store_true", help="print JSON lines with words, log-probabilities and attention")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="write COCO results JSON, complete for --tables and --split",
    )
    add("--tables", type=Path, help="with --results: tables that name the pictures")
    add("--split", help="with --results: the split that has to be complete")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how captions are written."""
    add = parser.add_argument_group("how captions are written").add_argument
    add("--beam-size", type=int, help="default 3; 1 is greedy")
    add("--sample", action="store_true", help="draw captions at random in place of beam search")
    add("--num-captions", type=int, default=1, metavar="N", help="the n best, or n samples (default 1)")
    add("--max-length", type=int, metavar="WORDS", help="default: as in training")
    add("--min-length", type=int, default=0, metavar="WORDS")
    add("--length-penalty", default="none", metavar="FORM", help="none, avg, or wu_X such as wu_0.5")
    add("--no-repeat", action="store_true", help="no word twice in a row")
    add("--block-trigrams", action="store_true", help="no three words in a row twice")
    add("--avoid-bad-endings", action="store_true", help='no end after words such as "a" or "with"')
    add("--trim-bad-endings", action="store_true", help="take such words off the end afterwards")
    add("--allow-unk", action="store_true", help="the unknown word may be written")
    add("--temperature", type=float, default=1.0, help="below 1 likely words become likelier (default 1)")
    add("--top-k", type=int, default=0, metavar="K", help="with --sample: among the K likeliest words")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="with --sample: among those that hold P together",
    )
    add("--seed", type=int, default=0, help="with --sample (default 0)")


def run(options: argparse.Namespace) -> int:
    """Print one caption a picture, or `--num-captions` of them; or write a results file."""
    _check(options)
    import torch

    from pipeline.caption_results import pictures_to_caption
    from pipeline.inference import inputs_of
    from pipeline.training.processes import resolve_device
    from stage2_models.caption_inference import load_captioner

    device = str(resolve_device(options.device))
    loaded = load_captioner(options.model, device=device)
    decoding = loaded.decoding(**_decoding_settings(options))
    ids = options.ids
    if ids is None and options.store is not None and options.results is not None:
        ids = pictures_to_caption(options.tables, options.split)
    given = inputs_of(
        loaded.info,
        loaded.check_store,
        images=options.images,
        store=options.store,
        ids=ids,
        weights=options.weights,
        boxes=options.boxes,
        device=device,
    )
    torch.manual_seed(options.seed)
    written: dict[str, str] = {}
    for picture in given.batches(size=50):
        described = loaded.decode(picture.regions, decoding).all_captions(loaded.vocabulary)
        for place, captions in enumerate(described):
            image_id = picture.image_ids[place]
            for caption in captions:
                words = _words(caption, trim=options.trim_bad_endings)
                if options.results is None:
                    print(_line(image_id, caption, words, as_json=options.json))
            written[image_id] = " ".join(_words(captions[0], trim=options.trim_bad_endings))
            if options.draw is not None:
                picture.draw_words(place, captions[0].words, captions[0].attention, options.draw)
    if options.results is not None:
        _write_results(options, written)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    if options.draw is not None and options.store is not None:
        raise UsageError("--draw needs picture files; a store holds none. Name the files instead of --store")
    if options.sample and options.beam_size is not None:
        raise UsageError("--beam-size has no effect with --sample; leave one out")
    if options.results is None and (options.tables is not None or options.split is not None):
        raise UsageError(
            "--tables and --split belong to --results; name the file to write, or leave them out"
        )
    if options.results is not None and (options.tables is None or options.split is None):
        raise UsageError("--results needs --tables and --split: they say which pictures have to be there")


def _decoding_settings(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "num_captions": options.num_captions,
        "min_length": options.min_length,
        "length_penalty": options.length_penalty,
        "no_repeat": options.no_repeat,
        "trigram_penalty": math.inf if options.block_trigrams else 0.0,
        "forbid_bad_endings": options.avoid_bad_endings,
        "allow_unk": options.allow_unk,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
    }
    if options.sample:
        settings["method"] = "sample"
    if options.beam_size is not None:
        settings["beam_size"] = options.beam_size
    if options.max_length is not None:
        settings["max_length"] = options.max_length
    return settings


def _words(caption: "GeneratedCaption", *, trim: bool) -> list[str]:
    from stage2_models.word_rules import trim_bad_endings

    return trim_bad_endings(caption.words) if trim else list(caption.words)


def _write_results(options: argparse.Namespace, written: dict[str, str]) -> None:
    from pipeline.caption_results import caption_results
    from pipeline.evaluation import write_json

    write_json(options.results, caption_results(written, options.tables, options.split))
    print(f"{options.results}: {len(written)} captions, complete for the split {options.split!r}")


def _line(image_id: str, caption: "GeneratedCaption", kept: list[str], *, as_json: bool) -> str:
    if not as_json:
        return f"{image_id}: {' '.join(kept)}"
    return json.dumps(
        {
            "image_id": image_id,
            "caption": " ".join(kept),
            "log_prob": caption.log_prob,
            "score": caption.score,
            "words": [
                {
                    "word": word,
                    "log_prob": float(log_prob),
                    "attention": [round(float(w), 4) for w in weights],
                }
                for word, log_prob, weights in zip(
                    kept,
                    caption.log_probs,
                    caption.attention,
                    strict=False,  # what was trimmed is left out
                )
            ],
        }
    )
