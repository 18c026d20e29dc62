"""Parts: frozen dataclasses whose fields are checked, and the registries that find them by name.

One dataclass is the configuration in Python, in TOML and on the command line. A part is written in
three ways that mean the same: ``Krum(f=2)``, ``{"name": "krum", "f": 2}`` and ``"krum(f=2)"``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import tomllib
import typing
from abc import ABC
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any, ClassVar, Generic, Self, TypeVar

import msgspec

from .errors import BadInput, ShoalError

__all__ = ["Part", "Registry", "fields_of", "literal", "split_list"]


T = TypeVar("T", bound="Part")
C = TypeVar("C", bound=type)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def literal(text: str) -> Any:
    """A value as it is written on the command line: a TOML literal, else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(value, hint, strict=True, dec_hook=_keep)
    except TypeError:
        return value  # a hint that only the type checker understands


def _keep(kind: type, value: Any) -> Any:
    """Types that msgspec does not know (parts, tensors, functions): only the class is checked."""
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and not isinstance(value, origin):
        raise TypeError(f"Expected `{origin.__name__}`, got `{type(value).__name__}`")
    return value


class Part(ABC):
    """Base of every configurable object. Subclasses are frozen dataclasses.

    A field's annotation is its check: ``lr: Annotated[float, Meta(gt=0)]`` refuses ``lr = -1`` from
    Python, TOML and the command line alike. What spans several fields goes into :meth:`check`.
    """

    slug: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            hint = _hints(type(self))[field.name]
            registry = field.metadata.get("registry")
            try:
                made = registry(value) if registry is not None else _convert(value, hint)
            except msgspec.ValidationError as error:
                raise BadInput(field.name, value, str(error).split(" - at")[0].lower()) from None
            except BadInput as error:
                raise error.under(field.name) from None
            object.__setattr__(self, field.name, made)
        self.check()

    def check(self) -> None:
        """Raise :class:`BadInput` where fields do not fit together."""

    @classmethod
    def make(cls, **fields: Any) -> Self:
        """From fields as they stand in a file: parts may be written as names or tables."""
        return cls(**fields)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked anew."""
        known = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        for name, value in changes.items():
            if name not in known:
                raise BadInput(name, value, _no_field(type(self), name, known))
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @classmethod
    def known(cls) -> list[str]:
        """The names of the fields."""
        return [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def spec(self) -> dict[str, Any]:
        """The fields as plain data: what :meth:`Registry.__call__` makes this part from again."""
        fields = {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        return {"name": self.slug, **fields} if self.slug else fields


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.spec()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}:{value.__qualname__}"
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _no_field(cls: type, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{cls.__name__} has no such field; {hint}fields: {', '.join(known) or 'none'}"


_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\))?\s*", re.S)


def split_list(text: str, mark: str = ",") -> list[str]:
    """``"a, b(c, d), [e]"`` cut at its outermost marks: ``["a", "b(c, d)", "[e]"]``; no empty parts."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [p.strip() for p in parts if p.strip()]


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """``"krum(f=2, m=3)"`` as a name and its fields."""
    match = _CALL.fullmatch(text)
    if not match:
        raise BadInput("name", text, "write it as name or name(field=value, ...)")
    name, inside = match.group(1), match.group(2)
    fields: dict[str, Any] = {}
    for item in split_list(inside or ""):
        key, eq, value = item.partition("=")
        if not eq:
            raise BadInput(name, item, "fields are written field=value")
        fields[key.strip()] = literal(value.strip())
    return name, fields


def fields_of(text: str) -> dict[str, Any]:
    """``"krum(f=2)"`` as the table ``{"name": "krum", "f": 2}``."""
    name, fields = _parse(text)
    return {"name": name, **fields}


class Registry(Generic[T]):
    """Finds the parts of one kind by name, in one package and in the plug-ins of one entry point.

    No file lists them: a part registers itself where it is defined, and the package is imported,
    module by module, when a name is first asked for.

    Args:
        kind: what a user calls it, and the name of its fields ("rule", "codec", ...).
        package: the package whose modules define the parts.
        base: the class that they extend.
    """

    def __init__(self, kind: str, package: str, base: type[T]) -> None:
        self.kind, self.package, self.base = kind, package, base
        self._found: dict[str, type[T]] = {}
        self._complete = False

    def register(self, *slugs: str) -> Callable[[C], C]:
        """Class decorator: make the part known under ``slugs``; the first is its own name."""

        def mark(cls: C) -> C:
            cls.slug = slugs[0]  # type: ignore[attr-defined]
            for slug in slugs:
                known = self._found.get(slug)
                if known is not None and known.__qualname__ != cls.__qualname__:
                    raise ShoalError(f"{self.kind} {slug} is defined twice: {known} and {cls}")
                self._found[slug] = cls
            return cls

        return mark

    def classes(self) -> dict[str, type[T]]:
        """Every part of this kind by name, sorted."""
        if not self._complete:
            self._complete = True
            package = importlib.import_module(self.package)
            for module in pkgutil.walk_packages(package.__path__, self.package + "."):
                importlib.import_module(module.name)
            for point in importlib.metadata.entry_points(group=self.package):
                point.load()
        return dict(sorted(self._found.items()))

    def find(self, slug: str) -> type[T]:
        """The class registered under ``slug``.

        Raises:
            BadInput: unknown name, with the nearest one.
        """
        if slug in self._found:
            return self._found[slug]
        known = self.classes()
        if slug not in known:
            near = difflib.get_close_matches(slug, known, 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadInput(self.kind, slug, f"unknown {self.kind}; {hint}known: {', '.join(known)}")
        return known[slug]

    def __call__(self, value: Any) -> T:
        """A part from itself, its name, ``name(field=value)`` or ``{"name": ..., field: ...}``."""
        if isinstance(value, self.base):
            return value
        if isinstance(value, str):
            name, fields = _parse(value)
        elif isinstance(value, Mapping) and "name" in value:
            fields = {k: v for k, v in value.items() if k != "name"}
            name = str(value["name"])
        else:
            raise BadInput(self.kind, value, f"a {self.kind}, its name, or a table with a name")
        cls = self.find(name)
        known = list(inspect.signature(cls).parameters)
        for key in fields:
            if key not in known:
                raise BadInput(f"{name}.{key}", fields[key], _no_field(cls, key, known))
        try:
            return cls(**fields)
        except BadInput as error:
            raise error.under(name) from None
        except TypeError as error:
            raise BadInput(name, fields, str(error)) from None

    def field(self, default: Any = dataclasses.MISSING) -> Any:
        """A dataclass field that holds a part of this kind, given in any of the three ways."""
        return dataclasses.field(default=default, metadata={"registry": self})

    def fields(self, default: tuple[Any, ...] = ()) -> Any:
        """A dataclass field that holds a tuple of parts of this kind."""
        return dataclasses.field(default=default, metadata={"registry": self.many})

    def many(self, value: Any) -> tuple[T, ...]:
        """Several parts, from a list or from one string joined by ``+``."""
        if value is None or (isinstance(value, str) and value in {"", "none"}):
            return ()
        if isinstance(value, str):
            value = split_list(value, "+")
        elif isinstance(value, Mapping | Part):
            value = [value]
        return tuple(self(v) for v in value)
