"""The two-LSTM top-down captioner, arranged so that each thing is computed as seldom as it can be.

Attention LSTM: previous output of the language LSTM, mean of the regions, word. Attention over the regions by its
output. Language LSTM: attended region, output of the attention LSTM. Whatever does not depend on the step is
computed once: the gates of all words, of the mean, the regions' part of the attention, and the regions' part of
the language gates (a weighted mean commutes with the matrix behind it). The captions of one picture share all
of it. Source: Anderson et al. 2018, arXiv 1707.07998, sec. 3.2.

Legend: B pictures, Q captions of each, K region slots, G glimpses, D feature, T steps, E word embedding, H hidden,
A attention, V words. Gates lie in the order input, forget, output, cell: one sigmoid serves the first three.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_models.attention import AdditiveAttention, ProductAttention
from stage2_models.blocked_linear import blocked_linear
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.counting import LikenessCounter
from stage2_models.loading.batch import RegionBatch
from stage2_models.masked_batch_norm import MaskedBatchNorm
from stage2_models.recurrence import RecurrentProduct, WeightedRegions, lstm_cell, weighted_gates
from stage2_models.regions import RegionInput, mean_over_regions
from store_schema.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Sizes and form of the captioner; the defaults are the paper's, with features as the store has them."""

    hidden_dim: int = 1000
    embed_dim: int = 1000
    attention_dim: int = 512
    dropout: float = 0.0
    """On the language LSTM's output and, with `embed_regions`, on embedded regions and words."""
    normalise_features: bool = False
    """Z-score the features by training statistics: for features of unknown scale."""
    use_geometry: bool = False
    """Append eight numbers on each box's place and size to its feature."""
    embed_regions: bool = False
    """The widely used form: regions, their mean and words each through a layer with ReLU and dropout."""
    batch_norm: Literal["none", "before", "around"] = "none"
    """With `embed_regions`: normalise the features before the regions' embedding, or before and after it."""
    attention: Literal["additive", "product"] = "additive"
    """additive: the paper's. product: see `ProductAttention`."""
    glimpses: int = 1
    """With product attention: how many places a step looks at, each with weights of its own."""
    likenesses: int = 0
    """Append to each region how many objects of its picture are like it, in so many ways: see `LikenessCounter`."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("hidden_dim", "embed_dim", "attention_dim", "glimpses"):
            if getattr(self, name) < 1:
                raise ConfigError(f"captioner: {name} must be at least 1, it is {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"captioner: dropout must be in [0, 1), it is {self.dropout}")
        if self.batch_norm != "none" and not self.embed_regions:
            raise ConfigError(
                f"captioner: batch_norm {self.batch_norm!r} has no effect without embed_regions; set both or neither"
            )
        if self.glimpses > 1 and self.attention != "product":
            raise ConfigError(f"captioner: {self.glimpses} glimpses need attention = 'product'")
        if self.likenesses < 0:
            raise ConfigError(f"captioner: likenesses must be at least 0, it is {self.likenesses}")


class EncodedRegions(NamedTuple):
    """What every step needs of the pictures, computed once.

    attention: [B, K, A], the regions' part of the attention. gates: [B, G * K, 4H], each region's part of the language
    LSTM's gates where the first glimpse sees it, then the second... mean_gates: [B, 4H], the mean's part of the
    attention LSTM's. mask: [B, K] bool.
    """

    attention: Tensor
    gates: Tensor
    mean_gates: Tensor
    mask: Tensor


class DropoutMasks(NamedTuple):
    """What dropout leaves of the words' embeddings [N, E] and of the outputs [N, H]; None where nothing is dropped.

    Drawn before captions are read, so that two readings of the same captions can share them.
    """

    words: Tensor | None = None
    outputs: Tensor | None = None

    def rows(self, rows: Tensor | slice) -> "DropoutMasks":
        """The masks of some of the N tokens."""
        return DropoutMasks(*(None if mask is None else mask[rows] for mask in self))


class DecoderState(NamedTuple):
    """Hidden and cell states of the attention and the language LSTM, each [N, H]."""

    attention_hidden: Tensor
    attention_cell: Tensor
    language_hidden: Tensor
    language_cell: Tensor

    def select(self, rows: Tensor) -> "DecoderState":
        """Take rows [M] of every state, as beam search does."""
        return DecoderState(*(values.index_select(0, rows) for values in self))


class Captioner(nn.Module):
    """The captioner: `forward` for training; for decoding, `encode` the pictures once, then `step`.

    Args:
        feature_dim: D of the store. vocabulary_size: V. The others: see `CaptionerConfig`.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        hidden_dim: int,
        embed_dim: int,
        attention_dim: int,
        dropout: float,
        normalise_features: bool,
        use_geometry: bool,
        embed_regions: bool,
        batch_norm: Literal["none", "before", "around"],
        attention: Literal["additive", "product"],
        glimpses: int,
        likenesses: int,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.vocabulary_size = vocabulary_size
        self.region_input = RegionInput(feature_dim, normalise=normalise_features, use_geometry=use_geometry)
        region_dim = self.region_input.out_dim
        self.likeness = LikenessCounter(region_dim, likenesses) if likenesses else None
        if self.likeness is not None:
            region_dim += self.likeness.out_dim
        self.embeds = embed_regions
        self.norm_before = MaskedBatchNorm(region_dim) if batch_norm != "none" else None
        self.region_embedding = nn.Linear(region_dim, hidden_dim) if embed_regions else None
        self.norm_after = MaskedBatchNorm(hidden_dim) if batch_norm == "around" else None
        self.mean_embedding = nn.Linear(region_dim, hidden_dim) if embed_regions else None
        if embed_regions:
            region_dim = hidden_dim
        self.word_embedding = nn.Embedding(vocabulary_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.glimpses = glimpses
        self.attention: AdditiveAttention | ProductAttention
        if attention == "product":
            self.attention = ProductAttention(region_dim, hidden_dim, attention_dim, glimpses)
        else:
            self.attention = AdditiveAttention(region_dim, hidden_dim, attention_dim)
        # Attention LSTM: [word, mean, h1, h2] -> 4H; language LSTM: [attended region, h1, h2] -> 4H. One bias each.
        self.word_gates = nn.Linear(embed_dim, 4 * hidden_dim)
        self.mean_gates = nn.Linear(region_dim, 4 * hidden_dim, bias=False)
        self.attention_recurrence = nn.Linear(2 * hidden_dim, 4 * hidden_dim, bias=False)
        self.region_gates = nn.Linear(region_dim, glimpses * 4 * hidden_dim, bias=False)
        self.language_recurrence = nn.Linear(2 * hidden_dim, 4 * hidden_dim)
        self.classifier = nn.Linear(hidden_dim, vocabulary_size)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw LSTM weights as `nn.LSTMCell` does; the forget gates start open (bias 1)."""
        bound = self.hidden_dim**-0.5
        for layer in (self.word_gates, self.mean_gates, self.attention_recurrence, self.region_gates):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(self.language_recurrence.weight, -bound, bound)
        for bias in (self.word_gates.bias, self.language_recurrence.bias):
            bias.zero_()
            bias[self.hidden_dim : 2 * self.hidden_dim] = 1.0

    def forward(self, regions: RegionBatch, tokens: CaptionTokens) -> Tensor:
        """Read given captions (teacher forcing) and predict their words: logits [M, V] of the real tokens.

        Args:
            regions: of B pictures. tokens: their captions; `tokens.targets` [M] are the right words.
        """
        encoded = self.encode(regions)
        masks = self.draw_masks(tokens.inputs.numel(), encoded)
        outputs = self.outputs(encoded, tokens.inputs, tokens.captions_per_step, masks)
        return self.logits(outputs[tokens.positions])

    def draw_masks(self, tokens: int, encoded: EncodedRegions) -> DropoutMasks:
        """Draw dropout for the reading of so many tokens; empty in evaluation mode."""
        keep = 1.0 - self.dropout.p
        if not self.training or keep == 1.0:
            return DropoutMasks()

        def draw(size: int) -> Tensor:
            return torch.empty(tokens, size, device=encoded.mask.device).bernoulli_(keep).div_(keep)

        words = draw(self.word_embedding.embedding_dim) if self.embeds else None
        return DropoutMasks(words, draw(self.hidden_dim))

    def encode(self, batch: RegionBatch) -> EncodedRegions:
        """Compute what does not depend on words, for the B pictures of a batch; a picture may have no regions."""
        mask = batch.mask
        regions = self.region_input(batch.features, batch.boxes, batch.sizes, mask)
        if self.likeness is not None:
            regions = torch.cat([regions, self.likeness(regions, batch.boxes, mask)], -1)
        mean = mean_over_regions(regions, mask)
        if self.region_embedding is not None and self.mean_embedding is not None:
            if self.norm_before is not None:
                regions = self.norm_before(regions, mask)
            regions = self.dropout(F.relu(self.region_embedding(regions)))
            if self.norm_after is not None:
                regions = self.norm_after(regions, mask)
            mean = self.dropout(F.relu(self.mean_embedding(mean)))
        gates = self.region_gates(regions)  # [B, K, G * 4H]
        if self.glimpses > 1:
            gates = gates.unflatten(2, (self.glimpses, -1)).transpose(1, 2).flatten(1, 2)
        return EncodedRegions(self.attention.project(regions), gates, self.mean_gates(mean), mask)

    def gates_of_words(self, token_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the words' part of the attention LSTM's gates, [..., 4H] for token ids of any shape.

        With more tokens than words in the vocabulary it is cheaper to compute every word's once and look them up;
        dropout on words, where there is any, differs from token to token.

        Args:
            token_ids: any shape. mask: the tokens' dropout [..., E], from `DropoutMasks`.
        """
        if token_ids.numel() > self.vocabulary_size and mask is None:
            return F.embedding(token_ids, self._gates(self.word_embedding.weight))
        return self._gates(self.word_embedding(token_ids), mask)

    def _gates(self, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.embeds:
            embedded = F.relu(embedded)
        if mask is not None:
            embedded = embedded * mask
        gates: Tensor = self.word_gates(embedded)
        return gates

    def initial_state(self, sequences: int, like: Tensor) -> DecoderState:
        """Give zero states for N sequences, of the device and dtype of `like`."""
        zeros = like.new_zeros(sequences, self.hidden_dim)
        return DecoderState(zeros, zeros, zeros, zeros)

    def step(
        self,
        encoded: EncodedRegions,
        word_gates: Tensor,
        state: DecoderState,
        origins: Tensor | None = None,
    ) -> tuple[DecoderState, Tensor]:
        """Go on by one word, as decoding does.

        Args:
            encoded: B pictures.
            word_gates: [Q * B, 4H], from `gates_of_words`: the first captions of all pictures, then the second...
            state: of the Q * B sequences, in the same order.
            origins: [Q * B], which row of the state each sequence continues, where several continue the same one:
                what depends on the state alone is then computed once for them.

        Returns:
            The new state, whose `language_hidden` goes to `logits`, and the attention weights [B, Q, K] behind it, the
            mean of all glimpses.
        """
        inputs = torch.cat([state.attention_hidden, state.language_hidden], 1)
        recurrent = F.linear(inputs, self.attention_recurrence.weight)
        weight = self.language_recurrence.weight  # [4H, 2H], of the new attention output and of the state
        of_hidden, of_language = weight[:, : self.hidden_dim], weight[:, self.hidden_dim :]
        language_gates = F.linear(state.language_hidden, of_language, self.language_recurrence.bias)
        attention_cell, language_cell = state.attention_cell, state.language_cell
        if origins is not None:
            recurrent, language_gates = recurrent[origins], language_gates[origins]
            attention_cell, language_cell = attention_cell[origins], language_cell[origins]
        gates = word_gates.view(-1, *encoded.mean_gates.shape) + encoded.mean_gates  # [Q, B, 4H]
        hidden, cell = lstm_cell(gates.flatten(0, 1) + recurrent, attention_cell)
        seen = self._attend(encoded, hidden)
        language_gates = torch.addmm(language_gates, hidden, of_hidden.t())
        language_hidden, language_cell = lstm_cell(
            language_gates + weighted_gates(seen, encoded.gates), language_cell
        )
        if self.glimpses > 1:
            seen = seen.view(*seen.shape[:2], self.glimpses, -1).mean(2)
        return DecoderState(hidden, cell, language_hidden, language_cell), seen

    def _attend(self, encoded: EncodedRegions, hidden: Tensor) -> Tensor:
        """Weights [B, Q, G * K] by the attention LSTM's output [Q * B, H]."""
        query = hidden.view(-1, len(encoded.mask), self.hidden_dim).transpose(0, 1)  # [B, Q, H]
        _, weights = self.attention.weigh(encoded.attention, encoded.mask, query)
        return weights.flatten(2)

    def outputs(
        self,
        encoded: EncodedRegions,
        token_ids: Tensor,
        captions_per_step: Sequence[int],
        masks: DropoutMasks | None = None,
    ) -> Tensor:
        """Read given captions and give the language LSTM's outputs, before `logits`.

        Args:
            encoded: B pictures.
            token_ids: [S, B], the words read, beginning with bos: step by step, within a step caption by caption.
                See `CaptionTokens`.
            captions_per_step: how many captions are still read at each step, never rising; their sum is S.
            masks: dropout of the S * B tokens, from `draw_masks`; none without.

        Returns:
            [S * B, H] in the same order, dropout applied.
        """
        pictures = len(encoded.mask)
        word_mask, output_mask = masks or DropoutMasks()
        words = self.gates_of_words(token_ids.flatten(), word_mask).view(*token_ids.shape, -1)  # [S, B, 4H]
        gates = (words + encoded.mean_gates).flatten(0, 1)  # [S * B, 4H]
        attention_lstm = RecurrentProduct(gates, self.attention_recurrence.weight)
        gates = self.language_recurrence.bias.to(gates.dtype).expand(gates.shape)
        language_lstm = RecurrentProduct(gates, self.language_recurrence.weight)
        attended = WeightedRegions(language_lstm.gates, encoded.gates)
        sizes = [count * pictures for count in captions_per_step]
        hidden, cell, language_hidden, language_cell = self.initial_state(sizes[0], gates)
        outputs = []
        for gates, language_gates in zip(
            torch.split(attention_lstm.gates, sizes), torch.split(attended.gates, sizes), strict=True
        ):
            alive = len(gates)
            hidden, cell = hidden[:alive], cell[:alive]
            language_hidden, language_cell = language_hidden[:alive], language_cell[:alive]
            gates = attention_lstm.step(gates, torch.cat([hidden, language_hidden], 1))
            hidden, cell = lstm_cell(gates, cell)
            language_gates = language_gates + attended.step(self._attend(encoded, hidden))
            gates = language_lstm.step(language_gates, torch.cat([hidden, language_hidden], 1))
            language_hidden, language_cell = lstm_cell(gates, language_cell)
            outputs.append(language_hidden)
        result = torch.cat(outputs)
        return result if output_mask is None else result * output_mask

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn outputs [..., H] into word logits [..., V]."""
        if torch.is_grad_enabled() or hidden.dim() != 2:
            logits: Tensor = self.classifier(hidden)
            return logits
        return blocked_linear(hidden, self.classifier.weight, self.classifier.bias)


def build_captioner(config: CaptionerConfig, *, feature_dim: int, vocabulary_size: int) -> Captioner:
    """Build a captioner with fresh weights from its configuration."""
    return Captioner(
        feature_dim=feature_dim,
        vocabulary_size=vocabulary_size,
        hidden_dim=config.hidden_dim,
        embed_dim=config.embed_dim,
        attention_dim=config.attention_dim,
        dropout=config.dropout,
        normalise_features=config.normalise_features,
        use_geometry=config.use_geometry,
        embed_regions=config.embed_regions,
        batch_norm=config.batch_norm,
        attention=config.attention,
        glimpses=config.glimpses,
        likenesses=config.likenesses,
    )
