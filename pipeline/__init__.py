"""Per-token entropy labels: documents -> windows -> label method -> annotated shards -> training with the labels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.labeller import Labeller as Labeller


def __getattr__(name: str) -> Any:
    """Import `Labeller` when it is first used, since commands must start without torch."""
    if name == "Labeller":
        from pipeline.labeller import Labeller

        return Labeller
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
