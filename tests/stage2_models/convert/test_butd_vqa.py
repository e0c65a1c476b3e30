"""Converted checkpoints of the public VQA code answer, learn and read questions as that code does (parity).

The numbers were made by running it; tests/data/butd_vqa/SOURCE.txt says how.
"""

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_models.convert.butd_vqa import QUESTION_SLOTS, convert
from stage2_models.loading.batch import RegionBatch
from stage2_models.tokeniser import tokenise_like_butd_vqa
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa import VqaModel, answer_loss
from stage2_models.vqa_config import VqaConfig
from stage2_models.vqa_data import question_words
from store_schema.errors import CheckpointError, InputNotFoundError
from tests.parity import parity_folders

FOLDERS = parity_folders("butd_vqa")
CASES = [case for folder in FOLDERS for case in sorted(folder.iterdir()) if (case / "model.pth").is_file()]
OURS = FOLDERS[0] / "newatt"

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.parent.name}-{case.name}")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _model(case: Path) -> tuple[VqaModel, Vocabulary]:
    state, description, _ = convert(case)
    vocabulary = Vocabulary.from_json(description["vocabulary"])
    model = VqaModel(
        VqaConfig(**description["model"]),
        feature_dim=description["feature_dim"],
        vocabulary_size=len(vocabulary),
        pad_id=vocabulary.pad_id,
        num_answers=len(description["answers"]),
    )
    model.load_state_dict(state)
    return model.eval(), vocabulary


def _inputs(case: Path, batch: str, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, RegionBatch, Tensor]:
    """Their arrays as ours: padding moved to the right, all region slots real, since they mask none."""
    arrays = np.load(case / "inputs.npz")
    features = torch.from_numpy(arrays[f"{batch}_v"])
    padded_left = torch.from_numpy(arrays[f"{batch}_q"])
    lengths = (padded_left != vocabulary.pad_id).sum(1)
    token_ids = torch.stack([row.roll(int(length)) for row, length in zip(padded_left, lengths, strict=True)])
    num_images, slots, _ = features.shape
    regions = RegionBatch(
        features=features,
        boxes=torch.zeros(num_images, slots, 4),
        sizes=torch.ones(num_images, 2),
        num_regions=torch.full((num_images,), slots),
    )
    return token_ids, lengths, regions, torch.from_numpy(arrays[f"{batch}_target"])


def _loss(model: VqaModel, case: Path, batch: str, vocabulary: Vocabulary) -> Tensor:
    """Their loss of a batch: summed over answers, averaged over questions."""
    token_ids, lengths, regions, target = _inputs(case, batch, vocabulary)
    dtype = next(model.parameters()).dtype
    regions.features = regions.features.to(dtype)
    labels = torch.arange(target.shape[1]).expand_as(target)
    logits = model(token_ids, lengths, regions).answer_logits
    return answer_loss(logits, labels, target.to(dtype), "bce") / len(target)


