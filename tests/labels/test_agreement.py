"""Documents that two datasets have in common, and figures of the agreement of their labels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.annotated import find_annotations
from pipeline.labels.agreement import HEADER, Pair, agreement, joined, paired
from tests.annotated import write_annotated

NATS = st.one_of(st.just(np.nan), st.floats(0, 20, width=32))


def pair_of(labels: list[float], reference: list[float]) -> Pair:
    own, other = ({"entropy": np.array(nats, np.float32)} for nats in (labels, reference))
    return Pair(np.arange(len(labels), dtype=np.int32), own, other, None)


@given(st.lists(st.lists(st.tuples(NATS, NATS), max_size=20), min_size=1, max_size=5))
def test_figures_are_those_of_all_tokens_that_have_both_labels(documents: list[list[tuple[float, float]]]) -> None:
    found = agreement([pair_of(*map(list, zip(*rows, strict=True))) for rows in documents if rows], "entropy")
    both = [(a, b) for rows in documents for a, b in rows if not np.isnan(a) and not np.isnan(b)]
    labels, reference = (np.array(side) for side in ([a for a, _ in both], [b for _, b in both]))
    if len(both) < 2 or len({*labels.tolist()}) < 2:
        assert found is None
        return
    assert found is not None and found.tokens == len(both)
    if np.ptp(labels) > 1e-3:
        wanted = np.polyfit(labels, reference, 1)
        np.testing.assert_allclose((found.slope, found.bias), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.mean_difference, (labels - reference).mean(), atol=1e-6)
    np.testing.assert_allclose(found.mean_absolute_error, abs(labels - reference).mean(), atol=1e-6)
    total = ((reference - reference.mean()) ** 2).sum()
    if np.ptp(reference) > 1e-3:
        assert found.r_squared == pytest.approx(1 - ((labels - reference) ** 2).sum() / total, rel=1e-6, abs=1e-6)
    assert len(str(found)) >= len(HEADER)


def test_r_squared_of_a_constant_reference_is_not_a_number() -> None:
    found = agreement([pair_of([1, 2], [3, 3])], "entropy")
    assert found is not None and np.isnan(found.r_squared) and found.mean_difference == -1.5


def test_documents_are_paired_by_their_tokens(tmp_path: Path) -> None:
    nan = float("nan")
    cheap = write_annotated(tmp_path / "cheap", [[1, 2], [], [3], [4, 5], [3]], [[1, nan], [], [3], [4, 5], [9]])
    better = write_annotated(tmp_path / "better", [[4, 5], [6], [], [3]], [[8, nan], [1], [], [6]])
    found = paired(find_annotations(str(cheap)), find_annotations(str(better)), None)
    assert (found.columns, found.absent, found.immovable) == (("entropy",), 1, 0)
    assert [pair.ids_T.tolist() for pair in found.pairs] == [[3], [4, 5]]
    labels_N, reference_N = joined(found.pairs, "entropy")
    assert (labels_N.tolist(), reference_N.tolist()) == ([3, 4], [6, 8])


def test_datasets_without_a_common_document_are_refused(tmp_path: Path) -> None:
    one = find_annotations(str(write_annotated(tmp_path / "one", [[1]], [[1]])))
    other = find_annotations(str(write_annotated(tmp_path / "other", [[2]], [[1]])))
    with pytest.raises(ValueError, match=r"has no document of .*; label the same documents twice"):
        paired(one, other, None)
    with pytest.raises(ValueError, match="no column `site`"):
        paired(one, one, "site")
    moved = find_annotations(str(write_annotated(tmp_path / "moved", [[1]], [[1]], tokenizer_sha256="u" * 64)))
    with pytest.raises(ValueError, match="have different tokens, and one has no tokenizer"):
        paired(one, moved, None)
