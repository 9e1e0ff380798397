"""Write the image's requirements with the hashes of their files. Run `make lock` after a change of dependencies.

requirements.txt has everything except torch. requirements-cu130.txt has PyPI's torch for Linux, which is built for CUDA
13.0, and the CUDA libraries. The CPU build of torch is on PyTorch's own index, and has no hash here.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CUDA = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")
HEADER = "# Written by docker/lock.py; `make lock` updates it.\n"


def resolved() -> str:
    """Return the dependencies for a Linux machine as requirements, with the hashes of all files.

    The packages are from PyPI, in the versions of constraints.txt.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--constraint", "constraints.txt"]
    target = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    index = ["--index-url", "https://pypi.org/simple"]
    return subprocess.check_output(
        [*command, *target, *index, "--generate-hashes", "--no-annotate", "--no-header", "--quiet"],
        cwd=ROOT,
        text=True,
    )


def main() -> None:
    requirements = re.split(r"^(?=\S)", resolved(), flags=re.MULTILINE)[1:]
    for name, cuda in (("requirements.txt", False), ("requirements-cu130.txt", True)):
        chosen = [one for one in requirements if bool(CUDA.match(one)) == cuda]
        (ROOT / "docker" / name).write_text(HEADER + "".join(chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
