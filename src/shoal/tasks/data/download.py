"""Files from the web: into the cache, whole, with the right digest, or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

from shoal.core import BadInput

__all__ = ["cache_folder", "download"]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/shoal``, else ``~/.cache/shoal``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shoal"


def download(url: str, target: Path, sha256: str, most: int = 1 << 30, timeout: float = 30.0) -> None:
    """Fetch ``url`` to ``target``, unless it is there.

    Args:
        url: http or https.
        target: where it goes; parent folders are made.
        sha256: digest of the file, 64 hexadecimal digits.
        most: bytes accepted.
        timeout: seconds without an answer.

    Raises:
        BadInput: not reachable, too long, or of another digest. Nothing is then left at ``target``.
    """
    if target.is_file():
        return
    if not url.startswith(("http://", "https://")):
        raise BadInput("data.url", url, "an address that starts with http:// or https://")
    digest, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=timeout) as answer:
            while block := answer.read(1 << 18):
                size += len(block)
                if size > most:
                    raise BadInput("data.url", url, f"a file of at most {most} bytes")
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != sha256.lower():
            raise BadInput("data.sha256", sha256, f"{url} has the digest {digest.hexdigest()}")
        part.replace(target)
    except (OSError, ValueError) as error:
        raise BadInput("data.url", url, f"an address that answers ({error})") from None
    finally:
        part.unlink(missing_ok=True)
