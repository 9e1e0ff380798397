"""The entropy estimation model: the tokens that each part depends on, padding, and saving."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.models.estimator import EntropyEstimator
from pipeline.models.stacks import input_embeddings
from tests.tiny_models import random_tokens, tiny_estimator


def test_losses_equal_those_of_one_prediction_at_a_time() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 9)
    losses_BT = estimator.token_losses(input_ids_BT)
    for row, tokens_T in enumerate(input_ids_BT):
        embedding_D = estimator.prefix_embeddings(tokens_T.unsqueeze(0))[0, -1]
        for place, token in enumerate(tokens_T):
            before_TD = input_embeddings(estimator.decoder)(tokens_T[:place])
            seen_TD = torch.cat([embedding_D.unsqueeze(0), before_TD])
            hidden_D = estimator.decoder(inputs_embeds=seen_TD.unsqueeze(0)).last_hidden_state[0, -1]
            expected = cross_entropy(estimator.head_VD @ hidden_D, token)
            torch.testing.assert_close(losses_BT[row, place], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_the_embedding_of_a_prefix_is_the_encoder_state_at_its_last_token(length: int) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 12)
    whole_BTD = estimator.prefix_embeddings(input_ids_BT)
    prefix_BTD = estimator.prefix_embeddings(input_ids_BT[:, :length])
    torch.testing.assert_close(whole_BTD[:, length - 1], prefix_BTD[:, -1], atol=1e-5, rtol=1e-5)


def test_the_first_loss_depends_on_the_last_token_only_through_the_embedding() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(1, 12)
    changed_BT = input_ids_BT.clone()
    changed_BT[0, -1] = (changed_BT[0, -1] + 1) % 97
    assert (estimator.token_losses(input_ids_BT) - estimator.token_losses(changed_BT))[0, 0].abs() > 1e-4
    embedding_BD = torch.zeros(1, 24)
    before, after = estimator.decode(embedding_BD, input_ids_BT), estimator.decode(embedding_BD, changed_BT)
    torch.testing.assert_close(before, after)


def test_padding_changes_no_loss_and_has_none() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 12)
    lengths_B = torch.tensor([12, 5, 1])
    losses_BT = estimator.token_losses(input_ids_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone_T = estimator.token_losses(input_ids_BT[row : row + 1, :length])[0]
        torch.testing.assert_close(losses_BT[row, :length], alone_T, atol=1e-5, rtol=1e-5)
        assert losses_BT[row, length:].eq(0).all()


def test_gradients_reach_every_weight() -> None:
    estimator = tiny_estimator().requires_grad_(True)
    estimator.token_losses(random_tokens(4, 12)).mean().backward()
    without = [name for name, weight in estimator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_a_saved_model_loads_unchanged_from_safetensors(tmp_path: Path) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 12)
    estimator.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded = EntropyEstimator.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config.bottleneck_width == 3
    torch.testing.assert_close(loaded.token_losses(input_ids_BT), estimator.token_losses(input_ids_BT))
