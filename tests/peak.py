"""Peak memory of one operation on a file, measured in a separate process on Linux.

`python -m tests.peak plan FILE` prints the peak in bytes and the outcome, as JSON.
"""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.data.documents import Column
from pipeline.data.files import find_files


class Peak(NamedTuple):
    """Peak memory of a process in bytes, and the outcome of its operation as text."""

    size: int
    outcome: str


def peak_of(what: str, file: Path, timeout: int = 120) -> Peak:
    """Return the peak memory and the outcome of an operation that runs in another process."""
    command = [sys.executable, "-m", "tests.peak", what, str(file)]
    return Peak(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=timeout).stdout))


def plan(file: Path) -> str:
    """Inspect a file as the driver of a run does before planning. Return the number of rows as text."""
    from pipeline.engine.plan import inspect

    return f"{inspect(find_files([str(file)]), Column()).rows} rows"


def annotate_fast(file: Path) -> str:
    """Annotate with a tiny model, which takes a tenth of the shipped model's time. Return the outcome as text."""
    from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
    from tests.tiny_models import tiny_second_order

    with tempfile.TemporaryDirectory() as model:
        tiny_second_order(vocabulary=8192, context=256).save_pretrained(model)
        copy_tokenizer(SHIPPED / "tokenizer", Path(model))
        return annotate(file, model)


def annotate(file: Path, model: str | None = None) -> str:
    """Annotate a file as a driver and a worker do, by default with the shipped model.

    Return the exit code and the numbers of rows as text.
    """
    from pipeline.annotate.__main__ import annotate
    from pipeline.annotate.config import Config
    from pipeline.data.ledger import Ledger
    from schemas.layout import Subset
    from schemas.receipts import total

    with tempfile.TemporaryDirectory() as output:
        code = annotate(
            Config(
                input=(str(file),),
                output=output,
                workers=0,
                gpus_per_worker=0,
                columns=(),
                dtype="float32",
                estimator=(model,) if model else (),
            )
        )
        counts = total(Ledger(Subset("second-order", Path(output))).receipts()).counts
    return f"exit {code}, {counts.rows} rows, {counts.rows_too_long} too long"


def report(folder: Path) -> str:
    """Write the report page of an annotated dataset. Return the size of the page as text."""
    from pipeline.report.page import write_report

    with tempfile.TemporaryDirectory() as output:
        return f"{write_report(str(folder), Path(output)).stat().st_size} bytes"


DONE: Mapping[str, Callable[[Path], str]] = {
    "plan": plan,
    "annotate": annotate,
    "annotate_fast": annotate_fast,
    "report": report,
}


def main(what: str, file: Path) -> None:
    """Perform an operation, and print this process's peak memory and the outcome."""
    logging.disable()
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        outcome = DONE[what](file)
    except (ValueError, OSError) as error:
        outcome = f"refused: {error}"
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    size = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps([size, outcome]), file=answer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