def _double(model: VqaModel, monkeypatch: pytest.MonkeyPatch) -> VqaModel:
    """The same in float64; features would be brought to float32 on the way in."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return model.double()


def _their_names(model: VqaModel, their_keys: Sequence[str]) -> dict[str, Tensor]:
    """Our parameters by their names: both list the layers in another order, so a conversion of names tells."""
    from stage2_models.convert.butd_vqa import _renamed

    keys = [key.removeprefix("module.") for key in their_keys if not key.startswith("__")]
    marked = {key: torch.full((), float(number)) for number, key in enumerate(keys)}
    ours = _renamed(marked, model.config, Path("names"))
    parameters = dict(model.named_parameters())
    return {f"module.{keys[int(number)]}": parameters[name] for name, number in ours.items()}


@each_case
@pytest.mark.parametrize("batch", ["batch0", "k10"])
def test_logits_and_attention_equal_the_public_programs_parity(case: Path, batch: str) -> None:
    model, vocabulary = _model(case)
    expected = np.load(case / f"forward_{batch}.npz")
    token_ids, lengths, regions, _ = _inputs(case, batch, vocabulary)
    with torch.no_grad():
        output = model(token_ids, lengths, regions)
    assert output.attention_weights is not None
    np.testing.assert_allclose(output.answer_logits, expected["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.attention_weights[:, 0], expected["attention"], rtol=1e-5, atol=1e-6)


@each_case
def test_losses_and_gradients_equal_the_public_programs_parity(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vocabulary = _model(case)
    for batch, expected in _json(case / "losses.json").items():
        assert _loss(model, case, batch, vocabulary).item() == pytest.approx(expected["loss"], rel=1e-5)

    model = _double(model, monkeypatch)
    _loss(model, case, "batch0", vocabulary).backward()  # type: ignore[no-untyped-call]
    gradients = _json(case / "grads.json")
    for name, parameter in _their_names(model, list(gradients)).items():
        assert parameter.grad is not None, name
        assert parameter.grad.norm().item() == pytest.approx(
            gradients[name]["norm_l2"], rel=1e-6, abs=1e-9
        ), name
        first = parameter.grad.flatten()[:8].numpy()
        np.testing.assert_allclose(first, gradients[name]["first8"], rtol=1e-5, atol=1e-9, err_msg=name)


@each_case
def test_training_steps_equal_the_public_programs_parity(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of Adamax with gradients clipped at .25, in float64, as the shipped recipe trains."""
    model, vocabulary = _model(case)
    model = _double(model, monkeypatch)
    optimizer = torch.optim.Adamax(model.parameters(), lr=2e-3)
    for number, expected in enumerate(_json(case / "adamax.json")["float64_run"]):
        optimizer.zero_grad()
        loss = _loss(model, case, f"batch{number}", vocabulary)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-7)
        assert norm.item() == pytest.approx(expected["total_grad_norm_before_clip"], rel=1e-7)
        for name, parameter in _their_names(model, list(expected["params"])).items():
            if name != "module.v_att.linear.bias":  # its true gradient is zero: noise, which Adamax blows up
                values = parameter.detach().flatten()[:8].numpy()
                np.testing.assert_allclose(values, expected["params"][name]["first8"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_questions_are_split_and_numbered_as_by_the_public_program_parity(folder: Path) -> None:
    content = _json(folder / "tokenize.json")
    for question in content["rows"]:
        assert tokenise_like_butd_vqa(question["question"]) == question["tokens"], question


@each_case
def test_questions_of_the_checkpoint_get_its_ids_parity(case: Path) -> None:
    _, vocabulary = _model(case)
    texts = _json(case / "questions_answers.json")
    for batch in ("batch0", "k10"):
        token_ids, lengths, _, _ = _inputs(case, batch, vocabulary)
        words = [question_words(text, "butd-vqa") for text in texts[batch]["questions"]]
        ids, counts = vocabulary.encode_padded(words, QUESTION_SLOTS)
        assert np.array_equal(ids, token_ids.numpy())
        assert np.array_equal(counts, lengths.numpy())


def _copy(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.pth", "dictionary.json", "ans2label.json"):
        shutil.copy(OURS / name, folder / name)
    return folder


def test_the_published_pickles_are_read_as_well_as_json(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    words = _json(folder / "dictionary.json")["idx2word"]
    answers = _json(folder / "ans2label.json")
    for name in ("dictionary.json", "ans2label.json"):
        (folder / name).unlink()
    (folder / "dictionary.pkl").write_bytes(
        pickle.dumps([{word: number for number, word in enumerate(words)}, words], protocol=2)
    )
    (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps(answers, protocol=2))
    assert convert(folder)[1] == convert(OURS)[1]


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_a_pickle_with_more_than_containers_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _copy(tmp_path)
    (folder / "dictionary.json").unlink()
    (folder / "dictionary.pkl").write_bytes(pickle.dumps([{}, [_Harmful()]]))
    with pytest.raises(CheckpointError, match="not executed"):
        convert(folder)
    assert not (tmp_path / "harm").exists()


def test_missing_left_over_and_misshaped_tensors_are_named(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    tensors = torch.load(folder / "model.pth", weights_only=True)

    def refused(changed: dict[str, Tensor], message: str) -> None:
        torch.save(changed, folder / "model.pth")
        with pytest.raises(CheckpointError, match=message):
            convert(folder)

    name = "module.q_net.main.0.bias"
    refused({key: value for key, value in tensors.items() if key != name}, r"missing \['q_net.main.0.bias'\]")
    refused({**tensors, "module.extra": torch.zeros(1)}, r"unknown \['extra'\]")
    refused({**tensors, name: torch.zeros(3)}, r"has shape \(3,\), \(64,\) is expected")


def test_a_missing_dictionary_is_named(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    (folder / "dictionary.json").unlink()
    with pytest.raises(InputNotFoundError, match="lacks the dictionary"):
        convert(folder)
