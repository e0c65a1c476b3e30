"""How captions are written: the search, the words that may follow, what is compared. Light: no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from store_schema.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How captions are written."""

    method: Literal["beam", "sample"] = "beam"
    beam_size: int = 3
    """Of "beam"; 1 is greedy."""
    num_captions: int = 1
    """Of each picture: the n best of the beam, or n samples."""
    max_length: int = 20
    """The most words of a caption."""
    min_length: int = 0
    """The fewest words of a caption."""
    length_penalty: str = "none"
    """What a finished caption's summed log-probability is divided by before captions are compared: "none", "avg"
    (its length, the end included), or "wu_x" (((5 + length) / 6)^x; Wu et al. 2016, arXiv 1609.08144)."""
    no_repeat: bool = False
    """A word never follows itself."""
    trigram_penalty: float = 0.0
    """Taken from a word's log-probability for each time that it would repeat three words in a row; inf forbids."""
    forbid_bad_endings: bool = False
    """The end never follows a word such as "a" or "with" (a caption may still be cut there at `max_length`)."""
    allow_unk: bool = False
    """The unknown word may be written."""
    temperature: float = 1.0
    """Logits are divided by it: below 1 likely words become likelier. Log-probabilities are the tempered ones."""
    temper_first_word: bool = True
    """False: the first word keeps the model's own probabilities, as in self-critical.pytorch's beam search."""
    top_k: int = 0
    """Of "sample": draw among so many most probable words; 0: among all."""
    top_p: float = 1.0
    """Of "sample": draw among the fewest most probable words that hold so much probability together."""

    def __post_init__(self) -> None:
        least = {"beam_size": 1, "num_captions": 1, "max_length": 1, "min_length": 0, "top_k": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(
                    f"decoding: {name} must be at least {smallest}, it is {getattr(self, name)}"
                )
        if self.min_length > self.max_length:
            raise ConfigError(
                f"decoding: min_length {self.min_length} is above max_length {self.max_length}; lower the one or "
                "raise the other"
            )
        if (
            not 0.0 < self.temperature < math.inf
            or not 0.0 < self.top_p <= 1.0
            or not self.trigram_penalty >= 0.0
        ):
            raise ConfigError(
                "decoding: temperature must be above 0, top_p in (0, 1] and trigram_penalty at least 0, they are "
                f"{self.temperature}, {self.top_p}, {self.trigram_penalty}"
            )
        parse_length_penalty(self.length_penalty)
        self._check_without_effect()

    def _check_without_effect(self) -> None:
        if self.method == "beam":
            if self.top_k or self.top_p < 1.0:
                raise ConfigError(
                    "decoding: top_k and top_p have no effect on beam search; use method 'sample'"
                )
            if self.num_captions > self.beam_size:
                raise ConfigError(
                    f"decoding: a beam of {self.beam_size} has no {self.num_captions} best captions; raise beam_size"
                )
        elif self.length_penalty != "none":
            raise ConfigError("decoding: length_penalty has no effect on sampling; use method 'beam'")


def parse_length_penalty(text: str) -> tuple[Literal["none", "avg", "wu"], float]:
    """Split "none", "avg" or "wu_x" into name and exponent.

    Errors: `ConfigError` for anything else. The exponent of "avg_x", which self-critical.pytorch takes and ignores,
    is accepted.
    """
    name, underscore, exponent = text.partition("_")
    try:
        if name == "wu":
            return "wu", float(exponent)
        if name == "avg":
            return "avg", float(exponent) if underscore else 1.0
    except ValueError:
        pass
    if text == "none":
        return "none", 0.0
    raise ConfigError(
        f"decoding: length_penalty {text!r}; expected none, avg, or wu_ and a number such as wu_0.9"
    )
