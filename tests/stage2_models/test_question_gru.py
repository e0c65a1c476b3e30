"""The question's GRU against PyTorch's own, in value and gradient."""

import pytest
import torch
from torch import Tensor, nn

from stage2_models.question_gru import last_states

LENGTHS = torch.tensor([3, 0, 5, 1, 5, 2])


def _modules(num_words: int) -> tuple[nn.GRU, nn.Embedding]:
    torch.manual_seed(0)
    gru = nn.GRU(4, 6, batch_first=True).double()
    return gru, nn.Embedding(num_words, 4, padding_idx=0).double()


def _by_pytorch(gru: nn.GRU, embedding: nn.Embedding, token_ids: Tensor) -> Tensor:
    """One question at a time, without padding."""
    states = []
    for ids, length in zip(token_ids, LENGTHS.tolist(), strict=True):
        if length == 0:
            states.append(torch.zeros(6, dtype=torch.float64))
        else:
            states.append(gru(embedding(ids[:length]).unsqueeze(0))[1][0, 0])
    return torch.stack(states)


@pytest.mark.parametrize("num_words", [9, 100], ids=["small vocabulary", "large vocabulary"])
def test_states_and_gradients_equal_pytorchs(num_words: int) -> None:
    gru, embedding = _modules(num_words)
    token_ids = torch.randint(1, 9, (6, 7))
    factor = torch.randn(6, 6, dtype=torch.float64)
    parameters = [*gru.parameters(), *embedding.parameters()]
    results = []
    for states in (last_states(gru, embedding, token_ids, LENGTHS), _by_pytorch(gru, embedding, token_ids)):
        results.append((states, torch.autograd.grad((states * factor).sum(), parameters)))
    (states, gradients), (expected_states, expected_gradients) = results
    assert torch.allclose(states, expected_states, atol=1e-12)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-12)


def test_initial_states_go_before_the_first_word_in_value_and_gradient() -> None:
    gru, embedding = _modules(9)
    token_ids = torch.randint(1, 9, (6, 7))
    initial = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(6, 6, dtype=torch.float64)
    expected = torch.stack(
        [
            gru(embedding(ids[:length]).unsqueeze(0), state.view(1, 1, 6))[1][0, 0] if length else state
            for ids, length, state in zip(token_ids, LENGTHS.tolist(), initial, strict=True)
        ]
    )
    states = last_states(gru, embedding, token_ids, LENGTHS, initial)
    assert torch.allclose(states, expected, atol=1e-12)
    parameters = [initial, *gru.parameters()]
    for gradient, wanted in zip(
        torch.autograd.grad((states * factor).sum(), parameters),
        torch.autograd.grad((expected * factor).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(gradient, wanted, atol=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = last_states(gru.float(), embedding.float(), token_ids, LENGTHS, initial.detach().float())
    assert torch.allclose(mixed.double(), expected, atol=3e-2)


def test_words_right_of_the_length_change_nothing() -> None:
    gru, embedding = _modules(9)
    token_ids = torch.randint(1, 9, (6, 5))
    other = torch.cat([token_ids, torch.randint(1, 9, (6, 3))], 1)
    for row, length in enumerate(LENGTHS.tolist()):
        other[row, length:] = 7
    assert torch.equal(
        last_states(gru, embedding, token_ids, LENGTHS), last_states(gru, embedding, other, LENGTHS)
    )


def test_autocast_uses_pytorchs_own_to_nearly_the_same_result() -> None:
    gru, embedding = _modules(9)
    gru, embedding = gru.float(), embedding.float()
    token_ids = torch.randint(1, 9, (6, 5))
    plain = last_states(gru, embedding, token_ids, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = last_states(gru, embedding, token_ids, LENGTHS)
    assert torch.allclose(plain, mixed.float(), atol=2e-2)


def test_a_batch_of_questions_without_words_is_zero() -> None:
    gru, embedding = _modules(9)
    states = last_states(
        gru, embedding, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    )
    assert states.shape == (2, 6)
    assert not states.any()
