"""Checkpoints of a run: they are found, pinned and checked, and their tokenizers and start tokens are recorded."""

from collections.abc import Sequence

from pipeline.annotate.config import Config
from pipeline.data.files import COMMIT
from pipeline.data.tokenizer import TokenSource, encoding_sha256, named_token
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint
from schemas.annotations import EnsembleMember, Method
from schemas.receipts import Plan


def pin_checkpoints(named: tuple[str, ...], existing: Plan | None) -> tuple[str, ...]:
    """Return the names of the checkpoints, pinned to the commits that `existing`, the plan of a resumed run, recorded.

    Only names of models on the Hub are pinned. A name is returned unchanged if it already has a revision, or if the
    plan records another checkpoint at its index.
    """
    if existing is None:
        return named
    members = tuple(member.model for member in existing.provenance.members) or (existing.checkpoint or "",)
    return tuple(map(_pinned, named, members)) if len(members) == len(named) else named


def _pinned(named: str, known: str) -> str:
    name, _, revision = known.partition("@")
    return f"{name}@{revision}" if named == name and COMMIT.fullmatch(revision) else named


def checkpoints_for(config: Config) -> tuple[Checkpoint, ...]:
    """Return the checkpoints that the setting `estimator` names.

    If the setting is empty, return the checkpoint for the method that comes with the project.

    Raises:
        ValueError: if there is no such checkpoint, if the method needs a checkpoint of another kind, or if checkpoints
            differ in the number of their cross-validation folds.
    """
    if not config.estimator and config.method == "causal":
        raise ValueError("--method causal needs a causal language model: name its folder or Hub name with --estimator")
    shipped = Checkpoint(SHIPPED / KIND_OF_METHOD[config.method])
    checkpoints = tuple(map(Checkpoint.find, config.estimator)) or (shipped,)
    for checkpoint in checkpoints:
        require_kind(checkpoint, config.method)
        if (folds := len(checkpoint.folds)) != (others := len(checkpoints[0].folds)):
            raise ValueError(
                f"{checkpoint.folder} has {folds} cross-validation folds, and {checkpoints[0].folder} {others}; name "
                "checkpoints that were trained with the same folds with --estimator"
            )
    return checkpoints


def require_kind(checkpoint: Checkpoint, requested: Method) -> None:
    """Check that a checkpoint is of the kind that the requested method needs.

    Raises:
        ValueError: if the checkpoint is of another kind.
    """
    expected = KIND_OF_METHOD[requested]
    for fold in checkpoint.folds:
        for method, kind in KIND_OF_METHOD.items():
            if fold.kind == kind != expected:
                raise ValueError(
                    f"{fold.folder} holds a checkpoint of kind {kind}: give --method {method} with it, or name one "
                    f"of kind {expected} for --method {requested}"
                )
        fold.require_kind(expected)


def require_loadable(checkpoint: Checkpoint, method: Method) -> None:
    """Check that a checkpoint can be loaded, before any worker starts.

    A checkpoint that comes with the project is not checked.

    Raises:
        ValueError: if the checkpoint cannot be loaded.
    """
    if not checkpoint.is_shipped:
        from pipeline.models.loading import require_complete  # imports torch, which takes seconds

        for member in checkpoint.folds:
            require_complete(member.folder, KIND_OF_METHOD[method])


def members_for(
    config: Config, checkpoints: Sequence[Checkpoint], tokens: TokenSource, names: Sequence[str]
) -> tuple[EnsembleMember, ...]:
    """Return a record of each checkpoint: its name, its tokenizer and its start token.

    Raises:
        ValueError: if the checkpoints must label the same tokens, but have different tokenizers. They must label the
            same tokens in two cases: the documents are already tokenized, or only a share of the tokens is labelled.
    """
    firsts = [checkpoint.folds[0] for checkpoint in checkpoints]
    if tokens.folder is None and len({first.tokenizer_sha256 for first in firsts} - {None}) > 1:
        raise ValueError("--tokenizer none gives its ids to all checkpoints, but their tokenizers differ; name one")
    members = tuple(
        EnsembleMember(
            model=name,
            tokenizer_sha256=digest,
            start_token=start_token_for(first, config) if config.method == "causal" else None,
        )
        for name, first, digest in zip(names, firsts, moved_tokenizers(firsts, tokens), strict=True)
    )
    if config.share < 1 and len({member.tokenizer_sha256 for member in members}) > 1:
        raise ValueError("--share below 1 needs checkpoints of one tokenizer; leave out --share or a checkpoint")
    return members


def start_token_for(checkpoint: Checkpoint, config: Config) -> int:
    """Return the id of the requested start token or, by default, of the one that the checkpoint declares."""
    if config.start_token is None:
        from pipeline.models.loading import declared_start  # imports torch, which takes seconds

        return declared_start(checkpoint.folder)
    return named_token(checkpoint.folder, config.start_token)


def moved_tokenizers(checkpoints: Sequence[Checkpoint], tokens: TokenSource) -> list[str | None]:
    """Return the digest of each checkpoint's tokenizer, or None for a checkpoint whose labels need no transfer.

    A checkpoint's labels must be transferred if its tokenizer differs from the tokenizer of `tokens`, which makes the
    token ids of the dataset. The members of an ensemble may have tokenizer files that differ but give the same ids.
    Such tokenizers count as one tokenizer, and the digest of the first one is returned for all of them. If they also
    give the same ids as the tokenizer of `tokens`, None is returned for them.
    """
    digests = [checkpoint.tokenizer_sha256 if labels_move(checkpoint, tokens) else None for checkpoint in checkpoints]
    if len(set(digests)) == 1 or tokens.folder is None:
        return digests
    known: dict[str, str | None] = {encoding_sha256(tokens.folder): None}
    return [
        digest and known.setdefault(encoding_sha256(checkpoint.folder), digest)
        for checkpoint, digest in zip(checkpoints, digests, strict=True)
    ]


def labels_move(checkpoint: Checkpoint, tokens: TokenSource) -> bool:
    """True if the checkpoint's tokenizer differs from the tokenizer of `tokens`.

    The nats of the checkpoint's tokens must then be divided among the written tokens that cover the same bytes.
    """
    return tokens.folder is not None and checkpoint.tokenizer_sha256 not in (None, tokens.sha256)
