"""`make bench`: what is promised about speed and memory, measured in one run; exit code 1 where a target is missed.

`--quick` runs everything at a size too small for the targets, to see that it works.
"""

import argparse
import sys
from itertools import chain

import torch

from tests.benchmarks import labels, memory


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}", flush=True)
    met = True
    sizes = (labels.QUICK, memory.QUICK) if options.quick else (labels.Size(), memory.Size())
    for figure in chain(labels.figures(sizes[0], device), (memory.figure(size, device) for size in [sizes[1]])):
        print(figure, flush=True)
        met &= figure.met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
