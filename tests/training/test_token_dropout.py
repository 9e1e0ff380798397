"""Token dropout hides a growing share of the tokens with low labels. Hidden tokens are still predicted."""

import pytest
import torch

from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveSettings
from pipeline.training.losses import ObjectiveLoss, document_losses
from pipeline.training.objectives import cross_entropy
from pipeline.training.penalties import penalty_function
from pipeline.training.token_dropout import TokenDropout
from tests.tiny_models import tiny_language_model

HIDDEN = 99


def batch(rows: int = 50, tokens: int = 40) -> Batch:
    torch.manual_seed(0)
    labels_BT = torch.rand(rows, tokens).where(torch.rand(rows, tokens) > 0.1, torch.nan)
    return Batch(torch.randint(90, (rows, tokens)), torch.full((rows,), tokens), labels_BT)


def test_a_growing_share_of_the_tokens_with_low_labels_is_hidden() -> None:
    dropout = TokenDropout(threshold=0.5, most=0.8, steps=100, hidden=HIDDEN)
    given, shares = batch(), []
    assert given.labels_BT is not None
    low_BT = given.labels_BT < 0.5
    for step in (0, 25, 50, 75, 100):
        hidden_BT = dropout(given, step).inputs_BT == HIDDEN
        assert not (hidden_BT & ~low_BT).any()
        shares.append((hidden_BT & low_BT).sum().item() / low_BT.sum().item())
    assert shares == sorted(shares) and shares[0] < 0.02
    assert shares[2] == pytest.approx(0.4, abs=0.05) and shares[-1] == pytest.approx(0.8, abs=0.05)


def test_the_same_step_hides_the_same_tokens_and_others_hide_others() -> None:
    dropout = TokenDropout(threshold=0.5, most=0.8, steps=100, hidden=HIDDEN)
    one, again, other = (dropout(batch(), step).inputs_BT for step in (60, 60, 61))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_hidden_tokens_are_predicted_and_what_follows_reads_the_hidden_id() -> None:
    model = tiny_language_model(vocabulary=100)
    given = batch(2, 8)
    assert given.labels_BT is not None
    hidden = TokenDropout(threshold=2, most=1, steps=1, hidden=HIDDEN)(given, 10)
    with torch.no_grad():
        losses_BT, whole_BT = document_losses(model, hidden, 0), document_losses(model, given, 0)
    assert torch.equal(losses_BT[:, 0], whole_BT[:, 0])  # the first token follows the start token alone
    changed_BT = torch.cat([torch.zeros(2, 1), given.labels_BT.isnan().logical_not()[:, :-1]], dim=1).cumsum(dim=1) > 0
    assert torch.equal((losses_BT - whole_BT).abs() > 1e-6, changed_BT)


def test_a_penalty_reads_the_hidden_id_too() -> None:
    model, given = tiny_language_model(vocabulary=100), batch(2, 8)
    hidden = TokenDropout(threshold=2, most=1, steps=1, hidden=HIDDEN)(given, 10)
    settings = ObjectiveSettings(objective="cross-entropy", label_smoothing=1e-9)
    for start in (0, None):
        plain = ObjectiveLoss(cross_entropy, start)
        penalised = ObjectiveLoss(cross_entropy, start, penalty_function(settings))
        torch.testing.assert_close(penalised(model, hidden), plain(model, hidden))
        assert not torch.isclose(plain(model, hidden), plain(model, given))


@pytest.mark.parametrize("most", [0.0, 1.1])
def test_a_share_that_hides_nothing_or_too_much_is_refused(most: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        TokenDropout(threshold=1, most=most, steps=10, hidden=0)
