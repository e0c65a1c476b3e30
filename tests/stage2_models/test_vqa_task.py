"""The VQA task on small real tables and a real store: learning, order, what is left out, and use afterwards."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stage2_models.vqa_batches import VqaBatch
from stage2_models.vqa_config import VqaConfig
from stage2_models.vqa_data import VqaDataConfig, read_questions
from stage2_models.vqa_inference import load_vqa, read_regions
from stage2_models.vqa_task import VqaTask, build_vqa_task
from store_schema.errors import CheckpointError, ConfigError, StoreMismatchError, UsageError
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.tables import write_table
from store_schema.writer import StoreWriter, write_block

if TYPE_CHECKING:
    from pipeline.training.task import Task

COLOURS, SHAPES = ("red", "green", "blue"), ("cube", "ball")
MODEL = replace(VqaConfig.binding(), embed_dim=16, hidden_dim=32)
PAPER = VqaConfig(embed_dim=16, hidden_dim=32)
DATA = VqaDataConfig(batch_size=8, num_workers=0, train_eval_questions=4)
WHOLE = replace(DATA, batch_size=24)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Twelve pictures, each with a cube and a ball of some colour; two questions on each."""

    tables: Path
    store: Path


def _write_store(path: Path, image_ids: list[str], *, detector: str = "d1") -> Path:
    """The first region of each picture is the cube, the second the ball; features are colour and shape."""
    metadata = StoreMetadata(
        feature_dim=len(COLOURS) + len(SHAPES),
        max_regions=2,
        min_regions=2,
        box_source="given",
        detector={"name": "drawn", "fingerprint": detector, "path": f"runs/{detector}"},
        selection={},
        block_size=16,
    )
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(image_ids):
            records = []
            for image_id in block.image_ids:
                features = np.zeros((2, metadata.feature_dim), np.float16)
                for region, colour in enumerate(_colours(image_id)):
                    features[region, [COLOURS.index(colour), len(COLOURS) + region]] = 1
                boxes = np.array([[0, 0, 30, 30], [50, 50, 90, 90]], np.float32)
                records.append(
                    ImageRecord(image_id=image_id, width=100, height=100, boxes=boxes, features=features)
                )
            writer.commit(block, write_block(path, metadata, block, records))
    return path


