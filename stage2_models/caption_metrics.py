"""BLEU, ROUGE-L and CIDEr-D of captions, equal to the official tool to its last printed digit, without Java.

The scorers are pycocoevalcap's Python ones behind our tokeniser. What that tool calls "CIDEr" is the clipped
form with a Gaussian penalty on length, that is CIDEr-D, and so it is called here. Document frequencies come from
the references given, so scores on few pictures are not comparable with scores on many.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from stage2_models.tokeniser import tokenise
from store_schema.errors import UsageError

Words = Sequence[str]


@dataclass(frozen=True)
class CaptionScores:
    """Scores by name ("bleu_1".."bleu_4", "rouge_l", "cider_d"): of the corpus, and of each picture by its id."""

    overall: dict[str, float]
    per_image: dict[str, dict[str, float]]


def score_captions(
    candidates: Mapping[str, Words], references: Mapping[str, Sequence[Words]]
) -> CaptionScores:
    """Score one tokenised caption a picture against the picture's tokenised references.

    Args:
        candidates: the words of each picture's caption, by image_id.
        references: at least one reference of each of the same pictures; others are an error, since CIDEr's
            document frequencies depend on them.
    """
    if not candidates:
        raise UsageError("caption scores: at least one caption expected, none came")
    different = candidates.keys() ^ references.keys()
    if different:
        raise UsageError(
            f"caption scores: captions for {len(candidates)} pictures and references for {len(references)}; "
            f"{len(different)} stand on one side only, such as {min(different)!r}"
        )
    without = [image_id for image_id, texts in references.items() if not texts]
    if without:
        raise UsageError(f"caption scores: picture {without[0]!r} has no reference")
    hypotheses = {image_id: [" ".join(words)] for image_id, words in candidates.items()}
    truths = {image_id: [" ".join(words) for words in references[image_id]] for image_id in candidates}
    bleu, bleu_each = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    rouge, rouge_each = Rouge().compute_score(truths, hypotheses)
    cider, cider_each = Cider().compute_score(truths, hypotheses)
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
    columns = [*bleu_each, rouge_each, cider_each]
    per_image = {
        image_id: {name: float(column[row]) for name, column in zip(names, columns, strict=True)}
        for row, image_id in enumerate(candidates)
    }
    return CaptionScores(dict(zip(names, map(float, (*bleu, rouge, cider)), strict=True)), per_image)


def score_texts(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Tokenise texts as the official evaluation does, and score them."""
    return score_captions(
        {image_id: tokenise(text) for image_id, text in candidates.items()},
        {image_id: [tokenise(text) for text in texts] for image_id, texts in references.items()},
    )


def smallest_token_loss(captions: Iterable[Sequence[Words]]) -> float:
    """Give the smallest mean loss of a token (nats, ends included) that captions allow, read word by word.

    Where the captions of a picture go on differently after the same words, no model can be sure: it does best with
    their shares. Zero for one caption a picture. What a model that knows its captions by heart is compared with.

    Args:
        captions: the tokenised captions of each picture, as they are learned from.
    """
    total, num_tokens = 0.0, 0
    for of_picture in captions:
        followed: Counter[tuple[str, ...]] = Counter()
        reached: Counter[tuple[str, ...]] = Counter()
        ended = [(*words, "") for words in of_picture]
        for words in ended:
            for place in range(len(words)):
                reached[words[:place]] += 1
                followed[words[: place + 1]] += 1
        total -= sum(times * math.log(times / reached[words[:-1]]) for words, times in followed.items())
        num_tokens += sum(map(len, ended))
    return total / num_tokens


def most_common_caption(captions: Sequence[Words]) -> Words:
    """Give the most frequent of tokenised captions, the first of equally frequent ones: the trivial baseline."""
    if not captions:
        raise UsageError("most common caption: at least one caption expected, none came")
    return Counter(tuple(words) for words in captions).most_common(1)[0][0]
