"""`Part`: the frozen dataclass every configuration is made of.

A part is a value: it prints, compares, hashes, travels as JSON and comes back equal. There is no registry: the classes
that exist are the classes that can be read back, under their own name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, Union

from nachim.spec.disk import write_text
from nachim.spec.error import UserError, nearest

TAG = "part"
LATER = "later"


def later(default: Any) -> Any:
    """A field that came after runs were sealed: at its default it is not written, so that their fingerprints stay."""
    return dataclasses.field(default=default, metadata={LATER: True})


@dataclass(frozen=True)
class Part:
    """Base of every part. Subclasses are `@dataclass(frozen=True, kw_only=True)` and may override `check`.

    Raises UserError, naming the field, the part and the nearest right name, for an unknown field or a wrong value.
    """

    RETIRED: typing.ClassVar[Mapping[str, object]] = {}
    """Fields that went, with the one value they had in runs that were trained: still written, so fingerprints stay."""

    def __new__(cls, /, *args: object, **fields: object) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if _takes_float(hint) and type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)
            if not _fits(value, hint):
                wanted = hint.__name__ if isinstance(hint, type) else re.sub(r"[\w.]+\.(\w+)", r"\1", str(hint))
                wanted = "a finite number" if hint is float else wanted
                self.refuse(name, f"is {value!r}, which is not {wanted}")
        self.check()

    def check(self) -> None:
        """Refuse, with `refuse`, values that fit their types but make no sense."""

    def refuse(self, field: str, why: str) -> typing.NoReturn:
        """Raise UserError about `field` of this part."""
        raise UserError(f"{type(self).__name__}.{field} {why}")

    def require_positive(self, *fields: str) -> None:
        """Refuse any of `fields` that is not above zero."""
        for name in fields:
            if not getattr(self, name) > 0:
                self.refuse(name, f"is {getattr(self, name)!r}; it must be above 0")

    def to_json(self) -> dict[str, Any]:
        """This part as plain JSON values, each part tagged with its class name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if self._told(field)}
        return {TAG: type(self).__name__, **{name: _plain(value) for name, value in fields.items()}, **self.RETIRED}

    def _told(self, field: dataclasses.Field[Any]) -> bool:
        return LATER not in field.metadata or getattr(self, field.name) != field.default

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The part that `to_json` gave `value`. Raises UserError when it is not a `cls`."""
        part = _part(value, "the top level")
        if not isinstance(part, cls):
            raise UserError(f"expected a {cls.__name__}, found a {type(part).__name__}")
        return part

    def save(self, path: Path | str) -> None:
        """Write this part as indented JSON, atomically."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote. Raises UserError naming the file when it is missing, broken or of another kind."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"no such file: {path}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: the same on every machine and Python."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """One field in which two parts differ; `str()` reads ``model.n_layers: 3 -> 4``."""

    path: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.path}: {_brief(self.old)} -> {_brief(self.new)}"


def diff(old: Part, new: Part) -> list[Difference]:
    """Every field in which `new` differs from `old`, in field order; empty when they are equal."""
    return list(_differences("", old, new))


def _differences(path: str, old: object, new: object) -> Iterator[Difference]:
    if isinstance(old, Part) and type(old) is type(new):
        for field in dataclasses.fields(old):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _differences(inner, getattr(old, field.name), getattr(new, field.name))
    elif old != new:
        yield Difference(path or "part", old, new)


def _brief(value: object) -> str:
    if not isinstance(value, Part):
        return str(value)
    fields = ", ".join(f"{field.name}={getattr(value, field.name)}" for field in dataclasses.fields(value))
    return f"{type(value).__name__}({fields})"


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _classes(root: type[Part] = Part) -> dict[str, type[Part]]:
    found: dict[str, type[Part]] = {}
    for child in root.__subclasses__():
        if not inspect.isabstract(child):
            found[child.__name__] = child
        found.update(_classes(child))
    return found


def _part(value: object, where: str) -> Part:
    if not isinstance(value, dict) or TAG not in value:
        raise UserError(f"{where} is not a part: it needs a {TAG!r} key naming its class")
    known = _classes()
    if not isinstance(value[TAG], str) or value[TAG] not in known:
        own = "if it is your own, import the file that defines it first"
        raise UserError(f"{where} is of an unknown part {value[TAG]!r} ({own}){nearest(str(value[TAG]), known)}")
    cls = known[value[TAG]]
    fields = {name: _value(item, f"{cls.__name__}.{name}") for name, item in value.items() if name != TAG}
    for name in [name for name, had in cls.RETIRED.items() if name in fields and fields[name] == had]:
        del fields[name]
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in fields]
    if missing:
        raise UserError(f"{cls.__name__} lacks the field {missing[0]!r}")
    return cls(**fields)


def _value(value: object, where: str) -> object:
    if isinstance(value, dict):
        return _part(value, where)
    if isinstance(value, list):
        return tuple(_value(item, where) for item in value)
    return value


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(cls: type[Part]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _takes_float(hint: object) -> bool:
    return hint is float or float in typing.get_args(hint)


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return type(value) is hint and (hint is int or math.isfinite(value))
    return isinstance(value, hint)
