"""Command-line checkers that are installed with this Python."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(tool: str, *arguments: object) -> str | None:
    """Run the tool; return its output if it objects to a file, else None."""
    command = [str(Path(sys.executable).parent / tool), *map(str, arguments)]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ended.stdout if ended.returncode else None
