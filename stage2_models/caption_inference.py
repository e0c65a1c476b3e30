"""Describe pictures with a trained captioner.

    loaded = load_captioner("runs/demo/caption")
    store = RegionStore.open("runs/demo/regions")
    for caption in caption_regions(loaded, store, ["scene:000001"], loaded.decoding(beam_size=5)):
        print(caption.text, caption.log_prob)

A captioner reads only features of the kind that it was trained on; a store of others is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stage2_models.caption_data import Words, encode_captions, read_captions, read_in_order
from stage2_models.caption_evaluation import CaptionEvaluation, evaluate_captions
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoding import DecodedBatch, DecodingConfig, GeneratedCaption, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import Vocabulary
from store_schema.artifacts import WEIGHTS, find_model_dir, read_model_json
from store_schema.errors import CheckpointError, StoreMismatchError
from store_schema.reader import RegionStore


@dataclass(frozen=True, kw_only=True)
class LoadedCaptioner:
    """A trained captioner and what belongs to it; made by `load_captioner`."""

    path: Path
    model: Captioner
    vocabulary: Vocabulary
    info: Mapping[str, Any]
    """What the training task or the converter said of it: "features_fingerprint", "detector" (name, fingerprint,
    perhaps path), "selection", "box_source", "max_length", ...; what a converter cannot know is None."""
    device: torch.device

    def check_store(self, store: RegionStore) -> None:
        """Refuse features of another kind; those of a converted model, which only its user knows, are checked for
        their size. Errors: `StoreMismatchError` naming both fingerprints or sizes.
        """
        if (
            self.info["features_fingerprint"] is None
            and self.info["feature_dim"] != store.metadata.feature_dim
        ):
            raise StoreMismatchError(
                f"the captioner {self.path} reads features of {self.info['feature_dim']} numbers, those of the store "
                f"{store.path} have {store.metadata.feature_dim} (detector {store.metadata.detector['name']})"
            )
        expected, found = self.info["features_fingerprint"], store.features_fingerprint
        if expected is not None and expected != found:
            detector = self.info["detector"]
            raise StoreMismatchError(
                f"the captioner {self.path} was trained on features {expected} (detector "
                f"{detector.get('path') or detector['name']}), the store {store.path} holds features {found} (detector "
                f"{store.metadata.detector['name']}); make a store with the captioner's detector, or train a captioner "
                "on this store"
            )

    def decoding(self, **settings: Any) -> DecodingConfig:  # noqa: ANN401  (checked by DecodingConfig)
        """How captions are written: `max_length` as in training and the defaults, but for `settings`."""
        return DecodingConfig(**{"max_length": int(self.info["max_length"]), **settings})

    def decode(self, regions: RegionBatch, decoding: DecodingConfig | None = None) -> DecodedBatch:
        """Describe the pictures of a batch; does not check where the regions come from."""
        with torch.no_grad():
            encoded = self.model.encode(regions.to(self.device))
        return decode(self.model, encoded, self.vocabulary, decoding or self.decoding())

    def caption(self, regions: RegionBatch, decoding: DecodingConfig | None = None) -> list[GeneratedCaption]:
        """Give the best caption of each picture of a batch, as `decode` does."""
        return self.decode(regions, decoding).captions(self.vocabulary)

    def evaluate(
        self,
        tables: Path,
        store: RegionStore,
        split: str,
        *,
        decoding: DecodingConfig | None = None,
        batch_size: int = 100,
        max_missing_share: float = 0.1,
    ) -> CaptionEvaluation:
        """Caption and score all pictures of a split that have captions and regions.

        Errors: `StoreMismatchError` for features of another kind; `UsageError` as `read_captions` gives.
        """
        self.check_store(store)
        captions = read_captions(tables, split, store, max_missing_share=max_missing_share)
        return evaluate_captions(
            self.model,
            encode_captions(captions, self.vocabulary, store, max_length=self.info["max_length"]),
            self.vocabulary,
            store,
            device=self.device,
            batch_size=batch_size,
            decoding=decoding or self.decoding(),
        )


def caption_regions(
    loaded: LoadedCaptioner,
    store: RegionStore,
    image_ids: Sequence[str],
    decoding: DecodingConfig | None = None,
    *,
    batch_size: int = 100,
) -> list[GeneratedCaption]:
    """Describe these pictures of a store, in their order.

    Errors: `StoreMismatchError` for features of another kind; `StoreError` for a picture that the store lacks.
    """
    loaded.check_store(store)
    captions: list[GeneratedCaption] = []
    if image_ids:
        for _, regions in read_in_order(store, store.rows(image_ids), batch_size):
            captions += loaded.caption(regions, decoding)
    return captions


def sample_captions(
    loaded: LoadedCaptioner,
    store: RegionStore,
    image_ids: Sequence[str],
    num_captions: int,
    *,
    seed: int = 0,
    batch_size: int = 100,
) -> dict[str, list[Words]]:
    """Draw captions of these pictures of a store from the captioner's own distribution; the same for one seed.

    Returns:
        The words of `num_captions` captions by image_id. The generators of torch are left as they were.

    Errors: as of `caption_regions`.
    """
    loaded.check_store(store)
    decoding = loaded.decoding(method="sample", num_captions=num_captions)
    drawn: list[list[Words]] = []
    with torch.random.fork_rng(devices=[loaded.device] if loaded.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _, regions in read_in_order(store, store.rows(image_ids), batch_size):
            decoded = loaded.decode(regions, decoding).all_captions(loaded.vocabulary)
            drawn += [[caption.words for caption in captions] for captions in decoded]
    return dict(zip(image_ids, drawn, strict=True))


def load_captioner(path: str | Path, *, device: str | torch.device = "cpu") -> LoadedCaptioner:
    """Load a captioner from its folder, a checkpoint or a run (its best checkpoint), ready to describe.

    Errors: `InputNotFoundError` where there is no model; `CheckpointError` where it is cut short, of another
    task, or its parts do not fit together.
    """
    model_dir = find_model_dir(path)
    info = read_model_json(model_dir)
    if info.get("task") != "caption":
        raise CheckpointError(
            f"{model_dir} holds a model of task {info.get('task')!r}; describing pictures needs one of task 'caption'"
        )
    needed = ("features_fingerprint", "feature_dim", "detector", "selection", "max_length")
    missing = [key for key in needed if key not in info]
    if missing:
        raise CheckpointError(f"{model_dir}: the description lacks {missing[0]!r}; take another checkpoint")
    device = torch.device(device)
    try:
        vocabulary = Vocabulary.from_json(info["vocabulary"])
        model = build_captioner(
            CaptionerConfig(**info["model"]),
            feature_dim=int(info["feature_dim"]),
            vocabulary_size=len(vocabulary),
        )
        model.load_state_dict(load_file(model_dir / WEIGHTS))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{model_dir}: description and weights do not make a captioner ({error}); take another checkpoint"
        ) from error
    return LoadedCaptioner(
        path=model_dir, model=model.to(device).eval(), vocabulary=vocabulary, info=info, device=device
    )
