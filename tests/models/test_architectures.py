"""Every causal architecture of the installed transformers: labels match the model's logits, or loading is refused."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.labels.causal import token_entropies
from pipeline.models.causal_lm import prepend_start
from pipeline.models.loading import require_causal
from tests.models.architectures import ARCHITECTURES, START, VOCABULARY, tiny_causal
from tests.tiny_models import random_tokens

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
REFUSED = set(re.findall(r"^\| `(\S+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
LENGTHS = (20, 7, 1)


@cache
def built_or_reason(architecture: str) -> PreTrainedModel | str:
    try:
        return tiny_causal(architecture)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_match_the_models_own_logits_one_by_one_and_in_a_batch(architecture: str) -> None:
    model = built_or_reason(architecture)
    if isinstance(model, str):
        pytest.skip(model)
    if architecture in REFUSED:
        with pytest.raises(ValueError, match=type(model).__name__):
            require_causal(model)
        return
    require_causal(model)
    ids_BT = random_tokens(len(LENGTHS), max(LENGTHS), vocabulary=VOCABULARY)
    logits_BTV = model(input_ids=prepend_start(ids_BT, START), use_cache=False).logits.float()
    expected_BT = cross_entropy(logits_BTV.transpose(1, 2), ids_BT, reduction="none")
    assert expected_BT.std() > 0.01, "labels too similar to show a difference"
    together_BT = token_entropies(model, ids_BT, START)
    torch.testing.assert_close(together_BT, expected_BT, atol=1e-4, rtol=0)
    for row, length in enumerate(LENGTHS):
        alone_1T = token_entropies(model, ids_BT[row : row + 1, :length], START)
        torch.testing.assert_close(alone_1T[0], together_BT[row, :length], atol=1e-4, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in REFUSED])
def test_labels_in_bfloat16_match_the_models_own_logits(architecture: str) -> None:
    """Some architectures keep float32 between or after layers."""
    try:
        model = tiny_causal(architecture, dtype=torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))
    require_causal(model)
    ids_BT = random_tokens(2, 20, vocabulary=VOCABULARY)
    logits_BTV = model(input_ids=prepend_start(ids_BT, START), use_cache=False).logits.float()
    expected_BT = cross_entropy(logits_BTV.transpose(1, 2), ids_BT, reduction="none")
    assert (token_entropies(model, ids_BT, START) - expected_BT).abs().mean() < 0.02


@pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="the page counts those of 5.23")
def test_the_page_has_the_right_numbers_of_architectures() -> None:
    built = {architecture for architecture in ARCHITECTURES if not isinstance(built_or_reason(architecture), str)}
    (known,) = re.findall(
        r"build (\d+) of the (\d+) causal architectures .* For (\d+) of them\s.* other\s(\d+),",
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert tuple(map(int, known)) == (len(built), len(ARCHITECTURES), len(built - REFUSED), len(REFUSED))
    assert built >= REFUSED
