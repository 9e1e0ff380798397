"""Studies of real documents, which get their labels from annotated datasets of these documents.

Shapes: N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np

from pipeline.comparison.stored_predictions import StoredPredictions
from pipeline.comparison.student import document_nats, sums_by_document
from pipeline.comparison.study import PREDICTIONS, TEACHER, Study
from pipeline.comparison.teachers import BEST
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.corpus import Corpus, require_tokens
from pipeline.data.tokenizer import load_tokenizer
from pipeline.experiments.contest import parameters
from pipeline.labels.retokenize import retokenized
from pipeline.models.loading import load_causal
from pipeline.training.batches import Windowing
from pipeline.training.data import ModelTokens


def text_study(
    sources: Mapping[str, str],
    tokenizer: Path | None,
    sizes: tuple[int, int, int],
    elsewhere: Sequence[str] = (),
    skip: int = 0,
) -> Study:
    """Return a study of consecutive documents that all datasets annotate.

    Args:
        sources: datasets by the name of their labels.
        tokenizer: folder of the tokenizer to transfer documents and labels to; None to keep the datasets' tokenizer.
        sizes: numbers of training, development and test documents, which follow each other.
        elsewhere: files of other text to evaluate on, as for `find_documents`.
        skip: number of documents at the beginning of the datasets to leave out.

    Raises:
        ValueError: if the datasets have too few documents, or do not annotate the same ones.
    """
    found = {name: find_annotations(source) for name, source in sources.items()}
    first = next(iter(found.values()))
    tokens = ModelTokens.of(first, tokenizer)
    corpora = {name: _documents(dataset, tokenizer, skip, sum(sizes)) for name, dataset in found.items()}
    (corpus, *others) = corpora.values()
    for name, other in zip([*found][1:], others, strict=True):
        if not np.array_equal(other.tokens_N, corpus.tokens_N):
            raise ValueError(
                f"{found[name].source} has other documents, or tokens, than {first.source}; label the same ones"
            )
    train, development, test = np.cumsum(sizes).tolist()
    tested = {name: each.documents(development, test) for name, each in corpora.items()}
    return Study(
        replace(corpus.documents(0, train), labels_N=None, expected_N=None),
        _labels({name: each.documents(0, train) for name, each in corpora.items()}),
        require_tokens(corpus.documents(train, development)),
        require_tokens(corpus.documents(development, test)),
        vocabulary=max(tokens.vocabulary, tokens.separator + 1),
        start=tokens.separator,
        elsewhere=tokens.read(elsewhere) if elsewhere else None,
        teacher_nats={name: nats_M for name, each in tested.items() if not np.isnan(nats_M := _nats(each)).any()},
    )


def with_teacher(study: Study, checkpoint: Path, windowing: Windowing, folder: Path) -> Study:
    """Return a copy of the study with a teacher: a causal language model that predicts the tokens of the documents.

    The copy has the teacher's labels, predictions, weights and test losses. The predictions and a copy of the weights
    are written to `folder`.

    Raises:
        ValueError: if the sizes of the teacher's and the study's vocabularies differ.
    """
    model = load_causal(checkpoint)
    if (known := model.config.vocab_size) != study.vocabulary:
        raise ValueError(
            f"`teacher` {checkpoint} has {known:,} token ids, and the documents {study.vocabulary:,}; give its own"
            " `tokenizer`, or another teacher"
        )
    predictions = StoredPredictions(folder / PREDICTIONS)
    predictions.write(study.seen, {0: [model]}, study.vocabulary, study.start, windowing)
    copytree(checkpoint, folder / TEACHER / BEST, dirs_exist_ok=True)
    labels = predictions.named_labels(TEACHER)
    flop = 2.0 * parameters(model) * len(study.seen.tokens_N)
    return replace(
        study,
        labels={**study.labels, **labels},
        predictions=predictions,
        teacher=folder / TEACHER,
        teacher_nats={**study.teacher_nats, TEACHER: document_nats(model, study.test, windowing, study.start)},
        labelling_flop=dict.fromkeys(labels, flop),
    )


def _documents(dataset: AnnotatedDataset, tokenizer: Path | None, skip: int, count: int) -> Corpus:
    """Return `count` documents of a dataset after the first `skip`, in the tokens of `tokenizer`.

    If `tokenizer` is None, the documents keep the tokens of the dataset.

    Raises:
        ValueError: if the dataset has too few documents, or if a document's labels cannot be transferred to the tokens
            of `tokenizer`.
    """
    if len(dataset) < skip + count:
        after = f" after the {skip} that `skip` leaves out" if skip else ""
        raise ValueError(
            f"{dataset.source} has {len(dataset)} documents; `documents`, `development` and `test` ask for"
            f" {count}{after}: ask for fewer"
        )
    corpus = dataset.corpus(skip, skip + count, expected=True)
    if tokenizer is None:
        return corpus
    if dataset.tokenizer is None:
        raise ValueError("`tokenizer` needs labels of text; these documents came as tokens")
    moved, _ = retokenized(corpus, load_tokenizer(dataset.tokenizer), load_tokenizer(tokenizer))
    if left_out := len(corpus) - len(moved):
        raise ValueError(
            f"the labels of {left_out} documents of {dataset.source} cannot move to other tokens, since their tokens do"
            f" not match their text; annotate with `tokenizer` {tokenizer}"
        )
    return moved


def _labels(seen: Mapping[str, Corpus]) -> dict[str, np.ndarray]:
    """Return each dataset's labels [N] of the training documents in nats, by the name of the labels.

    If a dataset also has expected entropies, they are returned under this name followed by ` expected`.

    Args:
        seen: training documents with the labels of one dataset, by the name of these labels.
    """
    given = {name: corpus.labels_N for name, corpus in seen.items()}
    expected = {f"{name} expected": corpus.expected_N for name, corpus in seen.items()}
    return {name: nats_N for name, nats_N in {**given, **expected}.items() if nats_N is not None}


def _nats(corpus: Corpus) -> np.ndarray:
    assert corpus.labels_N is not None
    return sums_by_document(corpus.labels_N, corpus)
