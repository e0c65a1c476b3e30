"""Answer questions with a trained model.

    loaded = load_vqa("runs/demo/vqa")
    store = RegionStore.open("runs/demo/regions")
    answers = loaded.answer_from_store(store, ["scene:000001"], ["what colour is the cube?"])
    print(answers[0].best[0].answer, answers[0].attention_weights)

A model answers only about features of the kind that it was trained on; a store of others is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from stage2_models.answers import AnswerVocabulary
from stage2_models.loader import RegionBatch
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa import VqaModel
from stage2_models.vqa_batches import encode_questions
from stage2_models.vqa_config import VqaConfig
from stage2_models.vqa_data import QuestionTokeniser, question_words, read_questions
from stage2_models.vqa_evaluation import VqaEvaluation, evaluate_questions
from store_schema.artifacts import WEIGHTS, find_model_dir, read_model_json
from store_schema.errors import CheckpointError, StoreMismatchError, UsageError
from store_schema.reader import RegionStore
from store_schema.tables import read_table


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """An answer and how sure the model is of it, 0 to 1."""

    answer: str
    score: float


@dataclass(frozen=True, kw_only=True)
class VqaAnswer:
    """The best answers to a question and where the model looked; without regions the last three are None."""

    question: str
    best: tuple[ScoredAnswer, ...]
    """Highest score first; equal scores in the order of the answer vocabulary."""
    attention_logits: NDArray[np.float32] | None
    """[G, n], the unnormalised weight of each of the picture's n regions, for each glimpse."""
    attention_weights: NDArray[np.float32] | None
    """[G, n], the same after the softmax over the regions."""
    counts: NDArray[np.float32] | None
    """[G], the number of objects that the model attended to; None also for a model that does not count."""


@dataclass(frozen=True, kw_only=True)
class LoadedVqa:
    """A trained model and what belongs to it; made by `load_vqa`."""

    path: Path
    model: VqaModel
    vocabulary: Vocabulary
    answers: AnswerVocabulary
    max_question_length: int
    tokeniser: QuestionTokeniser
    features_fingerprint: str | None
    """Of the features that it was trained on. None for a question-only model, which takes any or none, and for a
    converted one, whose features only its user knows: these are checked for their size."""
    feature_dim: int
    """D; 0 for a question-only model."""
    detector: Mapping[str, Any] | None
    """What made those features: "name", "fingerprint", perhaps "path", as in the store's metadata."""
    selection: Mapping[str, Any] | None
    device: torch.device

    def check_store(self, store: RegionStore) -> None:
        """Refuse features of another kind. Errors: `StoreMismatchError` naming both fingerprints or sizes."""
        if self.features_fingerprint is None and self.feature_dim not in (0, store.metadata.feature_dim):
            raise StoreMismatchError(
                f"the model {self.path} reads features of {self.feature_dim} numbers, those of the store {store.path} "
                f"have {store.metadata.feature_dim} (detector {store.metadata.detector['name']})"
            )
        expected, found = self.features_fingerprint, store.features_fingerprint
        if expected is not None and expected != found:
            trained = (
                "unknown" if self.detector is None else self.detector.get("path") or self.detector.get("name")
            )
            raise StoreMismatchError(
                f"the model {self.path} was trained on features {expected} (detector {trained}), the store "
                f"{store.path} holds features {found} (detector {store.metadata.detector['name']}); make a store "
                "with the model's detector, or train a model on this store"
            )

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[str], regions: RegionBatch | None, *, num_best: int = 5
    ) -> list[VqaAnswer]:
        """Answer questions, one a picture of the batch; does not check where the regions come from.

        Args:
            questions: B texts.
            regions: of their B pictures, in the same order; None only for a question-only model.
            num_best: how many answers to give, at most as many as the model knows.
        """
        if regions is None and not self.model.config.question_only:
            raise UsageError(f"the model {self.path} looks at regions: give those of the questions' pictures")
        if regions is not None and len(regions.num_regions) != len(questions):
            raise UsageError(
                f"{len(questions)} questions, but regions of {len(regions.num_regions)} pictures"
            )
        if not questions:
            return []
        token_ids, lengths = self.vocabulary.encode_padded(
            [question_words(question, self.tokeniser) for question in questions], self.max_question_length
        )
        output = self.model(
            torch.from_numpy(token_ids).to(self.device),
            torch.from_numpy(lengths).to(self.device),
            None if regions is None else regions.to(self.device),
        )
        scores = self.model.answer_scores(output.answer_logits)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :num_best]
        best = [
            tuple(
                ScoredAnswer(answer=self.answers.answers[label], score=score)
                for label, score in zip(labels, values, strict=True)
            )
            for labels, values in zip(order.tolist(), scores.gather(1, order).tolist(), strict=True)
        ]
        counts = [0] * len(questions) if regions is None else regions.num_regions.tolist()
        return [
            VqaAnswer(
                question=question,
                best=best[index],
                attention_logits=_of_picture(output.attention_logits, index, counts[index]),
                attention_weights=_of_picture(output.attention_weights, index, counts[index]),
                counts=None if output.counts is None else output.counts[index].cpu().numpy(),
            )
            for index, question in enumerate(questions)
        ]

    def answer_from_store(
        self,
        store: RegionStore,
        image_ids: Sequence[str],
        questions: Sequence[str],
        *,
        num_best: int = 5,
        batch_size: int = 256,
    ) -> list[VqaAnswer]:
        """Answer a question about each of these pictures of a store.

        Errors: `StoreMismatchError` for features of another kind, or a picture that the store does not have.
        """
        if len(image_ids) != len(questions):
            raise UsageError(f"{len(image_ids)} pictures, but {len(questions)} questions: one each is needed")
        self.check_store(store)
        rows = store.rows(image_ids)
        answers: list[VqaAnswer] = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            regions = read_regions(store, rows[part])
            answers += self.answer(questions[part], regions, num_best=num_best)
        return answers

    def answer_split(self, tables: Path, store: RegionStore | None, split: str) -> dict[str, str]:
        """The best answer to every question of a split by question_id, also where nobody's answers are known.

        Errors: `StoreMismatchError` for features of another kind, or a picture that the store does not have;
        `UsageError` where the split has no question, or a store is needed and not given.
        """
        frame = read_table(tables, "questions")
        asked = frame[frame["split"] == split]
        if asked.empty:
            raise UsageError(
                f"{tables}: no questions with split {split!r}; there are {sorted(set(frame['split']))}"
            )
        texts = asked["text"].tolist()
        if self.model.config.question_only:
            answers = self.answer(texts, None, num_best=1)
        elif store is None:
            raise UsageError(
                f"the model {self.path} looks at regions: give a store of the questions' pictures"
            )
        else:
            answers = self.answer_from_store(store, asked["image_id"].tolist(), texts, num_best=1)
        found = zip(asked["question_id"], answers, strict=True)
        return {question_id: answer.best[0].answer for question_id, answer in found}

    def evaluate(
        self, tables: Path, store: RegionStore | None, split: str, *, batch_size: int = 512
    ) -> VqaEvaluation:
        """Answer and score all questions of a split that have answers and regions.

        Errors: `StoreMismatchError` for features of another kind; `UsageError` where no question is left.
        """
        if self.model.config.question_only:
            store = None
        elif store is None:
            raise UsageError(
                f"the model {self.path} looks at regions: give a store of the questions' pictures"
            )
        else:
            self.check_store(store)
        encoded = encode_questions(
            read_questions(tables, split, store),
            self.vocabulary,
            self.answers,
            max_length=self.max_question_length,
            tokeniser=self.tokeniser,
            store=store,
        )
        return evaluate_questions(
            self.model, encoded, self.answers, store, device=self.device, batch_size=batch_size
        )


