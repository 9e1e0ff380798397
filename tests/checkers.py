"""Command-line checkers that are installed beside this Python."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(tool: str, *arguments: object) -> str | None:
    """What the tool prints when it objects to a file; None when it does not."""
    command = [str(Path(sys.executable).parent / tool), *map(str, arguments)]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ended.stdout if ended.returncode else None
