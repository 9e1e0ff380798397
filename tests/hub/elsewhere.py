"""Clients in processes of their own, because the Hub's clients read their environment only once in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub.hub import Hub


def run(hub: Hub, home: Path, script: str, *arguments: str) -> Any:
    """Run a script in a process with the Hub's environment, and return its last line of output, parsed as JSON."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
