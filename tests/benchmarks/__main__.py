"""`make bench`: measure the promised speed and memory in one run. Exit code 1: a target is missed.

`--quick` runs everything at sizes that are too small for the targets, to check that it works. The comparison of SmolLM2
with lm-eval needs `make pretrained peers`. The measurements for a GPU (`python -m tests.device`) run at tiny sizes, for
half a minute.
"""

import argparse
import subprocess
import sys
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.benchmarks import engine, labels, memory, rolling, training

PARTS = ("engine", "labels", "training", "memory", "rolling", "device")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}", flush=True)
    met = True
    quick = options.quick
    parts = {
        "engine": engine.figures(engine.QUICK if quick else engine.Size()),
        "labels": labels.figures(labels.QUICK if quick else labels.Size(), device),
        "training": training.figures(training.QUICK if quick else training.Size(), device),
        "memory": memory.figures(memory.QUICK if quick else memory.Size(), device),
        "rolling": iter(()) if rolling.MISSING else rolling.figures(rolling.QUICK if quick else rolling.Size()),
        "device": iter(()),
    }
    for figure in chain(*(parts[name] for name in options.only)):
        print(figure, flush=True)
        met &= figure.met
    if "rolling" in options.only and rolling.MISSING:
        print(f"rolling: {rolling.MISSING}")
    if "device" in options.only:
        with TemporaryDirectory() as folder:
            output = str(Path(folder) / "device.jsonl")
            command = [sys.executable, "-m", "tests.device", "--tiny", "--minutes", "0.5", "--output", output]
            met &= subprocess.run([*command, "--device", device.type], check=False).returncode == 0
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
