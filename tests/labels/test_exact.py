"""Exact labels against a slow, obvious loop over prefixes."""

import pytest
import torch
from torch import Tensor

from pipeline.labels.exact import token_entropies
from pipeline.models.estimator import EntropyEstimator
from tests.builders import frozen, random_tokens, tiny_estimator


def slow_entropies(estimator: EntropyEstimator, tokens_T: Tensor) -> Tensor:
    """C(n) - C(n - 1), every prefix through the whole model by itself."""
    code_lengths = [0.0] + [
        estimator.token_losses(tokens_T[:length].unsqueeze(0)).double().sum().item()
        for length in range(1, len(tokens_T) + 1)
    ]
    return torch.tensor(code_lengths).diff()


@pytest.mark.parametrize(
    ("rows", "tokens", "batch_tokens"), [(1, 1, 64), (3, 2, 64), (2, 17, 40), (2, 32, 16384), (1, 70, 512)]
)
def test_the_fast_method_equals_a_loop_over_prefixes(rows: int, tokens: int, batch_tokens: int) -> None:
    estimator, input_ids_BT = tiny_estimator(context=80), random_tokens(rows, tokens)
    entropies_BT = token_entropies(estimator, input_ids_BT, batch_tokens=batch_tokens)
    slow_BT = torch.stack([slow_entropies(estimator, tokens_T) for tokens_T in input_ids_BT])
    assert entropies_BT.dtype == torch.float32
    assert (entropies_BT - slow_BT).abs().max() <= 1e-3


def test_a_document_of_a_larger_model_keeps_within_a_thousandth_of_a_nat() -> None:
    torch.manual_seed(0)
    config = tiny_estimator(vocabulary=4096).config
    config.decoder_width, config.decoder_heads, config.encoder_width, config.context = 128, 4, 64, 160
    estimator = frozen(EntropyEstimator(config))
    input_ids_BT = random_tokens(1, 160, vocabulary=4096)
    slow_T = slow_entropies(estimator, input_ids_BT[0])
    assert slow_T.abs().mean() > 1, "labels too small to tell anything"
    assert (token_entropies(estimator, input_ids_BT)[0] - slow_T).abs().max() <= 1e-3


def test_labels_add_up_to_the_code_length_of_the_window() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 24)
    totals_B = token_entropies(estimator, input_ids_BT).double().sum(dim=1)
    torch.testing.assert_close(totals_B, estimator.token_losses(input_ids_BT).double().sum(dim=1), atol=1e-3, rtol=0)


def test_sampled_positions_have_the_labels_they_have_among_all() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 30)
    positions_BT = torch.rand(3, 30, generator=torch.Generator().manual_seed(1)) < 0.2
    positions_BT[0, 0] = positions_BT[1, 29] = True
    sampled_BT = token_entropies(estimator, input_ids_BT, positions_BT=positions_BT)
    assert sampled_BT.isnan().equal(~positions_BT)
    whole_BT = token_entropies(estimator, input_ids_BT)
    torch.testing.assert_close(sampled_BT[positions_BT], whole_BT[positions_BT], atol=1e-4, rtol=0)


def test_padding_has_no_label_and_no_influence() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 20)
    lengths_B = torch.tensor([20, 1, 11])
    entropies_BT = token_entropies(estimator, input_ids_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone_T = token_entropies(estimator, input_ids_BT[row : row + 1, :length])[0]
        torch.testing.assert_close(entropies_BT[row, :length], alone_T, atol=1e-4, rtol=0)
        assert entropies_BT[row, length:].isnan().all()


def test_a_sample_costs_one_code_length_a_position_and_one_more_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(1, 30)
    prefixes: list[int] = []
    decode = EntropyEstimator.decode

    def counted(self: EntropyEstimator, embedding_BD: Tensor, ids_BT: Tensor) -> Tensor:
        prefixes.append(len(ids_BT))
        return decode(self, embedding_BD, ids_BT)

    monkeypatch.setattr(EntropyEstimator, "decode", counted)
    positions_BT = torch.zeros(1, 30, dtype=torch.bool)
    positions_BT[0, [5, 6, 7, 8, 20]] = True
    token_entropies(estimator, input_ids_BT, positions_BT=positions_BT)
    assert sum(prefixes) == (4 + 1) + (1 + 1)
