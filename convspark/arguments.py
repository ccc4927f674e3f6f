"""The arguments of the package's functions: as plain values, and refused by name where they are of another type."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from .errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: dict[object, tuple[str, str]] = {
    bool: ("True or False", "of True and False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    NoneType: ("None", "None"),
}
"""One and several of a type."""


class _OtherTypeError(Exception):
    """A value is not of the type that is expected."""


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: arguments reach the function as plain values of the types that its signature names.

    Paths become texts, NumPy's values and arrays Python's, lists tuples and tuples lists, a single text a list of it,
    and a `size` of two numbers the text that means it. Types that are written as texts are not looked at.

    Raises (of the function):
        UsageError: an argument of another type.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = inspect.signature(call).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}() {error}") from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = _checked(name, _as_text(value), bound.signature.parameters[name])
        return function(*bound.args, **bound.kwargs)

    return call


def _checked(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    if value is parameter.default or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return value
    hint = parameter.annotation
    try:
        if name == "size" and str in get_args(hint) and isinstance(sides := _python(value), list | tuple):
            return "x".join(str(side) for side in _as(tuple[int, int], sides))
        return _as(hint, value)
    except _OtherTypeError:
        raise UsageError(f"{name} is {value!r}: expected {_words(hint)}") from None


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(part, os.PathLike) for part in cast("Iterable[Any]", value)):
        return [_as_text(part) for part in cast("Iterable[Any]", value)]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as(hint: Any, value: Any) -> Any:
    """The value as one of a type.

    Raises:
        _OtherTypeError: it is none.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(_OtherTypeError):
                return _as(part, value)
        raise _OtherTypeError
    if hint in _WORDS or origin in (Literal, list, tuple, Sequence, dict, Mapping):
        value = _python(value)
    if origin is Literal:
        hint, fits = str, value in parts if isinstance(value, str) else False
    elif hint in (int, float):
        fits = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    elif origin in (list, tuple, Sequence):
        return _as_several(cast("type", origin), parts, value)
    else:
        hint = Any if hint is inspect.Parameter.empty or isinstance(hint, str) else hint
        fits = hint is Any or not isinstance(origin or hint, type) or isinstance(value, origin or hint)
    if not fits:
        raise _OtherTypeError
    if hint not in (int, float, str) or type(value) in (int, float, str):  # whole numbers do as numbers
        return value
    other = cast("Any", value)  # a subclass, which is no value of YAML's
    return str.__str__(other) if hint is str else hint(other)


def _python(value: Any) -> Any:
    """NumPy's numbers, yes and no, and arrays, and PyTorch's tensors, as Python's, within dictionaries too."""
    if isinstance(value, Mapping):
        return {key: _python(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if type(value) in (list, tuple):
        return type(value)(map(_python, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _as_several(origin: type, parts: tuple[Any, ...], value: Any) -> Any:
    if (origin, parts, type(value)) == (list, (str,), str):
        value = [value]
    if not isinstance(value, Sequence if origin is Sequence else list | tuple) or isinstance(value, str | bytes):
        raise _OtherTypeError
    values = cast("Sequence[Any]", value)
    several = origin is not tuple or parts[-1] is ...
    if not several and len(values) != len(parts):
        raise _OtherTypeError
    hints = [parts[0]] * len(values) if several else parts
    checked = [_as(hint, one) for hint, one in zip(hints, values, strict=True)]
    return tuple(checked) if origin is tuple or (origin is Sequence and isinstance(value, tuple)) else checked


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        *words, last = map(_words, parts)
        return f"{', '.join(words)} or {last}"
    if origin is Literal:
        *words, last = map(repr, parts)
        return f"{', '.join(words)} or {last}" if words else last
    if origin is tuple and ... not in parts:
        return f"{len(parts)} {_WORDS.get(parts[0], ('', 'values'))[1]}"
    if origin in (list, tuple, Sequence):
        return f"a list of {_WORDS.get(parts[0], ('', 'values'))[1]}"
    if origin is not None and issubclass(origin, Mapping):
        return "a dictionary"
    if callable(origin or hint) and not isinstance(hint, type):
        return "a function"
    return _WORDS.get(hint, (f"a {getattr(hint, '__name__', hint)}", ""))[0]
