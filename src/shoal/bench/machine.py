"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import shoal

__all__ = ["machine"]


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, system, versions and commit, as plain data.

    Args:
        packages: whose versions matter, besides Python's and torch's.
    """
    versions = {p: importlib.metadata.version(p) for p in packages}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """Of the checkout, "+" behind it where files differ; "" outside one."""
    home = Path(shoal.__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=home, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short=12", "HEAD")
    return found and found + "+" * bool(git("status", "--porcelain", "."))
