"""Section `host`: speed of all that a worker does except labelling, and the number of cores that feed the device."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.annotations import Device
from tests.benchmarks.host_path import measured
from tests.device.log import Figures, Log, read_lines
from tests.device.sizes import Sizes


def section(log: Log, sizes: Sizes, _: Device) -> None:
    log.measure("host", "reading, tokenizing, batching and writing", partial(_host, log, sizes))


def _host(log: Log, sizes: Sizes) -> Figures:
    """Return the tokens per second of one core if labels cost nothing, and the number of cores that each model needs.

    With this number of cores, the device never waits for tokens.
    """
    with TemporaryDirectory() as folder:
        path = measured(Path(folder), sizes.host_documents)
    found: Figures = {"text": path.text, "tokens/s a core": path.tokens_per_second}
    found |= {f"share of {stage}": share for stage, share in path.shares.items()}
    for line in read_lines(log.file):
        if line.section == "fast" and "documents' tokens/s" in line.figures:
            labelled = float(line.figures["documents' tokens/s"])
            found[f"cores for {line.what}"] = labelled / path.tokens_per_second
    return {**found, "cores here": os.cpu_count() or 0}
