"""Host: what a worker does beside labelling, and how many cores feed the device."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.engine.device import Device
from tests.benchmarks.host import host_path
from tests.device.log import Figures, Log, read_lines
from tests.device.sizes import Sizes


def section(log: Log, _: Sizes, __: Device) -> None:
    log.measure("host", "reading, tokenizing, batching and writing", partial(_host, log))


def _host(log: Log) -> Figures:
    """Tokens a second of a core with labels that cost nothing, and the cores that each labelling model wants."""
    with TemporaryDirectory() as folder:
        path = host_path(Path(folder))
    found: Figures = {"text": path.text, "tokens/s a core": path.tokens_per_second}
    found |= {f"share of {stage}": share for stage, share in path.shares.items()}
    for line in read_lines(log.file):
        if line.section == "fast" and "documents' tokens/s" in line.figures:
            labelled = float(line.figures["documents' tokens/s"])
            found[f"cores for {line.what}"] = labelled / path.tokens_per_second
    return {**found, "cores here": os.cpu_count() or 0}
