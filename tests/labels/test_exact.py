"""Exact labels compared with a slow, obvious loop over prefixes, and with the published procedure."""

import copy

import pytest
import torch
from torch import Tensor

from pipeline.labels.exact import token_entropies
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from tests.published import published_entropies
from tests.tiny_models import frozen, random_tokens, tiny_estimator


def usual_estimator(*, context: int) -> EntropyEstimator:
    """Return an estimator of the usual shape and weight scale, with a smaller vocabulary."""
    torch.manual_seed(0)
    return frozen(EntropyEstimator(EstimatorConfig(vocab_size=1024, context=context)))


def slow_entropies(estimator: EntropyEstimator, tokens_T: Tensor) -> Tensor:
    """Return C(n) - C(n - 1), the differences of code lengths, from a pass through the whole model for every prefix."""
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


def test_a_document_in_a_larger_model_agrees_within_a_thousandth_of_a_nat() -> None:
    torch.manual_seed(0)
    config = tiny_estimator(vocabulary=4096).config
    config.decoder_width, config.decoder_heads, config.encoder_width, config.context = 128, 4, 64, 160
    estimator = frozen(EntropyEstimator(config))
    input_ids_BT = random_tokens(1, 160, vocabulary=4096)
    slow_T = slow_entropies(estimator, input_ids_BT[0])
    assert slow_T.std() > 1, "labels too alike to tell anything"
    assert (token_entropies(estimator, input_ids_BT)[0] - slow_T).abs().max() <= 1e-3


def test_labels_add_up_to_the_code_length_of_the_window() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 24)
    totals_B = token_entropies(estimator, input_ids_BT).double().sum(dim=1)
    torch.testing.assert_close(totals_B, estimator.token_losses(input_ids_BT).double().sum(dim=1), atol=1e-3, rtol=0)


def test_sampled_positions_have_the_same_labels_as_all_positions() -> None:
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


def test_a_sample_costs_one_code_length_per_position_and_one_more_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(1, 30)
    prefixes: list[int] = []
    decode = EntropyEstimator.decode_states

    def counted(self: EntropyEstimator, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        prefixes.append(len(states_BTD))
        return decode(self, embedding_BX, states_BTD)

    monkeypatch.setattr(EntropyEstimator, "decode_states", counted)
    positions_BT = torch.zeros(1, 30, dtype=torch.bool)
    positions_BT[0, [5, 6, 7, 8, 20]] = True
    token_entropies(estimator, input_ids_BT, positions_BT=positions_BT)
    assert sum(prefixes) == (4 + 1) + (1 + 1)


@pytest.mark.parametrize("tokens", [1, 2, 24, 33])
def test_the_published_procedure_gives_the_same_labels(tokens: int) -> None:
    estimator, input_ids_BT = tiny_estimator(context=40), random_tokens(1, tokens)
    published_T = published_entropies(estimator, input_ids_BT[0])
    assert (token_entropies(estimator, input_ids_BT)[0] - published_T).abs().max() <= 1e-3
    some_P = published_entropies(estimator, input_ids_BT[0], positions=[tokens - 1])
    assert (published_T[-1:] - some_P).abs().max() <= 1e-3


@pytest.mark.parametrize("large", [False, True])
def test_windows_together_have_the_labels_of_each_by_itself_up_to_rounding(large: bool) -> None:
    estimator = usual_estimator(context=48) if large else tiny_estimator(context=48)
    input_ids_BT, lengths = random_tokens(4, 48), [48, 21, 37, 0]
    together_BT = token_entropies(estimator, input_ids_BT, torch.tensor(lengths), batch_tokens=500)
    for row, length in enumerate(lengths):
        alone_BT = token_entropies(estimator, input_ids_BT[row : row + 1, :length])
        torch.testing.assert_close(together_BT[row, :length], alone_BT[0], atol=1e-4, rtol=0)
        assert together_BT[row, length:].isnan().all()


def test_decoder_batches_have_few_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, widths = tiny_estimator(context=80), set()
    decode = EntropyEstimator.decode_states

    def noted(self: EntropyEstimator, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        widths.add(states_BTD.shape[1])
        return decode(self, embedding_BX, states_BTD)

    monkeypatch.setattr(EntropyEstimator, "decode_states", noted)
    token_entropies(estimator, random_tokens(2, 70), batch_tokens=80)
    assert widths == set(range(8, 80, 8))


@pytest.mark.parametrize(("usual", "tokens", "largest", "mean"), [(True, 48, 0.1, 0.02), (False, 64, 0.4, 0.1)])
def test_bfloat16_moves_labels_by_a_stated_bound(usual: bool, tokens: int, largest: float, mean: float) -> None:
    """The bounds leave room above measured changes.

    At the usual scale of weights, labels moved by at most 0.062 and on average 0.013 nats. At ten times the usual
    scale, they moved by at most 0.26 and on average 0.07 nats.
    """
    estimator = usual_estimator(context=tokens) if usual else tiny_estimator(context=tokens)
    input_ids_BT = random_tokens(2, tokens)
    exact_BT = token_entropies(estimator, input_ids_BT)
    rounded_BT = token_entropies(copy.deepcopy(estimator).bfloat16(), input_ids_BT)
    assert rounded_BT.dtype == torch.float32
    assert 0 < (rounded_BT - exact_BT).abs().mean() < mean
    assert (rounded_BT - exact_BT).abs().max() < largest


@pytest.mark.long
def test_a_compiled_decoder_gives_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the traced graph runs as it is, because generated code takes minutes to compile on a busy CPU."""
    device, backend = ("cuda", "inductor") if torch.cuda.is_available() else ("cpu", "aot_eager")
    estimator, input_ids_BT = tiny_estimator(context=80), random_tokens(2, 70).to(device)
    estimator.to(device)  # type: ignore[arg-type]
    eager_BT = token_entropies(estimator, input_ids_BT, batch_tokens=300)
    compiled = torch.compile(estimator.decode_states, dynamic=True, backend=backend)
    monkeypatch.setattr(estimator, "decode_states", compiled)
    compiled_BT = token_entropies(estimator, input_ids_BT, batch_tokens=300)
    assert (compiled_BT - eager_BT).abs().max() <= 1e-3
