"""Converted checkpoints of self-critical.pytorch predict, learn and decode as that code does (parity).

The numbers were made by running it; tests/data/self_critical_updown/SOURCE.txt says how. On other folders of the
kind: `BUTD_PARITY=/folder pytest tests -k parity`.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.conversion import convert
from stage2_models.caption_inference import LoadedCaptioner, load_captioner
from stage2_models.caption_losses import advantages, self_critical_loss, smoothed_cross_entropy
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner
from stage2_models.decoded import DecodedBatch
from stage2_models.decoding import DecodingConfig, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.word_rules import trim_bad_endings
from store_schema.errors import ButdError, CheckpointError, InputNotFoundError, UsageError
from tests.parity import parity_folders

FOLDERS = parity_folders("self_critical_updown")
CASES = [case for folder in FOLDERS for case in sorted(folder.iterdir()) if (case / "model.pth").is_file()]
OURS = FOLDERS[0] / "b"
VARIANTS = sorted(json.loads((OURS / "decoding_options.json").read_text()))
SOFT_TRIGRAM_PENALTY = 2 * 0.693

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.parent.name}-{case.name}")


@dataclass(frozen=True)
class Batch:
    """Their arrays as ours. lengths: [B, Q] words; mask: [B * Q, T] where their loss counts a token."""

    regions: RegionBatch
    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    mask: NDArray[np.bool_]
    tokens: CaptionTokens


@cache
def _loaded(case: Path) -> LoadedCaptioner:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        length = str(_config(case)["effective_max_length"])
        convert(case, Path(folder) / "model", "self-critical-updown", [f"max_length={length}"])
        return load_captioner(Path(folder) / "model")


def _model(case: Path) -> Captioner:
    """A copy of its own: tests change mode and precision."""
    import copy

    return copy.deepcopy(_loaded(case).model)


def _config(case: Path) -> Any:
    return json.loads((case / "config.json").read_text())


def _losses(case: Path) -> Any:
    return json.loads((case / "losses.json").read_text())


def _regions(features: NDArray[np.float32], num_regions: NDArray[np.int64]) -> RegionBatch:
    pictures, slots = features.shape[:2]
    return RegionBatch(
        torch.from_numpy(features), torch.zeros(pictures, slots, 4), torch.ones(pictures, 2),
        torch.from_numpy(num_regions),
    )  # fmt: skip


def _batch(case: Path, name: str) -> Batch:
    arrays = np.load(case / "inputs.npz")
    prefix = "fixed_" if name == "fixed" else ""
    features = arrays[f"{prefix}att_feats"]
    full = np.full(len(features), features.shape[1])
    counts = full if name == "fixed" else arrays["att_masks"].sum(1).astype(np.int64)
    labels = arrays["labels" if name == "main" else f"{name}_labels"]
    masks = arrays["masks" if name == "main" else f"{name}_masks"]
    words = labels[:, :, 1:]
    lengths = (words != 0).sum(2)
    tokens = CaptionTokens.from_arrays(words, lengths, _loaded(case).vocabulary)
    mask = masks[:, :, 1:].reshape(-1, words.shape[2]) > 0
    return Batch(_regions(features, counts), words, lengths, mask, tokens)


def _names(case: Path) -> list[str]:
    """The batches of a case; the one without region masks fails in the published code itself with batch_norm."""
    has_fixed = "fixed_xe_per_caption" in np.load(case / "teacher_forcing.npz")
    return ["main", "short", *(["fixed"] if has_fixed else [])]


def _log_probs(model: Captioner, batch: Batch) -> Tensor:
    """[B * Q, T, V] log-probabilities at the tokens that count, zeros elsewhere; caption by caption as they came."""
    pictures, captions, steps = batch.token_ids.shape
    logits = model(batch.regions, batch.tokens)
    # Our reading order back into theirs: steps outside, then captions by falling length, then pictures.
    order = np.argsort(-batch.lengths, axis=1, kind="stable")
    slots = np.concatenate([np.arange(count * pictures) for count in batch.tokens.captions_per_step])
    step = np.repeat(
        np.arange(len(batch.tokens.captions_per_step)), np.array(batch.tokens.captions_per_step) * pictures
    )
    picture, slot = slots % pictures, slots // pictures
    rows = torch.from_numpy(picture * captions + order[picture, slot])[batch.tokens.positions]
    result = logits.new_zeros(pictures * captions, steps, logits.shape[1])
    positions = torch.from_numpy(step)[batch.tokens.positions]
    placed: Tensor = result.index_put((rows, positions), logits.log_softmax(-1))
    return placed


def _step_by_step(case: Path, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [B * Q, T, K], hidden and cell states [2, B * Q, T, H] of given captions."""
    model = _model(case)
    pictures, captions, _ = batch.token_ids.shape
    begin = np.zeros((pictures, captions, 1), dtype=np.int64)
    inputs = torch.from_numpy(np.concatenate([begin, batch.token_ids[:, :, :-1]], 2))  # [B, Q, T]
    attention: list[Tensor] = []
    hidden: list[Tensor] = []
    cell: list[Tensor] = []
    with torch.no_grad():
        encoded = model.encode(batch.regions)
        state = model.initial_state(captions * pictures, encoded.mean_gates)
        for words in inputs.transpose(0, 1).flatten(0, 1).t():
            state, weights = model.step(encoded, model.gates_of_words(words), state)
            attention.append(weights.flatten(0, 1))
            for kept, values in ((hidden, state[::2]), (cell, state[1::2])):
                kept.append(torch.stack(values).view(2, captions, pictures, -1).transpose(1, 2).flatten(1, 2))
    return torch.stack(attention, 1), torch.stack(hidden, 2), torch.stack(cell, 2)


