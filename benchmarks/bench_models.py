"""How fast the two models train and answer, against the same models as a textbook writes them.

    python -m benchmarks.bench_models [--quick] [--threads N] [--only caption]
        [--butd-vqa CHECKOUT] [--self-critical CHECKOUT]

Same weights, same inputs, same results (checked first), COCO's and VQA v2's sizes. Caption training: 10 pictures of 5
captions, hidden 1000, 36 x 2048 features, 9,487 words, Adam. Greedy and beam of 5: 10 pictures,
after 40 steps that teach captions of usual lengths (else none would ever end), to 20 words at most. VQA: 512 questions,
hidden 1024, 3,129 answers, Adamax; VQA v2 asks 5.4 questions about a picture, and ours reads the questions of a
picture together (`data.by_picture`, always so in evaluation); a further row has every question with a copy of its
own. Dropout is off, so that both give the same; features come as float16, as from the store. All ways take turns;
ratios are medians over the rounds' own ratios. Beside the time by the clock stands the processor's, which other
programs on the machine hardly change. The beam of the textbook always runs all its steps; ours stops when nothing
can change any more. A checkout of bottom-up-attention-vqa or of self-critical.pytorch makes that program itself a
rival, too. The second's model has a layer with ReLU for words, regions and their mean each; so has ours in these rows.
It gets the features of a picture once and repeats them itself, as its training script has it, and no masks, as its
loader has it where all pictures have as many regions; it is taught one caption of each picture, in 70 steps. Writes a
table and, unless --only chose some, benchmarks/results/models.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.checkouts import ButdVqaCheckout, SelfCriticalCheckout
from benchmarks.record import write_result
from benchmarks.textbook import TextbookCaptioner, TextbookVqa, copy_captioner, copy_vqa
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoding import DecodingConfig, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import SPECIAL_WORDS, Vocabulary
from stage2_models.vqa import VqaModel, answer_loss
from stage2_models.vqa_config import VqaConfig

REGIONS, FEATURE_DIM = 36, 2048
NUM_WORDS, HIDDEN, EMBED, ATTENTION = 9487, 1000, 1000, 512
CAPTION_PICTURES, CAPTIONS_EACH, MAX_WORDS = 10, 5, 16
BEAM, MAX_LENGTH, LESSONS, CHECKOUT_LESSONS = 5, 20, 40, 70
QUESTIONS, QUESTIONS_EACH, SLOTS = 512, 5.4, 14
QUESTION_WORDS, VQA_HIDDEN, VQA_EMBED, NUM_ANSWERS, KNOWN_ANSWERS = 19902, 1024, 300, 3129, 3


@dataclass(frozen=True)
class Contest:
    """One thing done in two ways that give the same."""

    name: str
    textbook: Callable[[], Any]
    ours: Callable[[], Any]
    agree: Callable[[Any, Any], bool]
    """Whether the two results are the same; asked before any time is taken."""


def main() -> None:
    """Check that results are equal, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    parser.add_argument("--threads", type=int, default=0, help="of torch; default: as torch decides")
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    parser.add_argument(
        "--butd-vqa", type=Path, help="checkout of bottom-up-attention-vqa: measured against, too"
    )
    parser.add_argument(
        "--self-critical", type=Path, help="checkout of self-critical.pytorch: measured against, too"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    contests = [*caption_contests(), *vqa_contests(*textbook_vqa(), "")]
    if args.butd_vqa is not None:
        sizes = {"num_words": QUESTION_WORDS - 1, "feature_dim": FEATURE_DIM, "num_answers": NUM_ANSWERS}
        theirs = ButdVqaCheckout(args.butd_vqa, hidden=VQA_HIDDEN, **sizes).eval()
        contests += vqa_contests(theirs.as_ours().eval(), theirs, ", bottom-up-attention-vqa")
    if args.self_critical is not None:
        contests += self_critical_contests(args.self_critical)
    contests = [contest for contest in contests if args.only in contest.name]
    for contest in contests:
        if not contest.agree(contest.textbook(), contest.ours()):
            raise SystemExit(f"{contest.name}: the two ways do not give the same; nothing was measured")
    seconds = measure(contests, 2 if args.quick else 7)
    ratios = {name: _ratio(both, "") for name, both in seconds.items()}
    of_processor = {name: _ratio(both, ", processor") for name, both in seconds.items()}
    print(f"{'':<62}{'rival, s':>12}{'ours, s':>10}{'ratio':>8}{'of processor time':>20}")
    for name, both in seconds.items():
        textbook, ours = (statistics.median(both[way]) for way in ("textbook", "ours"))
        print(f"{name:<62}{textbook:>12.3f}{ours:>10.3f}{ratios[name]:>8.2f}{of_processor[name]:>20.2f}")
    setting = {"threads": torch.get_num_threads(), "rounds": 2 if args.quick else 7}
    content = {"setting": setting, "ratios": ratios, "processor_ratios": of_processor, "runs": seconds}
    if not args.only:
        print("written:", write_result("models", content, ["torch"]))


def _ratio(seconds: dict[str, list[float]], clock: str) -> float:
    pairs = zip(seconds[f"textbook{clock}"], seconds[f"ours{clock}"], strict=True)
    return round(statistics.median(textbook / ours for textbook, ours in pairs), 3)


def measure(contests: list[Contest], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way in each round, by the clock and of the processor; both ways one after the other."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for contest in contests:
            measured = seconds.setdefault(contest.name, {})
            for way, run in (("textbook", contest.textbook), ("ours", contest.ours)):
                start, busy = time.perf_counter(), time.process_time()
                run()
                clock, processor = time.perf_counter() - start, time.process_time() - busy
                measured.setdefault(way, []).append(round(clock, 4))
                measured.setdefault(f"{way}, processor", []).append(round(processor, 4))
    return seconds


# --- captions -------------------------------------------------------------------------------------------------


def caption_contests() -> list[Contest]:
    """A training step, greedy search and a beam, on random captions of usual lengths."""
    vocabulary = Vocabulary((*SPECIAL_WORDS, *(f"w{number}" for number in range(NUM_WORDS - 4))))
    config = CaptionerConfig(hidden_dim=HIDDEN, embed_dim=EMBED, attention_dim=ATTENTION)
    ours = build_captioner(config, feature_dim=FEATURE_DIM, vocabulary_size=NUM_WORDS)
    regions = random_regions(CAPTION_PICTURES)
    tokens = CaptionTokens.from_arrays(*_lessons(), vocabulary)
    learn_some_captions(
        ours, lambda: torch.nn.functional.cross_entropy(ours(regions, tokens), tokens.targets), LESSONS
    )
    textbook = TextbookCaptioner(FEATURE_DIM, NUM_WORDS, HIDDEN, EMBED, ATTENTION)
    copy_captioner(ours, textbook)
    for model in (ours, textbook):
        model.eval()

    def search(features: Tensor, beam_size: int) -> list[list[int]]:
        bos_id, eos_id = vocabulary.bos_id, vocabulary.eos_id
        if beam_size > 1:
            return textbook.beam(features, beam_size, bos_id, eos_id, MAX_LENGTH)
        chosen = textbook.greedy(features, bos_id, eos_id, MAX_LENGTH)
        return [[word for word in row if word != eos_id] for row in chosen.tolist()]

    return [
        _caption_step(ours, textbook, vocabulary, ""),
        *_searches(ours, search, regions, vocabulary, ""),
    ]


def self_critical_contests(path: Path) -> list[Contest]:
    """The same against self-critical.pytorch, which is taught and gives ours its weights."""
    sizes = {"num_words": NUM_WORDS, "feature_dim": FEATURE_DIM, "hidden": HIDDEN, "embed": EMBED}
    theirs = SelfCriticalCheckout(path, **sizes, attention=ATTENTION, max_length=MAX_LENGTH).eval()
    regions, vocabulary = random_regions(CAPTION_PICTURES), theirs.vocabulary
    words, lengths = _lessons()
    captions, mask = _as_rows(words[:, :1], lengths[:, :1], vocabulary)
    with torch.no_grad():  # with weights as they are drawn it would take hundreds of lessons
        theirs.model.core.lang_lstm.weight_ih.mul_(5)
    learn_some_captions(
        theirs, lambda: theirs.loss(regions.features.float(), captions, mask), CHECKOUT_LESSONS
    )
    ours, against = theirs.as_ours().eval(), ", self-critical.pytorch"
    return [
        _caption_step(ours, theirs, vocabulary, against),
        *_searches(ours, theirs.search, regions, vocabulary, against),
    ]


def learn_some_captions(model: nn.Module, loss: Callable[[], Tensor], lessons: int) -> None:
    """Teach the model until its captions end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(lessons):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()


def _lessons() -> tuple[np.ndarray, np.ndarray]:
    """A caption of random words for each picture, in five lengths around ten words."""
    rng = np.random.default_rng(1)
    words = rng.integers(4, NUM_WORDS, (CAPTION_PICTURES, 1, MAX_WORDS)).repeat(CAPTIONS_EACH, 1)
    return words, _usual_lengths(rng)


def _usual_lengths(rng: np.random.Generator) -> np.ndarray:
    """As COCO's captions: 10.5 words, most between 8 and 13."""
    lengths = rng.normal(10.5, 2.2, (CAPTION_PICTURES, CAPTIONS_EACH)).round()
    return lengths.clip(6, MAX_WORDS).astype(np.int64)


def _caption_step(
    ours: Captioner, rival: TextbookCaptioner | SelfCriticalCheckout, vocabulary: Vocabulary, against: str
) -> Contest:
    regions = random_regions(CAPTION_PICTURES)
    rng = np.random.default_rng(0)
    lengths = _usual_lengths(rng)
    words = rng.integers(4, NUM_WORDS, (*lengths.shape, MAX_WORDS))
    tokens = CaptionTokens.from_arrays(words, lengths, vocabulary)
    captions, mask = _as_rows(words, lengths, vocabulary)
    optimizers = {m: torch.optim.Adam(m.parameters(), lr=1e-6) for m in (ours, rival)}

    def step(
        model: Captioner | TextbookCaptioner | SelfCriticalCheckout, loss: Callable[[], Tensor]
    ) -> float:
        optimizers[model].zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizers[model].step()
        return value.item()

    def our_loss() -> Tensor:
        return torch.nn.functional.cross_entropy(ours(regions, tokens), tokens.targets)

    return Contest(
        f"caption training step{against}",
        lambda: step(rival, lambda: rival.loss(regions.features.float(), captions, mask)),
        lambda: step(ours, our_loss),
        lambda theirs, own: bool(abs(theirs - own) < 1e-4 * abs(theirs)),
    )


def _as_rows(words: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Captions [B * Q, T + 1] with bos and eos, and the mask [B * Q, T] of words and one eos."""
    flat, counts = words.reshape(-1, words.shape[2]), lengths.reshape(-1, 1)
    captions = np.full((len(flat), words.shape[2] + 2), vocabulary.eos_id)
    captions[:, 0] = vocabulary.bos_id
    real = np.arange(words.shape[2]) < counts
    captions[:, 1:-1][real] = flat[real]
    mask = np.arange(words.shape[2] + 1) <= counts
    return torch.from_numpy(captions), torch.from_numpy(mask)


def _searches(
    ours: Captioner,
    rival: Callable[[Tensor, int], list[list[int]]],
    regions: RegionBatch,
    vocabulary: Vocabulary,
    against: str,
) -> list[Contest]:
    def our_words(beam_size: int) -> list[list[int]]:
        config = DecodingConfig(beam_size=beam_size, max_length=MAX_LENGTH, allow_unk=True)
        with torch.inference_mode():
            decoded = decode(ours, ours.encode(regions), vocabulary, config)
        return [vocabulary.encode(caption.words) for caption in decoded.captions(vocabulary)]

    def rival_words(beam_size: int) -> list[list[int]]:
        return rival(regions.features.float(), beam_size)

    def same(theirs: list[list[int]], own: list[list[int]]) -> bool:
        return theirs == own

    return [
        Contest(f"greedy captions{against}", lambda: rival_words(1), lambda: our_words(1), same),
        Contest(
            f"captions by a beam of {BEAM}{against}", lambda: rival_words(BEAM), lambda: our_words(BEAM), same
        ),
    ]


# --- questions ------------------------------------------------------------------------------------------------


def textbook_vqa() -> tuple[VqaModel, TextbookVqa]:
    """Ours and the textbook's with the same weights."""
    config = VqaConfig(
        form="relu-product",
        embed_dim=VQA_EMBED,
        hidden_dim=VQA_HIDDEN,
        normalise_features=False,
        question_slots=SLOTS,
    )
    ours = VqaModel(
        config,
        feature_dim=FEATURE_DIM,
        vocabulary_size=QUESTION_WORDS,
        pad_id=QUESTION_WORDS - 1,
        num_answers=NUM_ANSWERS,
    )
    textbook = TextbookVqa(FEATURE_DIM, QUESTION_WORDS, VQA_HIDDEN, VQA_EMBED, NUM_ANSWERS)
    copy_vqa(ours, textbook)
    return ours, textbook


def vqa_contests(ours: VqaModel, rival: TextbookVqa | ButdVqaCheckout, against: str) -> list[Contest]:
    """A training step and an evaluation batch, with shared pictures and, beside it, with copies."""
    pad_id = QUESTION_WORDS - 1
    lengths = torch.randn(QUESTIONS).mul(2).add(6.2).round().clamp(3, SLOTS).long()
    padded_right = torch.randint(0, pad_id, (QUESTIONS, SLOTS)).masked_fill(
        torch.arange(SLOTS) >= lengths.unsqueeze(1), pad_id
    )
    padded_left = torch.stack(
        [row.roll(SLOTS - n) for row, n in zip(padded_right, lengths.tolist(), strict=True)]
    )
    shared = random_regions(round(QUESTIONS / QUESTIONS_EACH))
    pictures = torch.randint(0, len(shared.num_regions), (QUESTIONS,)).sort().values
    copies = RegionBatch(*(value[pictures] for value in vars(shared).values()))
    labels = torch.rand(QUESTIONS, NUM_ANSWERS).topk(KNOWN_ANSWERS).indices
    scores = torch.tensor([1.0, 0.6, 0.3]).expand(QUESTIONS, KNOWN_ANSWERS)
    targets = torch.zeros(QUESTIONS, NUM_ANSWERS).scatter_(1, labels, scores)
    optimizers = {m: torch.optim.Adamax(m.parameters(), lr=1e-6) for m in (ours, rival)}

    def step(model: nn.Module, loss: Callable[[], Tensor]) -> float:
        optimizers[model].zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizers[model].step()
        return value.item()

    def our_logits(regions: RegionBatch, of: Tensor | None) -> Tensor:
        longest = int(lengths.max())
        logits: Tensor = ours(padded_right[:, :longest], lengths, regions, of).answer_logits
        return logits

    def our_loss(regions: RegionBatch, of: Tensor | None) -> Tensor:
        return answer_loss(our_logits(regions, of), labels, scores, "bce") / QUESTIONS

    @torch.inference_mode()
    def answers(logits: Callable[[], Tensor]) -> Tensor:
        return logits()

    def rival_loss() -> Tensor:
        return rival.loss(copies.features.float(), padded_left, targets)

    def close(theirs: Any, own: Any) -> bool:
        return bool(np.allclose(theirs, own, rtol=1e-4, atol=1e-4))

    contests = []
    for text, regions, of in (("", shared, pictures), (", copied pictures", copies, None)):
        contests += [
            Contest(
                f"VQA training step{text}{against}",
                lambda: step(rival, rival_loss),
                lambda regions=regions, of=of: step(ours, lambda: our_loss(regions, of)),
                close,
            ),
            Contest(
                f"VQA evaluation{text}{against}",
                lambda: answers(lambda: rival(copies.features.float(), padded_left)),
                lambda regions=regions, of=of: answers(lambda: our_logits(regions, of)),
                close,
            ),
        ]
    return contests


def random_regions(num_pictures: int) -> RegionBatch:
    """Features like published ones: float16, 60% zeros."""
    features = (torch.randn(num_pictures, REGIONS, FEATURE_DIM) - 0.25).relu().half()
    return RegionBatch(
        features=features,
        boxes=torch.tensor([1.0, 2.0, 30.0, 40.0]).expand(num_pictures, REGIONS, 4).contiguous(),
        sizes=torch.tensor([640.0, 480.0]).expand(num_pictures, 2).contiguous(),
        num_regions=torch.full((num_pictures,), REGIONS),
    )


if __name__ == "__main__":
    main()
