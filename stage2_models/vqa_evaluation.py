"""Answers a whole split and scores it by the official rule."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stage2_models.answers import AnswerVocabulary
from stage2_models.vqa import VqaModel, answer_loss
from stage2_models.vqa_batches import EncodedQuestions, question_batches
from stage2_models.vqa_metrics import VqaScores, vqa_accuracy
from store_schema.reader import RegionStore


@dataclass(frozen=True, kw_only=True)
class VqaEvaluation:
    """What a model answered and what it is worth."""

    scores: VqaScores
    predictions: dict[str, str]
    """The best answer by question_id."""
    loss: float
    """Mean over the questions with a known answer; 0 where there is none."""


def evaluate_questions(
    model: VqaModel,
    encoded: EncodedQuestions,
    answers: AnswerVocabulary,
    store: RegionStore | None,
    *,
    device: torch.device,
    batch_size: int,
) -> VqaEvaluation:
    """Answer all questions without dropout; the model is left in the mode in which it came.

    A question whose answers the vocabulary does not know counts as wrong.
    """
    was_training = model.training
    model.eval()
    labels: list[torch.Tensor] = []
    indices: list[NDArray[np.int64]] = []
    losses: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in question_batches(encoded, store, batch_size=batch_size):
            moved = batch.to(device, non_blocking=True)
            output = model(moved.token_ids, moved.lengths, moved.regions, moved.pictures)
            known = moved.scores.any(1)
            loss = answer_loss(
                output.answer_logits[known], moved.labels[known], moved.scores[known], model.config.loss
            )
            labels.append(output.answer_logits.argmax(1))
            indices.append(batch.indices)
            losses.append(loss)
    model.train(was_training)
    best = np.empty(len(encoded), np.int64)
    best[np.concatenate(indices)] = torch.cat(labels).cpu().numpy()
    answered = encoded.questions.answered
    predictions = {q.question_id: answers.answers[label] for q, label in zip(answered, best, strict=True)}
    num_known = int(np.count_nonzero(encoded.has_known_answer))
    return VqaEvaluation(
        scores=vqa_accuracy(predictions, answered),
        predictions=predictions,
        loss=float(torch.stack(losses).sum()) / max(num_known, 1),
    )
