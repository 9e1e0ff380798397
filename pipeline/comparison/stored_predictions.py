"""A teacher's predictions for every token of a corpus, stored once for all students.

A teacher reads a document in the windows in which the students read it. Several teachers of a document count as one
teacher, with the mean of their probabilities.

Shapes: N tokens, V vocabulary, K ids, S teachers of the same documents.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus, fold_of
from pipeline.labels.ensemble import deviation
from pipeline.models.causal_lm import prepend_start
from pipeline.training.batches import Windowing
from pipeline.training.distillation import SparseTargets
from pipeline.training.evaluation import held_out_batches
from schemas.annotations import ENTROPY, ENTROPY_DEVIATION, EXPECTED_ENTROPY

DISTILLED, ALL_IDS = 50, 0
LARGEST_FILE = 64 * 2**30


def ids_stored(tokens: int, vocabulary: int) -> tuple[int, ...]:
    """Return the number of ids per token in each file of log-probabilities; 0 stands for all ids."""
    return (ALL_IDS, DISTILLED) if 2 * tokens * vocabulary <= LARGEST_FILE else (DISTILLED,)


@dataclass(frozen=True)
class StoredPredictions:
    """A folder of a teacher's predictions for all N tokens of a corpus: labels, and log-probabilities in float16.

    The log-probabilities of the K most probable ids are always stored. The log-probabilities of all ids of the
    vocabulary are stored too if they take at most 64 GiB.
    """

    folder: Path

    @property
    def ids(self) -> tuple[int, ...]:
        """Number of ids per token in each file of log-probabilities; 0 stands for all ids."""
        return (ALL_IDS, DISTILLED) if self._file("logprobs").is_file() else (DISTILLED,)

    def stored(self, name: str) -> np.ndarray:
        """Return an array [N, V] or [N, K], which stays on the disk until it is used."""
        values: np.ndarray = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
        return values

    def labels(self, column: str) -> np.ndarray:
        """Return the labels of a column in nats, float32 [N]: entropy, expected_entropy or entropy_deviation.

        The deviation is that of the teachers' surprisals. It is stored if there are several teachers.
        """
        values: np.ndarray = np.load(self._file(column), allow_pickle=False)
        return values

    def named_labels(self, name: str) -> dict[str, np.ndarray]:
        """Return the surprisals as the labels called `name`, and the expected entropies as `NAME expected`."""
        return {name: self.labels(ENTROPY), f"{name} expected": self.labels(EXPECTED_ENTROPY)}

    def targets(self, positions_N: Tensor, ids: int | None) -> SparseTargets:
        """Return the teacher's predictions for some tokens, as targets.

        If `ids` is None, a target has all ids of the vocabulary. Otherwise, it has the `ids` most probable ids.
        """

        def of_tokens(name: str) -> Tensor:
            return torch.from_numpy(self.stored(name)[positions_N.cpu().numpy()]).to(positions_N.device)

        if ids is None:
            p_NV = of_tokens("logprobs").float().softmax(dim=1)  # rounding to float16 has changed their sum
            every_NV = torch.arange(p_NV.shape[1], device=p_NV.device).expand_as(p_NV)
            return SparseTargets(every_NV, p_NV, torch.zeros_like(p_NV[:, 0]))
        p_NK = of_tokens("top_logprobs")[:, :ids].float().exp()
        p_NK = p_NK / p_NK.sum(dim=1, keepdim=True).clamp(min=1)
        return SparseTargets(of_tokens("top_ids")[:, :ids].long(), p_NK, (1 - p_NK.sum(dim=1)).clamp(min=0))

    def write(
        self,
        corpus: Corpus,
        teachers: Mapping[int, Sequence[PreTrainedModel]],
        vocabulary: int,
        start: int,
        windowing: Windowing,
    ) -> None:
        """Write the teachers' predictions for a corpus. The teachers in `teachers[k]` read the documents of fold k."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tokens, most = len(corpus.tokens_N), min(DISTILLED, vocabulary)
        top_ids_NK = self._new("top_ids", np.int32, (tokens, most))
        top_logprobs_NK = self._new("top_logprobs", np.float16, (tokens, most))
        every = ALL_IDS in ids_stored(tokens, vocabulary)
        logprobs_NV = self._new("logprobs", np.float16, (tokens, vocabulary)) if every else None
        columns = [ENTROPY, EXPECTED_ENTROPY, *([ENTROPY_DEVIATION] if len(teachers[0]) > 1 else [])]
        labels = {column: np.full(tokens, np.nan, np.float32) for column in columns}
        for positions_N, targets_N, log_p_SNV in _predicted(corpus, teachers, start, windowing):
            log_p_NV = mixture(log_p_SNV)
            labels[ENTROPY][positions_N] = -log_p_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
            labels[EXPECTED_ENTROPY][positions_N] = -(log_p_NV.exp() * log_p_NV).sum(dim=1)
            if len(log_p_SNV) > 1:
                own = [log_p_NV[np.arange(len(targets_N)), targets_N].numpy() for log_p_NV in log_p_SNV]
                labels[ENTROPY_DEVIATION][positions_N] = deviation(own)
            top_logprobs_NK[positions_N], top_ids_NK[positions_N] = log_p_NV.topk(most, dim=1)
            if logprobs_NV is not None:
                logprobs_NV[positions_N] = log_p_NV
        for column, nats_N in labels.items():
            np.save(self._file(column), nats_N)

    def _new(self, name: str, kind: type, shape: tuple[int, int]) -> np.ndarray:
        values: np.ndarray = np.lib.format.open_memmap(self._file(name), mode="w+", dtype=kind, shape=shape)
        return values

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def mixture(logprobs: Tensor) -> Tensor:
    """Return the logarithm of the mean of the probabilities along the first axis, given log-probabilities."""
    return logprobs.logsumexp(dim=0) - math.log(len(logprobs))


@torch.no_grad()
def _predicted(
    corpus: Corpus, teachers: Mapping[int, Sequence[PreTrainedModel]], start: int, windowing: Windowing
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield (index of each token in the corpus [N], its id [N], log-probabilities [S, N, V]), batch by batch."""
    folds = len(teachers)
    documents = corpus.by_document(corpus.tokens_N)
    places = corpus.by_document(np.arange(len(corpus.tokens_N), dtype=np.int32))
    for fold, models in teachers.items():
        chosen = [m for m, tokens_N in enumerate(documents) if fold_of(tokens_N, folds) == fold]
        own = Corpus.of([documents[m] for m in chosen])
        places_N = np.concatenate([np.empty(0, np.int32), *(places[m] for m in chosen)])
        for batch in held_out_batches(own, windowing, models[0].device) if chosen else ():
            assert batch.positions_BT is not None
            read_BT, real_BT = prepend_start(batch.input_ids_BT, start), batch.real_BT
            logits = [model(input_ids=read_BT, use_cache=False).logits[real_BT] for model in models]
            log_p_SNV = torch.stack(logits).float().log_softmax(dim=2).cpu()
            yield places_N[batch.positions_BT[real_BT].cpu()], batch.input_ids_BT[real_BT].cpu(), log_p_SNV
