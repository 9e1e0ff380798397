"""Clients in processes of their own, which read their environment once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub.hub import Hub


def run(hub: Hub, home: Path, script: str, *arguments: str) -> Any:
    """What the script prints last, as JSON."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
