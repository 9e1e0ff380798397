"""Windows in which a model learns labels. By default, documents are cut into the same windows as in annotation.

A label depends on its whole window. The dataset's provenance therefore records the length and overlap of annotation's
windows, and the token that a causal model read before each window. Flags override these values. If annotation used a
tokenizer other than the dataset's, its windows did not consist of the dataset's tokens. The defaults of the length and
of the start token are then those of the checkpoint to start from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.tokenizer import named_token
from pipeline.models.checkpoint import Checkpoint
from schemas.annotations import Provenance


@dataclass(frozen=True)
class LabelWindows:
    """Length and overlap of windows, in tokens, and the token that a model reads before each window."""

    window: int
    overlap: int
    """Number of tokens that a window shares with the next window."""
    start: int | None
    """Id of the token read before each window. None if the model reads a learned vector instead of a token."""

    def __str__(self) -> str:
        first = "a learned vector" if self.start is None else f"token {self.start}"
        return f"{self.window:,} tokens after {first}, {self.overlap:,} of them shared with the next window"


def label_windows(
    made: Provenance, members: Sequence[Checkpoint | None], context: int | None, overlap: int | None, start: str | None
) -> LabelWindows:
    """Return the settings of the windows to train on: length, overlap and start token.

    Args:
        made: provenance of the labels.
        members: one element per fold: the checkpoint that the fold's model starts from, or None for random weights. The
            start token is looked up in the first checkpoint.
        context: requested length of windows; None for the default.
        overlap: requested number of tokens that neighbouring windows share; None for the default.
        start: text of the requested token to read before each window; None for the default.

    Raises:
        ValueError: if a checkpoint's context is shorter than the windows, the first checkpoint does not have the start
            token, or the overlap is not below the length of windows.
    """
    contexts = {
        member.folder: member.context for member in members if member is not None and member.context is not None
    }
    shortest = min(contexts, key=contexts.__getitem__, default=None)
    window = _window(made, context, None if shortest is None else contexts[shortest])
    if shortest is not None and window > contexts[shortest]:
        whose = "the labels have windows of" if context is None else "`model.context` is"
        raise ValueError(
            f"{whose} {window} tokens, but {shortest} reads at most {contexts[shortest]}; "
            f"give `model.context` {contexts[shortest]}"
        )
    if overlap is None:
        overlap = made.overlap if _same_tokens(made) and window == made.window else window // 2
    if not 0 <= overlap < window:
        raise ValueError(f"`overlap` must be at least 0 and below the window of {window} tokens, not {overlap}")
    return LabelWindows(window, overlap, _start(made, members[0], start))


def _same_tokens(made: Provenance) -> bool:
    """True if annotation labelled the tokens that the dataset stores, not those of another tokenizer."""
    return not made.is_moved


def _window(made: Provenance, context: int | None, longest: int | None) -> int:
    if context is not None:
        return context
    return made.window if _same_tokens(made) or longest is None else longest


def _start(made: Provenance, member: Checkpoint | None, named: str | None) -> int | None:
    """Return the id of the token to read before each window; None for a learned vector.

    `member` is the checkpoint to start from. A second-order model keeps the token or vector that it was trained with.
    For a causal language model, the token is the requested one, `named`. By default, it is the token that annotation
    read before each window. If annotation read no such token, or used another tokenizer, the default is the token that
    the checkpoint declares.
    """
    if member is None or member.kind != "causal":
        if named is not None:
            raise ValueError("`start_token` needs a causal language model in `init_from`; leave it out")
        own: int | None = member.config.get("start_token") if member and member.kind == "second-order" else None
        return own
    if named is not None:
        return named_token(member.folder, named)
    if made.start_token is None or not _same_tokens(made):
        from pipeline.models.loading import declared_start  # imported here because torch takes seconds

        return declared_start(member.folder)
    if made.start_token >= member.vocabulary:
        raise ValueError(
            f"the labels were made with token {made.start_token} before each window, but {member.folder} has only "
            f"{member.vocabulary} ids; name another token with `start_token`"
        )
    return made.start_token