def _colours(image_id: str) -> tuple[str, str]:
    number = int(image_id.removeprefix("p"))
    return COLOURS[number % 3], COLOURS[number // 3 % 3]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models as small as these only lose by more threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    questions, answers = [], []
    for number in range(12):
        for split in ("train", "val"):
            for shape, colour in zip(SHAPES, _colours(f"p{number}"), strict=True):
                question_id = f"{split}-{number}-{shape}"
                questions.append(
                    {
                        "question_id": question_id,
                        "image_id": f"p{number}",
                        "text": f"What colour is the {shape}?",
                        "question_type": shape,
                        "answer_type": "other",
                        "split": split,
                    }
                )
                answers.append({"question_id": question_id, "answer": colour, "annotator": 0})
    write_table(root, "questions", questions)
    write_table(root, "answers", answers)
    return World(root, _write_store(root / "store", [f"p{number}" for number in range(12)]))


@pytest.fixture
def task(world: World) -> VqaTask:
    return build(world)


def build(world: World, model: VqaConfig = MODEL, data: VqaDataConfig = DATA) -> VqaTask:
    torch.manual_seed(0)
    store = None if model.question_only else world.store
    return build_vqa_task(world.tables, store, model=model, data=data, device=CPU)


def train(task: VqaTask, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr, weight_decay=0.0)
    step = 0
    for epoch in range(epochs):
        for batch in task.batches(epoch, 0):
            total, count, _ = task.loss(batch, step=step, epoch=epoch)
            optimizer.zero_grad()
            (total / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1


def save(task: VqaTask, folder: Path) -> Path:
    """Save as the trainer does: weights and description side by side."""
    folder.mkdir(parents=True)
    save_file(task.model.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(task.describe()), encoding="utf-8")
    return folder


@pytest.mark.parametrize("config", [MODEL, PAPER], ids=["binding", "paper"])
def test_both_forms_bind_colours_to_shapes_and_the_questions_alone_do_not(
    world: World, config: VqaConfig
) -> None:
    seeing, blind = build(world, config, WHOLE), build(world, config.without_regions(), WHOLE)
    for task in (seeing, blind):
        train(task, epochs=60, lr=1e-2)
    metrics = seeing.evaluate()
    assert metrics["accuracy"] == metrics["accuracy/cube"] == metrics["accuracy/ball"] == 1.0
    assert metrics["train_accuracy"] == 1.0
    assert metrics["answer_loss"] < 0.1
    assert blind.evaluate()["accuracy"] < 0.5


def test_it_has_the_shape_of_the_trainers_protocol(task: VqaTask) -> None:
    as_protocol: Task[VqaBatch] = task  # checked by mypy
    assert as_protocol.name == "vqa"
    assert as_protocol.best_metric in as_protocol.evaluate()
    assert as_protocol.num_batches() == 3
    assert set(as_protocol.identity()) == {"model", "vocabulary", "answers", "store"}


def test_a_checkpoint_may_go_on_with_another_dropout_but_not_with_another_size(world: World) -> None:
    identity = build(world, MODEL).identity()
    assert build(world, replace(MODEL, dropout=0.5)).identity() == identity
    assert build(world, replace(MODEL, hidden_dim=31)).identity() != identity


@pytest.mark.parametrize("config", [MODEL, MODEL.without_regions()], ids=["regions", "question only"])
def test_batches_from_the_middle_equal_those_of_the_whole_epoch(world: World, config: VqaConfig) -> None:
    task = build(world, config)
    whole = [task.batch_ids(batch) for batch in task.batches(3, 0)]
    assert [task.batch_ids(batch) for batch in task.batches(3, 2)] == whole[2:]
    assert len(whole) == task.num_batches()
    assert sorted(name for names in whole for name in names) == sorted(
        q.question_id for q in task.train.questions.answered
    )


def test_question_only_sees_the_same_order_as_the_model_with_regions(world: World) -> None:
    seeing, blind = build(world), build(world, MODEL.without_regions())
    for one, other in zip(seeing.batches(1, 0), blind.batches(1, 0), strict=True):
        assert seeing.batch_ids(one) == blind.batch_ids(other)


def test_evaluation_leaves_the_model_in_training_mode_and_repeats_itself(task: VqaTask) -> None:
    task.model.train()
    assert task.evaluate() == task.evaluate()
    assert task.model.training


def test_the_batch_holds_its_own_pictures_regions(task: VqaTask, world: World) -> None:
    store = RegionStore.open(world.store)
    for batch in task.batches(0, 0):
        assert batch.regions is not None
        images = [task.train.questions.image_ids[index] for index in batch.indices]
        assert torch.equal(batch.regions.features, read_regions(store, store.rows(images)).features)


def test_features_are_scaled_by_the_training_pictures(task: VqaTask) -> None:
    statistics = task.model.get_buffer("region_input.statistics.mean")
    assert statistics[-2:].tolist() == pytest.approx([0.5, 0.5])


def test_questions_without_answer_or_picture_are_counted_and_left_out(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = RegionStore.open(_write_store(tmp_path / "few", ["p0", "p1"]))
    question = {
        "image_id": "p0", "text": "Why?", "question_type": "why", "answer_type": "other", "split": "train",
    }  # fmt: skip
    rows = [question | {"question_id": "asked"}, question | {"question_id": "unanswered"}]
    write_table(tmp_path, "questions", [*rows, question | {"question_id": "elsewhere", "image_id": "p7"}])
    answers = [{"question_id": name, "answer": "so", "annotator": 0} for name in ("asked", "elsewhere")]
    write_table(tmp_path, "answers", answers)
    with caplog.at_level(logging.WARNING):
        kept = read_questions(tmp_path, "train", store)
    assert [q.question_id for q in kept.answered] == ["asked"]
    assert "1 of 3 questions have no answer" in caplog.text
    assert "1 of 3 questions are about pictures" in caplog.text
    assert "1 not extracted (such as p7)" in caplog.text


def test_no_question_left_is_an_error(world: World, tmp_path: Path) -> None:
    store = _write_store(tmp_path / "others", ["p100", "p101"])
    with pytest.raises(
        UsageError, match="none of the 24 questions with split 'train' has an answer and a pic"
    ):
        build_vqa_task(world.tables, store, model=MODEL, data=DATA, device=CPU)
    with pytest.raises(UsageError, match=r"no questions with split 'dev'; there are \['train', 'val'\]"):
        build(world, data=replace(DATA, eval_split="dev"))


def test_a_store_is_needed_unless_only_questions_are_read(world: World) -> None:
    for store, model in ((None, MODEL), (world.store, MODEL.without_regions())):
        with pytest.raises(UsageError, match="a question-only model is trained without a store"):
            build_vqa_task(world.tables, store, model=model, data=DATA, device=CPU)


def test_several_annotators_answers_become_soft_scores(world: World, tmp_path: Path) -> None:
    question = {
        "image_id": "p0", "text": "Why?", "question_type": "why", "answer_type": "other",
    }  # fmt: skip
    rows = [question | {"question_id": split, "split": split} for split in ("train", "val")]
    write_table(tmp_path, "questions", rows)
    given = ["Two"] * 6 + ["2"] + ["the cat"] * 3
    write_table(
        tmp_path,
        "answers",
        [
            {"question_id": split, "answer": answer, "annotator": person}
            for split in ("train", "val")
            for person, answer in enumerate(given)
        ],
    )
    task = build_vqa_task(tmp_path, None, model=PAPER.without_regions(), data=DATA, device=CPU)
    assert task.answers.answers == ("2",)
    (batch,) = task.batches(0, 0)
    assert batch.labels.tolist() == [[0]]
    assert batch.scores.tolist() == [[1.0]]


def test_the_number_of_questions_in_an_evaluation_can_be_limited(world: World) -> None:
    task = build(world, data=replace(DATA, max_eval_questions=1, train_eval_questions=0))
    assert set(task.evaluate()) == {"accuracy", "answer_loss", "accuracy/cube"}


def test_a_data_configuration_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_answer_count must be at least 1, it is 0"):
        VqaDataConfig(min_answer_count=0)


class TestInference:
    """A saved model answers as the one that was trained."""

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[VqaTask, Path]:
        task = build(world, data=WHOLE)
        train(task, epochs=60, lr=1e-2)
        return task, save(task, tmp_path_factory.mktemp("run") / "model")

    def test_answers_come_with_scores_and_every_regions_attention(
        self, saved: tuple[VqaTask, Path], world: World
    ) -> None:
        loaded, store = load_vqa(saved[1]), RegionStore.open(world.store)
        images, questions = ["p1", "p5"], ["what colour is the cube?", "What colour is the ball?"]
        for image, question, answer in zip(
            images, questions, loaded.answer_from_store(store, images, questions), strict=True
        ):
            shape = 0 if "cube" in question else 1
            assert answer.best[0].answer == _colours(image)[shape]
            scores = [item.score for item in answer.best]
            assert scores == sorted(scores, reverse=True)
            assert sum(scores) == pytest.approx(1.0)  # all three answers, cross entropy
            assert answer.attention_logits is not None
            assert answer.attention_weights is not None
            assert answer.counts is not None
            assert answer.attention_weights.shape == (2, 2)  # glimpses, regions
            exponent = np.exp(answer.attention_logits)
            expected = exponent / exponent.sum(1, keepdims=True)
            assert answer.attention_weights == pytest.approx(expected, abs=1e-6)

    def test_n_best_are_the_first_of_all(self, saved: tuple[VqaTask, Path], world: World) -> None:
        loaded, store = load_vqa(saved[1]), RegionStore.open(world.store)
        all_best = loaded.answer_from_store(store, ["p1"], ["what colour is the cube?"])[0].best
        two_best = loaded.answer_from_store(store, ["p1"], ["what colour is the cube?"], num_best=2)[0].best
        assert two_best == all_best[:2]

    def test_it_scores_a_split_as_the_task_does(self, saved: tuple[VqaTask, Path], world: World) -> None:
        task, path = saved
        evaluation = load_vqa(path).evaluate(world.tables, RegionStore.open(world.store), "val")
        metrics = task.evaluate()
        assert evaluation.scores.accuracy == metrics["accuracy"]
        assert evaluation.loss == pytest.approx(metrics["answer_loss"], rel=1e-5)
        assert len(evaluation.predictions) == 24

    def test_another_detectors_store_is_refused_with_both_fingerprints(
        self, saved: tuple[VqaTask, Path], world: World, tmp_path: Path
    ) -> None:
        loaded = load_vqa(saved[1])
        other = RegionStore.open(_write_store(tmp_path / "other", ["p1"], detector="d2"))
        with pytest.raises(StoreMismatchError) as caught:
            loaded.answer_from_store(other, ["p1"], ["what colour is the cube?"])
        trained_on = RegionStore.open(world.store).features_fingerprint
        assert trained_on in str(caught.value)
        assert other.features_fingerprint in str(caught.value)
        assert "runs/d1" in str(caught.value)

    def test_a_model_of_another_task_is_refused(self, saved: tuple[VqaTask, Path], tmp_path: Path) -> None:
        folder = save(saved[0], tmp_path / "model")
        (folder / "model.json").write_text('{"task": "caption"}', encoding="utf-8")
        with pytest.raises(CheckpointError, match="holds a model of task 'caption'"):
            load_vqa(folder)

    def test_weights_that_do_not_fit_are_refused(self, saved: tuple[VqaTask, Path], tmp_path: Path) -> None:
        folder = save(saved[0], tmp_path / "model")
        content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        content["answers"].append("purple")
        (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(CheckpointError, match="do not make a VQA model"):
            load_vqa(folder)

    def test_a_model_that_looks_at_regions_asks_for_them(self, saved: tuple[VqaTask, Path]) -> None:
        with pytest.raises(UsageError, match="looks at regions"):
            load_vqa(saved[1]).answer(["what colour is the cube?"], None)


def test_the_words_begin_with_the_vectors_of_a_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("what " + " ".join(["0.25"] * 16) + "\n", encoding="utf-8")
    data = replace(DATA, word_vectors=str(path))
    task = build_vqa_task(world.tables, world.store, model=MODEL, data=data, device=CPU)
    embedding = task._network.question.embedding.weight
    assert (embedding[task.vocabulary.ids["what"]] == 0.25).all()
    assert not embedding[task.vocabulary.ids["cube"]].any()


def test_batches_by_picture_hold_every_question_once_beside_its_own_picture(world: World) -> None:
    data = replace(DATA, by_picture=True, batch_size=6)
    task = build_vqa_task(world.tables, world.store, model=MODEL, data=data, device=CPU)
    rows = task.train.rows
    assert task.store is not None
    assert rows is not None
    batches = list(task.batches(epoch=0, start=0))
    assert len(batches) == task.num_batches() == 4  # three of twelve pictures in each
    asked = [question_id for batch in batches for question_id in task.batch_ids(batch)]
    assert len(asked) == len(set(asked)) == 24
    for batch in batches:
        assert batch.pictures is not None
        assert batch.regions is not None
        own = task.store.read_rows(rows[batch.indices]).features
        assert np.array_equal(batch.regions.features[batch.pictures].numpy(), own)
    total, count, _ = task.loss(batches[0], step=0, epoch=0)
    copies = task.train.batch(batches[0].indices, read_regions(task.store, rows[batches[0].indices]))
    assert torch.allclose(total, task.loss(copies, step=0, epoch=0)[0])
    assert count == 6


def test_two_orders_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="by_length and by_picture"):
        VqaDataConfig(by_length=True, by_picture=True)
