"""What a VQA model is built like; the forms themselves are in vqa_answerers.py."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from stage2_models.attention import Normalisation
from store_schema.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """What is built. The defaults are the paper's model; `VqaConfig.binding()` is the other."""

    form: Literal["paper", "relu-product", "relu-additive", "binding"] = "paper"
    question_only: bool = False
    """Sees no regions at all: the baseline that says how far the questions alone lead."""
    embed_dim: int = 300
    hidden_dim: int = 512
    use_geometry: bool = False
    """Append eight numbers that say where the box lies to each region's feature."""
    normalise_features: bool = True
    """Z-score features by statistics of the training pictures. Without effect where no regions are seen."""
    glimpses: int = 1
    """How many attention maps are made of one question; the paper's form has one."""
    count: bool = False
    """Give the number of attended objects to the joint layer; binding form only."""
    attention_normalise: Normalisation = "softmax"
    """"softmax" over the real regions, or "none": the unnormalised weights themselves."""
    loss: Literal["bce", "ce"] = "bce"
    """"bce": every answer a yes or no, soft targets (the paper). "ce": one answer, targets scaled to sum 1."""
    dropout: float = 0.0
    """On the joint representation, before the answers."""
    attention_dropout: float = 0.0
    """On the product of region and question; "relu-product" only."""
    question_slots: int = 0
    """Read every question over so many slots, the padding before its words, as the published code does: the
    GRU then runs over zeros first. 0: over its words alone."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "hidden_dim", "glimpses"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vqa model: {name} must be at least 1, it is {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"vqa model: {name} must be in [0, 1), it is {getattr(self, name)}")
        if self.question_slots < 0:
            raise ConfigError(f"vqa model: question_slots must be at least 0, it is {self.question_slots}")
        choices = (
            ("form", ("paper", "relu-product", "relu-additive", "binding")),
            ("loss", ("bce", "ce")),
            ("attention_normalise", ("softmax", "none")),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"vqa model: {name} must be one of {allowed}, it is {getattr(self, name)!r}"
                )
        if self.form != "binding" and (self.glimpses != 1 or self.count):
            raise ConfigError(
                f"vqa model: form={self.form!r} has one glimpse and no count, asked for are glimpses="
                f"{self.glimpses} and count={self.count}; take form='binding' for these"
            )
        if self.attention_dropout and (self.form != "relu-product" or self.question_only):
            raise ConfigError(
                "vqa model: attention_dropout has an effect in form='relu-product' with regions only; leave it at 0"
            )
        if self.question_only and (self.glimpses != 1 or self.count or self.use_geometry):
            raise ConfigError(
                "vqa model: question_only sees no regions, so glimpses, count and use_geometry have no effect; "
                "leave them at their defaults"
            )

    @classmethod
    def binding(cls) -> Self:
        """The form that binds attributes to objects within a minute of training (DESIGN §7)."""
        return cls(
            form="binding",
            embed_dim=128,
            hidden_dim=128,
            use_geometry=True,
            glimpses=2,
            count=True,
            loss="ce",
        )

    def without_regions(self) -> Self:
        """The question-only baseline of this model: same question encoder, loss and sizes."""
        return replace(
            self,
            question_only=True,
            glimpses=1,
            count=False,
            use_geometry=False,
            attention_normalise="softmax",
            attention_dropout=0.0,
        )
