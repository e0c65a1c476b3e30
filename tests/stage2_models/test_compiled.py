"""`training.compile`: a compiled model gives what the plain one gives, in value and in gradient."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import CaptionerConfig, build_captioner
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa import VqaModel
from stage2_models.vqa_config import VqaConfig

pytestmark = [
    pytest.mark.slow,
    # Warnings are errors here; torch.compile itself looks at .grad of tensors that have none.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("clang++")),
        reason="torch.compile needs a C++ compiler on the CPU, none is here (g++ or clang++)",
    ),
]
REGIONS = RegionBatch(
    torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)),
    torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(2, 3, 4).contiguous(),
    torch.full((2, 2), 9.0),
    torch.tensor([3, 2]),
)


def _result(model: nn.Module, *inputs: object) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    output = model(*inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.answer_logits
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _assert_compiled_gives_the_same(model: nn.Module, *inputs: object) -> None:
    expected, gradients = _result(model, *inputs)
    model.compile()
    logits, compiled_gradients = _result(model, *inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(compiled_gradients) == len(gradients)
    for mine, plain in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "form", [{}, {"attention": "product", "glimpses": 2, "likenesses": 2}], ids=["paper", "binding"]
)
def test_a_compiled_captioner_gives_the_same(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build([["a", "b", "c"]])
    config = CaptionerConfig(hidden_dim=8, embed_dim=4, attention_dim=5, **form)
    model = build_captioner(config, feature_dim=5, vocabulary_size=len(vocabulary))
    tokens = CaptionTokens.from_arrays(
        np.array([[[4, 5, 6], [5, 4, 0]], [[6, 6, 4], [4, 0, 0]]]), np.array([[3, 2], [3, 1]]), vocabulary
    )
    _assert_compiled_gives_the_same(model, REGIONS, tokens)


@pytest.mark.parametrize(
    "config", [VqaConfig(form="relu-product"), VqaConfig.binding()], ids=["relu", "binding"]
)
def test_a_compiled_vqa_model_gives_the_same(config: VqaConfig) -> None:
    torch.manual_seed(0)
    model = VqaModel(config, feature_dim=5, vocabulary_size=11, pad_id=0, num_answers=5).eval()
    questions = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    _assert_compiled_gives_the_same(model, questions, torch.tensor([4, 2]), REGIONS)