@each_case
def test_logits_equal_the_public_programs_parity(case: Path) -> None:
    expected = np.load(case / "teacher_forcing.npz")
    for name in _names(case):
        batch, logprobs = _batch(case, name), expected[f"{name}_logprobs"]
        with torch.no_grad():
            found = _log_probs(_model(case), batch).numpy()
        rows = slice(0, len(logprobs))
        np.testing.assert_allclose(found[rows][batch.mask[rows]], logprobs[batch.mask[rows]], atol=1e-5)


@each_case
def test_attention_and_states_equal_the_public_programs_parity(case: Path) -> None:
    expected = np.load(case / "teacher_forcing.npz")
    for name in _names(case):
        batch, attention = _batch(case, name), expected[f"{name}_attention"]
        found, hidden, cell = _step_by_step(case, batch)
        rows, steps, slots = attention.shape
        real = batch.mask[:rows, :steps]
        np.testing.assert_allclose(found[:rows, :steps, :slots].numpy()[real], attention[real], atol=1e-5)
        if name == "main":
            for states, key in ((hidden, "h"), (cell, "c")):
                theirs = expected[f"main_first_image_{key}"]
                mask = batch.mask[: theirs.shape[1]]
                np.testing.assert_allclose(
                    states[:, : theirs.shape[1]].numpy()[:, mask], theirs[:, mask], atol=1e-5
                )


@each_case
def test_losses_equal_the_public_programs_parity(case: Path) -> None:
    expected, losses = np.load(case / "teacher_forcing.npz"), _losses(case)["teacher_forcing"]
    for name in _names(case):
        batch, model = _batch(case, name), _model(case)
        with torch.no_grad():
            logits, each = model(batch.regions, batch.tokens), _log_probs(model, batch).numpy()
        targets = batch.tokens.targets
        assert len(targets) == losses[f"{name}_mask_sum"]
        for key, smoothing in (("xe", 0.0), ("label_smoothing_0.1", 0.1)):
            mean = smoothed_cross_entropy(logits, targets, smoothing) / len(targets)
            assert mean.item() == pytest.approx(losses[f"{name}_{key}"], abs=1e-5)
        words = batch.token_ids.reshape(len(each), -1)
        of_words = np.take_along_axis(each, words[:, :, None], 2)[:, :, 0]
        per_caption = -(of_words * batch.mask).sum(1) / batch.mask.sum(1)
        np.testing.assert_allclose(per_caption, expected[f"{name}_xe_per_caption"], atol=2e-5)


