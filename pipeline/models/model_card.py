"""Model cards: a checkpoint's training data, its quality, and the command that made it."""

import shlex
from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

from pipeline.messages import in_markdown, redacted, visible

CARD_FILE = "README.md"


def model_card(
    title: str, description: str, facts: Mapping[str, object], *, command: str, tags: list[str], usage: str
) -> str:
    """Return a model card as Markdown, with the front matter that the Hugging Face Hub reads.

    `facts` become the rows of a table, in the mapping's order. The card names no licence and no language, because only
    the model's owner knows whose documents the model was trained on.
    """
    front_matter = ModelCardData(library_name="transformers", tags=tags).to_yaml()
    table = "\n".join(f"| {in_markdown(name)} | {_shown(value)} |" for name, value in facts.items())
    return f"""---
{front_matter}
---
# {title}

{description}

| | |
|---|---|
{table}

Made by

    {command}

Used by

    {usage}
"""


def training_length(metrics: Mapping[str, float]) -> str:
    """Return a training run's steps, tokens and minutes as text. `metrics` is the last line of the run's metrics."""
    return f"{metrics['step']:,} steps, {metrics['tokens']:,} tokens, {metrics['seconds'] / 60:,.0f} minutes"


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Return the command that runs a module with these arguments, quoted for a shell and without credentials."""
    return f"python -m {module} {visible(redacted(shlex.join(arguments)))}"


def _shown(value: object) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else in_markdown(str(value))
    )
