"""`python -m tests.device --minutes 8`: all measurements on a GPU, the most useful first, with a JSON line for each.

    python -m tests.device --minutes 8 --output device.jsonl           # this machine's GPU, real sizes
    python -m tests.device --minutes 0.5 --tiny --device cpu           # a test of the script on any machine
    python -m tests.device.tables device.jsonl                         # print the lines as tables

Without --output, the lines go to `device.jsonl` in the folder that the environment variable OUT names, or else in the
working directory. Exit code 1: a measurement failed for another reason than too little memory or time.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from schemas.annotations import Device
from tests.device import checkpoints, host, peers, right, speed, training
from tests.device.log import Figures, Log
from tests.device.sizes import TINY, Sizes

Section = Callable[[Log, Sizes, Device], None]
SECTIONS: dict[str, Section] = {
    "right": right.section,
    "fast": speed.section,
    "peers": peers.section,
    "training": training.section,
    "host": host.section,
    "launches": speed.launches,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.device", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="no measurement begins later")
    parser.add_argument("--output", type=Path, help="file that lines are appended to")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes at which figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=(*SECTIONS, "checkpoints"), help="these sections")
    parser.add_argument("--text", help="Parquet file to train the shipped sizes on in the minutes that are left")
    options = parser.parse_args(arguments)
    file = options.output or Path(os.environ.get("OUT", "."), "device.jsonl")
    log, sizes = Log(file, options.minutes), TINY if options.tiny else Sizes()
    log.measure("machine", options.device, lambda: machine(options.device))
    for name, section in SECTIONS.items():
        if name in (options.only or SECTIONS):
            section(log, sizes, options.device)
    if "checkpoints" in (options.only or ("checkpoints",)):
        checkpoints.section(log, options.text, file.parent, tiny=options.tiny)
    return int(log.failed)


def machine(device: Device) -> Figures:
    """Return the names and versions of the hardware and the libraries that run the measurements."""
    card = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found: Figures = {"torch": torch.__version__, "transformers": transformers.__version__, "card": card}
    if device == "cuda":
        found["GB"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    return found | {"cores": os.cpu_count() or 0, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
