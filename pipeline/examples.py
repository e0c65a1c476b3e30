"""Draw what the models saw and said on a few pictures: regions, attention word by word, the regions of an answer.

The pictures are taken evenly over the split, not chosen by how well they came out.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.draw import draw_answer, draw_regions, draw_word_attention
from stage1_detect.images import load_image
from store_schema.reader import RegionStore
from store_schema.tables import read_table

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.evaluation import Evaluated, EvaluationSettings

logger = logging.getLogger(__name__)

_FOLDER = "examples"


def write_examples(done: "Evaluated", settings: "EvaluationSettings", split: str) -> None:
    """Draw examples into out/examples and describe them in out/examples.json.

    Scores need the store alone; a picture that is not where the tables say is not drawn, and the log says so.
    """
    from pipeline.evaluation import write_json

    drawn = _Examples(settings, split)
    content: dict[str, list[dict[str, Any]]] = {}
    store = next((s for *_, s in (*done.captions.values(), *done.answers.values()) if _has_regions(s)), None)
    if store is not None:
        content["regions"] = drawn.regions(store)
    if "regions" in done.captions:
        content["captions"] = drawn.captions(done)
    if "regions" in done.answers:
        content["answers"] = drawn.answers(done)
    write_json(settings.out / "examples.json", content)


def region_labels(store: RegionStore, image_id: str) -> list[str]:
    """A text for each region of a picture: attribute, object and the object's score, as far as the store has them."""
    record = store.image(image_id)
    if record.object_ids is None or record.object_scores is None:
        return [f"region {place}" for place in range(len(record.boxes))]
    labels = []
    for place, (object_id, score) in enumerate(zip(record.object_ids, record.object_scores, strict=True)):
        words = [store.metadata.object_names[object_id], f"{float(score):.2f}"]
        if record.attribute_ids is not None:
            words.insert(0, store.metadata.attribute_names[record.attribute_ids[place]])
        labels.append(" ".join(words))
    return labels


class _Question(NamedTuple):
    question_id: str
    image_id: str
    text: str


class _Examples:
    """The pictures of a split, and where drawings of them go."""

    def __init__(self, settings: "EvaluationSettings", split: str) -> None:
        images = read_table(settings.tables, "images")
        images = images[images["split"] == split].set_index("image_id")
        self.root = settings.images_root or settings.tables
        there = [(self.root / path).is_file() for path in images["path"]]
        self.images = images[there]
        if not all(there):
            logger.warning(
                "%d of %d pictures of split %r are not below %s and are not drawn; --images-root says where they are",
                len(there) - sum(there), len(there), split, self.root,
            )  # fmt: skip
        self.settings = settings
        (settings.out / _FOLDER).mkdir(parents=True, exist_ok=True)

    def regions(self, store: RegionStore) -> list[dict[str, Any]]:
        """Regions of some pictures with their labels."""
        examples = []
        for image_id in self._some([i for i in self.images.index if i in store]):
            boxes, labels = store.image(image_id).boxes, region_labels(store, image_id)
            picture = draw_regions(self._pixels(image_id), boxes, labels)
            examples.append(self._example("regions", image_id, picture, [{"head": image_id, "text": ""}]))
        return examples

    def captions(self, done: "Evaluated") -> list[dict[str, Any]]:
        """Attention of the captioner on regions, beside what the other captioner and people say."""
        _, result, store = done.captions["regions"]
        references = read_table(self.settings.tables, "captions").groupby("image_id")["text"]
        examples = []
        for image_id in self._some([i for i in result.captions if i in self.images.index]):
            caption, boxes = result.captions[image_id], store.image(image_id).boxes
            weights = caption.attention[:, : len(boxes)]
            picture = draw_word_attention(self._pixels(image_id), boxes, caption.words, weights)
            lines = [{"head": "on regions:", "text": caption.text}]
            if "grid" in done.captions:
                grid = done.captions["grid"][1].captions
                lines.append(
                    {"head": "on the grid:", "text": grid[image_id].text if image_id in grid else "–"}
                )
            lines.append({"head": "a person:", "text": references.get_group(image_id).iloc[0]})
            examples.append(self._example("caption", image_id, picture, lines))
        return examples

    def answers(self, done: "Evaluated") -> list[dict[str, Any]]:
        """The regions that an answer rests on, question types in turn."""
        from stage2_models.vqa_inference import load_vqa

        model, result, store = done.answers["regions"]
        assert store is not None  # the role says so
        questions = self._some_questions(set(result.predictions))
        given = load_vqa(model.model_dir).answer_from_store(
            store, [q.image_id for q in questions], [q.text for q in questions], num_best=3
        )
        truths = read_table(self.settings.tables, "answers").groupby("question_id")["answer"]
        examples = []
        for question, answer in zip(questions, given, strict=True):
            boxes = store.image(question.image_id).boxes
            assert answer.attention_logits is not None
            assert answer.attention_weights is not None
            logits, weights = answer.attention_logits[0], answer.attention_weights[0]
            picture = draw_answer(self._pixels(question.image_id), boxes, logits, weights)
            best = ", ".join(f"{scored.answer} {scored.score:.2f}" for scored in answer.best)
            truth = truths.get_group(question.question_id).mode().iloc[0]
            right = result.scores.per_question[question.question_id] >= 0.5
            verdict = "right" if right else f"wrong, it is {truth}"
            lines = [{"head": question.text, "text": ""}, {"head": "", "text": f"{best}; {verdict}"}]
            examples.append(self._example("answer", question.question_id, picture, lines))
        return examples

    def _some_questions(self, answered: set[str]) -> list["_Question"]:
        """Questions in turn over their types, each about another picture, evenly over the split."""
        table = read_table(self.settings.tables, "questions")
        table = table[table["question_id"].isin(answered) & table["image_id"].isin(self.images.index)]
        kinds = sorted(table["question_type"].unique())[: self.settings.num_examples]
        by_kind = {
            kind: [
                _Question(*row) for row in rows[["question_id", "image_id", "text"]].itertuples(index=False)
            ]
            for kind, rows in table.groupby("question_type")
        }
        chosen: list[_Question] = []
        for turn in range(self.settings.num_examples if kinds else 0):
            of_kind = by_kind[kinds[turn % len(kinds)]]
            start = turn * len(of_kind) // self.settings.num_examples
            taken = {question.image_id for question in chosen}
            chosen += [q for q in (*of_kind[start:], *of_kind[:start]) if q.image_id not in taken][:1]
        return chosen

    def _some(self, image_ids: Sequence[str]) -> list[str]:
        count = min(len(image_ids), self.settings.num_examples)
        places = np.linspace(0, len(image_ids) - 1, count).round().astype(int)
        return [image_ids[place] for place in places]

    def _pixels(self, image_id: str) -> NDArray[np.uint8]:
        return load_image(self.root / str(self.images.loc[image_id, "path"]))

    def _example(self, kind: str, name: str, picture: "Image", lines: list[dict[str, str]]) -> dict[str, Any]:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        path = Path(_FOLDER) / f"{kind}-{safe}.png"
        picture.save(self.settings.out / path)
        return {"picture": str(path), "alt": f"{kind} of {name}", "lines": lines}


def _has_regions(store: RegionStore | None) -> bool:
    return store is not None and store.metadata.box_source != "grid"
