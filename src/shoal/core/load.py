"""Objects of the user's own, named on the command line or in TOML."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import BadInput

__all__ = ["load_object"]


def load_object(text: str, field: str = "path") -> Any:
    """The object called ``"file.py:Name"`` or ``"pkg.mod:Name"``; ``Name`` may be dotted.

    The code runs with the rights of the caller: it is for the user's own configuration and never for
    anything that came from another peer. A file is imported once as long as it stays the same, and
    may import the modules that lie beside it.

    Args:
        text: where it is.
        field: what an error calls the value.

    Raises:
        BadInput: not written like that, no such file, module or name, or the import failed.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in name.split(".")):
        raise BadInput(field, text, "write it as file.py:Name or pkg.mod:Name")
    module = _from_file(where, text, field) if where.endswith(".py") else _from_name(where, text, field)
    try:
        return attrgetter(name)(module)
    except AttributeError:
        known = [key for key in vars(module) if not key.startswith("_")]
        raise BadInput(
            field, text, f"no {name} in {where}; it has {', '.join(known) or 'no names'}"
        ) from None


def _from_file(where: str, text: str, field: str) -> ModuleType:
    path = Path(where).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(field, text, f"{where} cannot be read: {error.strerror}") from None
    digest = hashlib.blake2b(str(path).encode() + b"\0" + content, digest_size=8).hexdigest()
    # The module must be in sys.modules while it runs: dataclasses look their annotations up there.
    key = f"shoal_user_{path.stem}_{digest}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise BadInput(field, text, f"{where} is not a Python file")
    module = sys.modules[key] = importlib.util.module_from_spec(spec)
    beside = str(path.parent)
    sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is their bad input
        del sys.modules[key]
        raise BadInput(field, text, _why(where, error)) from error
    finally:
        sys.path.remove(beside)
    return module


def _from_name(where: str, text: str, field: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is their bad input
        raise BadInput(field, text, _why(where, error)) from error


def _why(where: str, error: BaseException) -> str:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    line = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if len(frames) > 1 else ""
    return f"importing {where} failed: {type(error).__name__}: {error}{line}"