def load_vqa(path: str | Path, *, device: str | torch.device = "cpu") -> LoadedVqa:
    """Load a model from its folder, a checkpoint or a run (its best checkpoint), ready to answer.

    Errors: `InputNotFoundError` where there is no model; `CheckpointError` where it is cut short, of another
    task, or its parts do not fit together.
    """
    model_dir = find_model_dir(path)
    content = read_model_json(model_dir)
    if content.get("task") != "vqa":
        raise CheckpointError(
            f"{model_dir} holds a model of task {content.get('task')!r}; answering questions needs one of task 'vqa'"
        )
    device = torch.device(device)
    try:
        config = VqaConfig(**content["model"])
        vocabulary = Vocabulary.from_json(content["vocabulary"])
        answers = AnswerVocabulary(tuple(content["answers"]))
        model = VqaModel(
            config,
            feature_dim=int(content["feature_dim"]),
            vocabulary_size=len(vocabulary),
            pad_id=vocabulary.pad_id,
            num_answers=len(answers),
        )
        model.load_state_dict(load_file(model_dir / WEIGHTS))
        return LoadedVqa(
            path=model_dir,
            model=model.to(device).eval(),
            vocabulary=vocabulary,
            answers=answers,
            max_question_length=int(content["max_question_length"]),
            tokeniser=content["tokeniser"],
            features_fingerprint=content["features_fingerprint"],
            feature_dim=int(content["feature_dim"]),
            detector=content["detector"],
            selection=content["selection"],
            device=device,
        )
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{model_dir}: description and weights do not make a VQA model ({error}); take another checkpoint"
        ) from error


def read_regions(store: RegionStore, rows: NDArray[np.int64]) -> RegionBatch:
    """Read the regions of these rows of a store into a batch of its own memory."""
    arrays = store.read_rows(rows)
    return RegionBatch(
        features=torch.from_numpy(arrays.features),
        boxes=torch.from_numpy(arrays.boxes),
        sizes=torch.from_numpy(arrays.sizes),
        num_regions=torch.from_numpy(arrays.num_regions),
    )


def _of_picture(values: torch.Tensor | None, index: int, num_regions: int) -> NDArray[np.float32] | None:
    """Cut [B, G, K] to one picture's real regions, [G, n]."""
    if values is None:
        return None
    real: NDArray[np.float32] = values[index, :, :num_regions].cpu().numpy()
    return real
