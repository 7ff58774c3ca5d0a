"""Which state of this project's code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The Git commit that is checked out; None where the code is no part of a checkout, or there is no ``git``."""
    folder = Path(__file__).parent
    # The second name makes it fail where the code lies in, but does not belong to, somebody else's checkout.
    command = ["git", "-C", str(folder), "rev-parse", "HEAD", f"HEAD:./{Path(__file__).name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split()[0]
