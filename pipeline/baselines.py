"""The trivial baselines that every score stands beside: one caption, one answer, looking up, people against each other.

They come from the data that the models were trained on, as their runs name it, and are scored like the models.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.trained_models import TrainedModel
from store_schema.errors import StoreNotFoundError
from store_schema.reader import RegionStore
from store_schema.tables import has_table, read_table

if TYPE_CHECKING:
    from store_schema.tables import TableName

logger = logging.getLogger(__name__)


def caption_baselines(
    image_ids: Sequence[str],
    models: Sequence[TrainedModel],
    tables: Path,
    split: str,
    store: RegionStore,
) -> dict[str, Any]:
    """The most common training caption for every picture, a caption of the training picture most like it, and each
    picture's last reference against its others.

    Args:
        image_ids: the pictures that the models described.
        models: the scored models; the run of the first captioner names the training captions.
        tables: with the references of the pictures.
        split: of the tables.
        store: the pictures that it has are scored.

    Returns:
        "most_common_caption", "nearest_picture" and "human_caption" with their scores; without the first two where
        the training tables or the training store are gone, without the last where no picture has two references.
    """
    from stage2_models.caption_data import read_captions
    from stage2_models.caption_metrics import most_common_caption, score_captions

    references = read_captions(tables, split, store, max_missing_share=0.1).references()
    references = {image_id: references[image_id] for image_id in image_ids}
    baselines: dict[str, Any] = {}
    training = _training_captions(models)
    if training:
        common = most_common_caption(training)
        candidates = dict.fromkeys(image_ids, common)
        scores = score_captions(candidates, references).overall
        baselines["most_common_caption"] = {
            "text": " ".join(common),
            **scores,
            **truth_of_captions(candidates, tables),
        }
    retrieved = _retrieved(image_ids, models, store)
    if retrieved:
        scores = score_captions(retrieved, references).overall
        baselines["nearest_picture"] = {**scores, **truth_of_captions(retrieved, tables)}
    several = {image_id: texts for image_id, texts in references.items() if len(texts) > 1}
    if several:
        last = {image_id: texts[-1] for image_id, texts in several.items()}
        scores = score_captions(last, {image_id: texts[:-1] for image_id, texts in several.items()}).overall
        baselines["human_caption"] = {**scores, **truth_of_captions(last, tables)}
    return baselines


def answer_baseline(
    question_ids: Collection[str], models: Sequence[TrainedModel], tables: Path, split: str
) -> dict[str, Any]:
    """The most common training answer to every question, as "most_common_answer".

    Args:
        question_ids: the questions that the models answered.
        models: the scored models; the run of the first VQA model names the training answers.
        tables: with the questions and their answers.
        split: of the tables.

    Returns:
        An empty mapping where the training tables are gone.
    """
    from stage2_models.vqa_data import read_questions
    from stage2_models.vqa_metrics import most_common_predictions, vqa_accuracy

    source = _training_tables(models, "vqa", "questions")
    if source is None:
        return {}
    answered = [q for q in read_questions(tables, split, None).answered if q.question_id in question_ids]
    training = read_questions(*source, None).answered
    scores = vqa_accuracy(most_common_predictions(training, answered), answered)
    return {"most_common_answer": {"accuracy": scores.accuracy, "by_type": scores.by_question_type}}


def truth_of_captions(words: Mapping[str, Sequence[str]], tables: Path) -> dict[str, float]:
    """Shares of stated pairs, objects, relations and numbers that are true, where the tables know objects."""
    if not knows_objects(tables):
        return {}
    from stage2_models.grounding import true_pairs

    known = read_table(tables, "objects"), read_table(tables, "object_attributes")
    truth = true_pairs(words, *known)
    return {
        "true_pairs": truth.pairs,
        "true_objects": truth.objects,
        "stated_pairs": truth.num_pairs,
        **_statements({image_id: [caption] for image_id, caption in words.items()}, *known),
    }


def truth_of_statements(words: Mapping[str, Sequence[Sequence[str]]], tables: Path) -> dict[str, float]:
    """Shares of the relations and numbers that are true, of one or several captions a picture, where the tables know
    objects."""
    if not knows_objects(tables):
        return {}
    return _statements(words, read_table(tables, "objects"), read_table(tables, "object_attributes"))


def _statements(
    words: Mapping[str, Sequence[Sequence[str]]], objects: pd.DataFrame, object_attributes: pd.DataFrame
) -> dict[str, float]:
    from stage2_models.statements import judge_statements

    statements = judge_statements(words, objects, object_attributes)
    return {
        "true_relations": statements.relations,
        "true_relations_chance": statements.relations_chance,
        "stated_relations": statements.num_relations,
        "true_numbers": statements.numbers,
        "true_numbers_chance": statements.numbers_chance,
        "stated_numbers": statements.num_numbers,
    }


def knows_objects(tables: Path) -> bool:
    """Whether statements about objects can be judged."""
    return has_table(tables, "objects") and has_table(tables, "object_attributes")


def _retrieved(
    image_ids: Sequence[str], models: Sequence[TrainedModel], store: RegionStore
) -> dict[str, tuple[str, ...]]:
    """A caption of the training picture most like each picture, by the features of the first model that read them."""
    from stage2_models.caption_data import read_captions
    from stage2_models.retrieval import retrieve_captions

    source = _training_tables(models, "caption", "captions")
    if source is None:
        return {}
    for model in models:
        config = model.run_config()
        if model.task != "caption" or "inputs" not in config:
            continue
        try:
            trained_on = RegionStore.open(config["inputs"]["store"])
        except StoreNotFoundError:
            continue
        # All training features are read: not over a network.
        is_local = isinstance(trained_on.path, Path)
        if is_local and trained_on.features_fingerprint == store.features_fingerprint:
            training = read_captions(
                *source, trained_on, max_missing_share=config["data"]["max_missing_share"]
            )
            return retrieve_captions(training, trained_on, tuple(image_ids), store, pictures=1)
    logger.warning(
        "no baseline by retrieval: no local training store with these features is where the runs say"
    )
    return {}


def _training_captions(models: Sequence[TrainedModel]) -> list[tuple[str, ...]]:
    from stage2_models.vocabulary import tokenise

    source = _training_tables(models, "caption", "captions")
    if source is None:
        return []
    folder, split = source
    captions = read_table(folder, "captions")
    return [tuple(tokenise(text)) for text in captions.loc[captions["split"] == split, "text"]]


def _training_tables(
    models: Sequence[TrainedModel], task: str, table: "TableName"
) -> tuple[Path, str] | None:
    """The tables and split that the first model of a task was trained on, if its run says so and they are there."""
    for model in models:
        config = model.run_config()
        if model.task == task and "inputs" in config:
            folder = Path(config["inputs"]["tables"])
            if has_table(folder, table):
                return folder, config["data"]["train_split"]
    logger.warning("no trivial baseline for %s: the training tables are not where the run says", task)
    return None