def _double(case: Path, monkeypatch: pytest.MonkeyPatch) -> Captioner:
    """The model in float64; features would be brought to float32 on the way in."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return _model(case).double()


@each_case
def test_gradients_in_float64_equal_the_public_programs_parity(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, losses = _double(case, monkeypatch), _batch(case, "main"), _losses(case)["teacher_forcing"]
    targets = batch.tokens.targets
    smoothed = smoothed_cross_entropy(model(batch.regions, batch.tokens), targets, 0.1) / len(targets)
    assert smoothed.item() == pytest.approx(losses["main_label_smoothing_0.1_float64"], abs=1e-9)
    loss = smoothed_cross_entropy(model(batch.regions, batch.tokens), targets, 0.0) / len(targets)
    assert loss.item() == pytest.approx(losses["main_xe_float64"], abs=1e-9)
    loss.backward()  # type: ignore[no-untyped-call]
    _compare_gradients(model, json.loads((case / "xe_grads.json").read_text()), rel=1e-6, abs_=1e-10)
    if (case / "xe_grads.npz").is_file():
        whole = np.load(case / "xe_grads.npz")
        for name, gradient in _their_gradients(model).items():
            np.testing.assert_allclose(gradient.numpy(), whole[name], rtol=1e-5, atol=1e-9)


def _compare_gradients(model: Captioner, expected: Mapping[str, Any], *, rel: float, abs_: float) -> None:
    found = _their_gradients(model)
    assert found.keys() == {name for name in expected if not name.startswith("__")}
    for name, gradient in found.items():
        assert gradient.norm().item() == pytest.approx(expected[name]["norm_l2"], rel=rel, abs=abs_)
        np.testing.assert_allclose(
            gradient.flatten()[:8].numpy(), expected[name]["first8"], rtol=rel, atol=abs_
        )


def _their_gradients(model: Captioner) -> dict[str, Tensor]:
    """Our gradients by their names, cut and joined as their weights are; each of their two biases has ours."""
    ours = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    hidden = model.hidden_dim

    def gates(value: Tensor) -> Tensor:
        enter, forget, leave, candidate = value.chunk(4)
        return torch.cat([enter, forget, candidate, leave])

    from stage2_models.convert.self_critical import _SAME

    theirs = {name: ours[our_name] for name, our_name in _SAME.items()}
    linear = "att_embed.0" if model.norm_before is None else "att_embed.1"
    for layer, module in (
        (linear, "region_embedding"),
        ("att_embed.0", "norm_before"),
        ("att_embed.4", "norm_after"),
    ):
        if getattr(model, module) is not None:
            theirs |= {f"{layer}.{part}": ours[f"{module}.{part}"] for part in ("weight", "bias")}
    first, second = ours["attention_recurrence.weight"], ours["language_recurrence.weight"]
    inputs = [first[:, hidden:], ours["mean_gates.weight"], ours["word_gates.weight"]]
    theirs["core.att_lstm.weight_ih"] = gates(torch.cat(inputs, 1))
    theirs["core.att_lstm.weight_hh"] = gates(first[:, :hidden])
    theirs["core.lang_lstm.weight_ih"] = gates(
        torch.cat([ours["region_gates.weight"], second[:, :hidden]], 1)
    )
    theirs["core.lang_lstm.weight_hh"] = gates(second[:, hidden:])
    for kind in ("ih", "hh"):
        theirs[f"core.att_lstm.bias_{kind}"] = gates(ours["word_gates.bias"])
        theirs[f"core.lang_lstm.bias_{kind}"] = gates(ours["language_recurrence.bias"])
    return theirs


@each_case
def test_batch_norm_in_training_equals_the_public_programs_parity(case: Path) -> None:
    expected = np.load(case / "teacher_forcing.npz")
    model, batch = _model(case).train(), _batch(case, "main")
    if "bntrain_logprobs" not in expected:
        assert model.norm_before is None
        return
    model.dropout.p = 0.0
    with torch.no_grad():
        found = _log_probs(model, batch).numpy()
    rows = slice(0, len(expected["bntrain_logprobs"]))
    np.testing.assert_allclose(
        found[rows][batch.mask[rows]], expected["bntrain_logprobs"][batch.mask[rows]], atol=1e-5
    )
    state = model.state_dict()
    for part in ("running_mean", "running_var", "num_batches_tracked"):
        for theirs, ours in (("att_embed.0", "norm_before"), ("att_embed.4", "norm_after")):
            np.testing.assert_allclose(
                state[f"{ours}.{part}"].numpy(),
                expected[f"bntrain_after__{theirs}.{part}"],
                rtol=1e-5,
                atol=1e-6,
            )


def _decoding(case: Path, options: Mapping[str, Any]) -> DecodingConfig:
    """Their options as ours; greedy never suppresses UNK, beam search never looks at trigrams."""
    beam = options["beam_size"] > 1
    return DecodingConfig(
        beam_size=options["beam_size"],
        num_captions=options["beam_size"] if beam else 1,
        max_length=_config(case)["effective_max_length"],
        length_penalty=options["length_penalty"] or "none",
        no_repeat=bool(options["decoding_constraint"]),
        trigram_penalty=SOFT_TRIGRAM_PENALTY if options["block_trigrams"] and not beam else 0.0,
        forbid_bad_endings=bool(options["remove_bad_endings"]),
        allow_unk=not (beam and options["suppress_UNK"]),
        temperature=options["temperature"],
        temper_first_word=False,
    )


@cache
def _decoded(case: Path, variant: str) -> tuple[DecodedBatch, DecodingConfig]:
    loaded, batch = _loaded(case), _batch(case, "main")
    config = _decoding(case, json.loads((case / "decoding_options.json").read_text())[variant])
    with torch.no_grad():
        encoded = loaded.model.encode(batch.regions)
    return decode(loaded.model, encoded, loaded.vocabulary, config), config


def _padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])


@each_case
@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_and_scores_equal_the_public_programs_parity(case: Path, variant: str) -> None:
    expected = np.load(case / "decoding.npz")
    found, config = _decoded(case, variant)
    length = config.max_length
    token_ids, log_probs = _padded(found.token_ids.numpy(), length), _padded(found.log_probs.numpy(), length)
    sequences, of_words = expected[f"{variant}__seq"], expected[f"{variant}__token_logprobs"]
    ours = token_ids[:, : len(sequences) // len(token_ids)].reshape(len(sequences), length)
    np.testing.assert_array_equal(ours, sequences)
    ended = np.cumsum(sequences == 0, 1) > 1  # after the end, which itself counts
    each = log_probs[:, : len(sequences) // len(token_ids)].reshape(sequences.shape)
    np.testing.assert_allclose(each[~ended], of_words[~ended], atol=1e-4)
    if f"{variant}__nbest_seq" in expected:
        np.testing.assert_array_equal(token_ids, expected[f"{variant}__nbest_seq"])
        np.testing.assert_allclose(found.scores.numpy(), expected[f"{variant}__nbest_score"], atol=1e-4)
    if f"{variant}__nbest_token_logprobs" in expected:
        np.testing.assert_allclose(log_probs, expected[f"{variant}__nbest_token_logprobs"], atol=1e-4)
    if f"{variant}__eval_perplexity" in expected and len(sequences) == len(token_ids):
        num_tokens = (sequences != 0).sum(1) + 1
        perplexity = -np.where(ended, 0.0, each).sum(1) / num_tokens
        np.testing.assert_allclose(perplexity, expected[f"{variant}__eval_perplexity"], atol=1e-4)


@each_case
def test_captions_as_strings_equal_the_public_programs_parity(case: Path) -> None:
    vocabulary = _loaded(case).vocabulary
    for variant, expected in json.loads((case / "captions.json").read_text()).items():
        found, _ = _decoded(case, variant)
        num = len(expected["REMOVE_BAD_ENDINGS=0"]) // len(found.token_ids)
        captions = [c for picture in found.all_captions(vocabulary) for c in picture[:num]]
        assert [caption.text for caption in captions] == expected["REMOVE_BAD_ENDINGS=0"]
        trimmed = [" ".join(trim_bad_endings(caption.words)) for caption in captions]
        assert trimmed == expected["REMOVE_BAD_ENDINGS=1"]
    made = json.loads((case / "decode_cases.json").read_text())
    words = [vocabulary.decode(sequence) for sequence in made["sequences"]]
    assert [" ".join(each) for each in words] == made["REMOVE_BAD_ENDINGS=0"]
    assert [" ".join(trim_bad_endings(each)) for each in words] == made["REMOVE_BAD_ENDINGS=1"]


@each_case
def test_length_penalties_equal_the_public_programs_parity(case: Path) -> None:
    from stage2_models.beam_search import _penalties

    for row in json.loads((case / "length_penalty_table.json").read_text()):
        config = DecodingConfig(length_penalty=row["length_penalty"] or "none", max_length=row["length"])
        score = row["logprob_sum"] / _penalties(config, torch.device("cpu"))[-1].item()
        assert score == pytest.approx(row["score"], abs=1e-5)


@each_case
@pytest.mark.parametrize("form", ["self_critical", "new_self_critical", "best_of_n"])
def test_self_critical_losses_and_gradients_equal_the_public_programs_parity(case: Path, form: str) -> None:
    inputs, expected = np.load(case / "inputs.npz"), np.load(case / "scst.npz")
    scores = torch.from_numpy(inputs["sample_scores"])
    greedy = torch.from_numpy(inputs["greedy_scores"])
    baseline: Any = {"self_critical": "greedy", "new_self_critical": "other_samples"}.get(form, form)
    advantage = advantages(scores, greedy, baseline)  # [B, Q]
    if form == "self_critical":
        np.testing.assert_allclose(
            advantage.flatten().numpy(), expected["self_critical_reward"][:, 0], atol=1e-6
        )
    model, pictures = _model(case), len(scores)
    samples = expected["sample_seq"].reshape(pictures, -1, expected["sample_seq"].shape[1])
    lengths = (samples != 0).sum(2)
    ends = lengths < samples.shape[2]
    tokens = CaptionTokens.from_arrays(samples, lengths, _loaded(case).vocabulary, ends)
    logits = model(_batch(case, "main").regions, tokens)
    log_probs = logits.log_softmax(-1).gather(1, tokens.targets.unsqueeze(1)).squeeze(1)
    order = np.argsort(-(lengths + ends), axis=1, kind="stable")
    sorted_advantage = advantage.gather(1, torch.from_numpy(order)).t().flatten()  # caption by caption
    slots = torch.cat([torch.arange(count * pictures) for count in tokens.captions_per_step])[
        tokens.positions
    ]
    loss = self_critical_loss(log_probs, sorted_advantage[slots]) / len(tokens.targets)
    assert loss.item() == pytest.approx(_losses(case)["scst"][form], abs=1e-5)
    gradients = json.loads((case / "scst_grads.json").read_text())
    if form in gradients:
        loss.backward()  # type: ignore[no-untyped-call]
        _compare_gradients(model, gradients[form], rel=1e-3, abs_=1e-6)


@each_case
def test_the_greedy_baseline_equals_the_public_programs_parity(case: Path) -> None:
    expected = np.load(case / "scst.npz")["greedy_seq"]
    found, config = _decoded(case, "greedy_base")
    np.testing.assert_array_equal(_padded(found.token_ids.numpy(), config.max_length)[:, 0], expected)


def _changed(tmp_path: Path, **changes: Tensor | None) -> Path:
    """A copy of a checkpoint with some tensors changed, added or left out."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(OURS, folder)
    state = torch.load(OURS / "model.pth", weights_only=True)
    for name, value in changes.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if value is not None:
            state[key] = value
    torch.save(state, folder / "model.pth")
    return folder


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_named(tmp_path: Path) -> None:
    for place, (changes, message) in enumerate(
        (
            ({"logit__bias": None}, r"missing \['logit.bias'\]"),
            ({"core__gate__weight": torch.ones(2)}, r"unknown \['core.gate.weight'\]"),
            (
                {"logit__weight": torch.ones(3, 40)},
                r"classifier.weight has shape \(3, 40\), \(57, 40\) is expected",
            ),
            ({"embed__0__weight": None}, "is it a checkpoint of self-critical.pytorch's model 'updown'"),
        )
    ):
        folder = _changed(tmp_path / str(place), **changes)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=message):
            convert(folder, tmp_path / "out", "self-critical-updown")
    assert not (tmp_path / "out").exists()


def test_words_may_come_from_json_from_the_data_file_or_from_the_infos_whose_code_is_not_run(
    tmp_path: Path,
) -> None:
    import argparse
    import pickle

    words = json.loads((OURS / "vocab.json").read_text())
    expected = _loaded(OURS).vocabulary.words

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    infos = {"vocab": words, "opt": argparse.Namespace(rnn_size=40), "trap": Trap(), "best": np.float64(1.0)}
    (tmp_path / "infos_b.pkl").write_bytes(pickle.dumps(infos))
    (tmp_path / "cocotalk.json").write_text(json.dumps({"ix_to_word": words, "images": []}))
    for name in ("infos_b.pkl", "cocotalk.json"):
        out = tmp_path / f"from-{name}"
        convert(OURS / "model.pth", out, "self-critical-updown", [f"vocabulary={tmp_path / name}"])
        assert load_captioner(out).vocabulary.words == expected
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("vocabulary=nowhere.json", InputNotFoundError, "there is no vocabulary nowhere.json"),
        ("max_length=long", UsageError, "a number of words from 1 on is expected"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, setting: str, error: type[ButdError], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(OURS, tmp_path / "out", "self-critical-updown", [setting])


def test_a_checkpoint_that_runs_code_is_refused_unexecuted(tmp_path: Path) -> None:
    folder = _changed(tmp_path)
    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "model.pth")
    with pytest.raises(CheckpointError, match="not executed"):
        convert(folder, tmp_path / "out", "self-critical-updown")
