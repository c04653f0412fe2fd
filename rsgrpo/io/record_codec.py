"""Records as JSON and arrays, and back by their annotations, so that reading one can never run code.

A record is a dataclass of texts, numbers, flags, enums, arrays, tuples, lists, mappings from text, options and other
records. Its JSON form is an object of its fields; arrays stand beside it and are named in their places. Reading is
strict: whatever does not fit the annotations is refused by the name of its place.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, read_bytes, read_json_object, shown_error, shown_value

Arrays = dict[str, NDArray[Any]]
Record = TypeVar("Record")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no numbers for them


class RecordError(RsgrpoError, ValueError):
    """What was read is no such record; the message names the place that does not fit."""


class _MisfitError(Exception):
    """A value does not fit its annotation; the way to it is noted while the exception travels up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps: list[str] = []

    @property
    def place(self) -> str:
        return "".join(reversed(self.steps)).lstrip(".")


class _Codec(NamedTuple):
    """Both ways of one annotation. ``arrays`` is None in plain JSON, which has neither arrays nor infinity."""

    encode: Callable[[Any, Arrays | None], Any]
    decode: Callable[[Any, Arrays | None], Any]


def to_plain(record: object, arrays: Arrays | None = None) -> dict[str, Any]:
    """A record as JSON values.

    Args:
        record: a dataclass whose values fit its annotations.
        arrays: takes the arrays by the names that stand in their places; None: the record has none, and only finite
            numbers.

    Raises:
        RecordError: a value does not fit its annotation.

    Example:
        ``TokenSpan(start=3, stop=5)`` gives ``{"start": 3, "stop": 5}``.
    """
    try:
        plain: dict[str, Any] = _codec_of(type(record)).encode(record, arrays)
    except _MisfitError as error:
        raise RecordError(f"{type(record).__name__}.{error.place}: {error.problem}") from error
    return plain


def from_plain(kind: type[Record], plain: object, arrays: Arrays | None = None) -> Record:
    """The record of JSON values; fields with a default may be missing, unknown ones may not stand.

    Args:
        kind: the class of the record, a dataclass.
        plain: the values as :func:`to_plain` gave them, perhaps through a file.
        arrays: the arrays as :func:`to_plain` filled them in; None: the record has none, and only finite numbers.

    Raises:
        RecordError: a value does not fit; the message says where, what it is and what it should be.
    """
    try:
        record: Record = _codec_of(kind).decode(plain, arrays)
    except _MisfitError as error:
        place = error.place
        where = "" if not place else f"{place if len(place) <= 100 else '…' + place[-99:]}: "
        raise RecordError(f"{where}{error.problem}") from error
    return record


def write_record(folder: Path, name: str, record: object, *, version: int) -> None:
    """Write a record as ``NAME.json`` and ``NAME.safetensors``.

    Args:
        folder: the folder, which exists; it should be one that appears as a whole
            (:func:`rsgrpo.trainer.checkpoint.write_folder`).
        name: the name of the two files, without suffix.
        record: the record to write.
        version: the version of the record's form.
    """
    arrays: Arrays = {}
    content = to_plain(record, arrays)
    document = {"record": type(record).__name__, "version": version, "content": content}
    (folder / f"{name}.json").write_text(json.dumps(document, allow_nan=False))
    (folder / f"{name}.safetensors").write_bytes(save_arrays(arrays))


def read_record(folder: Path, name: str, kind: type[Record], *, version: int) -> Record:
    """What :func:`write_record` wrote; nothing in the files can run code.

    Args:
        folder: the folder that :func:`write_record` wrote to.
        name: the name that :func:`write_record` was given.
        kind: the record's class.
        version: the version of the form that this release reads.

    Raises:
        RecordError: the files hold another record, another version, or a value that does not fit.
        FileError: a file is missing, damaged or unreadable.
    """
    path = folder / f"{name}.json"
    document = read_json_object(path)
    if document.get("record") != kind.__name__:
        got = shown_value(document.get("record"))
        raise RecordError(f"{shown(path)} holds {got} where {kind.__name__!r} is expected")
    if document.get("version") != version:
        raise RecordError(version_problem(shown(path), document.get("version"), version))
    beside = folder / f"{name}.safetensors"
    try:
        arrays = load_arrays(read_bytes(beside))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{shown(beside)} is damaged ({shown_error(error)})") from error
    try:
        return from_plain(kind, document.get("content"), arrays)
    except RecordError as error:
        raise RecordError(f"{shown(path)}: {error}") from error


def version_problem(what: str, got: object, expected: int) -> str:
    """The sentence for something that another release wrote."""
    return (
        f"{what} is of version {shown_value(got)}; this release reads version {expected}: start a new run "
        "from the exported model (model.path), or go on with the release that wrote it"
    )


def _codec_of(kind: Any) -> _Codec:
    return _codec(kind)


@functools.cache
def _codec(kind: Any) -> _Codec:
    """The codec of an annotation; made once.

    Raises:
        TypeError: an annotation that no record may have.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if dataclasses.is_dataclass(kind):
        return _of_record(kind, {})
    if dataclasses.is_dataclass(origin):  # a generic record with what its type variables stand for
        parameters = getattr(origin, "__parameters__", ())
        return _of_record(origin, dict(zip(parameters, arguments, strict=True)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _of_enum(kind)
    if origin is np.ndarray:
        return _of_array(np.dtype(get_args(arguments[1])[0]))
    if origin in (Union, types.UnionType):
        return _of_union(arguments)
    if origin is Literal:
        return _of_literal(arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return _of_tuple(arguments)
    if origin in (tuple, list, Sequence):
        return _of_list(list if origin is list else tuple, arguments[0])
    if origin in (dict, Mapping) and arguments[0] is str:
        return _of_mapping(arguments[1])
    raise TypeError(f"a record cannot hold {kind}")


def _misfit(value: object, expected: str) -> _MisfitError:
    return _MisfitError(f"got {shown_value(value)}, expected {expected}")


def _flag(value: Any, arrays: Arrays | None) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _misfit(value, "true or false")
    return bool(value)


def _whole_number(value: Any, arrays: Arrays | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _misfit(value, "a whole number")
    return operator.index(value)


def _text(value: Any, arrays: Arrays | None) -> str:
    if not isinstance(value, str):
        raise _misfit(value, "a text")
    return str(value)


def _nothing(value: Any, arrays: Arrays | None) -> None:
    if value is not None:
        raise _misfit(value, "null")


def _encode_number(value: Any, arrays: Arrays | None) -> float | str:
    number = _number(value)
    if math.isfinite(number):
        return number
    if arrays is None:
        raise _misfit(value, "a finite number")
    return str(number)


def _decode_number(value: Any, arrays: Arrays | None) -> float:
    if arrays is not None and type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    number = _number(value)
    if not math.isfinite(number):
        raise _misfit(value, "a finite number")
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _misfit(value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise _misfit(value, "a finite number") from None


_SIMPLE: dict[Any, _Codec] = {
    bool: _Codec(_flag, _flag),
    int: _Codec(_whole_number, _whole_number),
    float: _Codec(_encode_number, _decode_number),
    str: _Codec(_text, _text),
    type(None): _Codec(_nothing, _nothing),
}


def _of_enum(kind: type[enum.Enum]) -> _Codec:
    def encode(value: Any, arrays: Arrays | None) -> str:
        if not isinstance(value, kind):
            raise _misfit(value, f"a {kind.__name__}")
        return value.name

    def decode(value: Any, arrays: Arrays | None) -> enum.Enum:
        if not isinstance(value, str) or value not in kind.__members__:
            raise _misfit(value, f"one of {', '.join(kind.__members__)}")
        return kind[value]

    return _Codec(encode, decode)


def _of_literal(options: tuple[Any, ...]) -> _Codec:
    def check(value: Any, arrays: Arrays | None) -> Any:
        if not any(type(value) is type(option) and value == option for option in options):
            raise _misfit(value, f"one of {', '.join(map(repr, options))}")
        return value

    return _Codec(check, check)


def _of_array(dtype: np.dtype[Any]) -> _Codec:
    def encode(value: Any, arrays: Arrays | None) -> str:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or arrays is None:
            raise _misfit(getattr(value, "dtype", value), f"an array of {dtype}")
        name = str(len(arrays))
        arrays[name] = np.asarray(value, order="C")
        return name

    def decode(value: Any, arrays: Arrays | None) -> NDArray[Any]:
        found = arrays.get(value) if arrays is not None and isinstance(value, str) else None
        if found is None or found.dtype != dtype:
            raise _misfit(value if found is None else found.dtype, f"the name of an array of {dtype}")
        return found

    return _Codec(encode, decode)


def _of_union(options: tuple[Any, ...]) -> _Codec:
    if sum(dataclasses.is_dataclass(option) for option in options) > 1:
        raise TypeError(f"a record cannot hold a choice between records: {options}")
    codecs = [_codec(option) for option in sorted(options, key=lambda option: option is not type(None))]

    def first(value: Any, arrays: Arrays | None, way: int) -> Any:
        problem: _MisfitError | None = None
        for codec in codecs:
            try:
                return codec[way](value, arrays)
            except _MisfitError as error:
                # What went wrong deepest tells most: null did not fit because something was there.
                if problem is None or len(error.steps) >= len(problem.steps):
                    problem = error
        assert problem is not None
        raise problem

    return _Codec(lambda value, arrays: first(value, arrays, 0), lambda value, arrays: first(value, arrays, 1))


def _are_whole_numbers(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int}


def _are_finite_numbers(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {float} and all(map(math.isfinite, values))


_FITS_AT_ONCE = {_SIMPLE[int]: _are_whole_numbers, _SIMPLE[float]: _are_finite_numbers}  # ids by the thousand


def _of_list(make: Callable[[Any], Any], content: Any) -> _Codec:
    inner = _codec(content)
    fits_at_once = _FITS_AT_ONCE.get(inner)

    def convert(value: Any, arrays: Arrays | None, way: int) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise _misfit(value, "a list")
        if fits_at_once is not None and fits_at_once(value):
            return list(value)
        return _each([inner] * len(value), value, arrays, way)

    return _Codec(
        lambda value, arrays: convert(value, arrays, 0), lambda value, arrays: make(convert(value, arrays, 1))
    )


def _of_tuple(contents: tuple[Any, ...]) -> _Codec:
    inner = [_codec(content) for content in contents]

    def convert(value: Any, arrays: Arrays | None, way: int) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise _misfit(value, f"a list of {len(inner)}")
        return _each(inner, value, arrays, way)

    return _Codec(
        lambda value, arrays: convert(value, arrays, 0), lambda value, arrays: tuple(convert(value, arrays, 1))
    )


def _each(codecs: Sequence[_Codec], values: Sequence[Any], arrays: Arrays | None, way: int) -> list[Any]:
    found = []
    for index, (codec, value) in enumerate(zip(codecs, values, strict=True)):
        try:
            found.append(codec[way](value, arrays))
        except _MisfitError as error:
            error.steps.append(f"[{index}]")
            raise
    return found


def _of_mapping(content: Any) -> _Codec:
    inner = _codec(content)

    def convert(value: Any, arrays: Arrays | None, way: int) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _misfit(value, "an object")
        found = {}
        for name, item in value.items():
            try:
                found[_text(name, arrays)] = inner[way](item, arrays)
            except _MisfitError as error:
                error.steps.append(f".{name}")
                raise
        return found

    return _Codec(lambda value, arrays: convert(value, arrays, 0), lambda value, arrays: convert(value, arrays, 1))


def _filled_in(kind: Any, types_of: Mapping[Any, Any]) -> Any:
    """An annotation with the type variables of a generic record replaced by what they stand for."""
    parameters = getattr(kind, "__parameters__", ())
    if unknown := [parameter for parameter in parameters if parameter not in types_of]:
        raise TypeError(f"a generic record is read and written as what it holds; {unknown[0]} stands for nothing here")
    return kind[tuple(types_of[parameter] for parameter in parameters)] if parameters else kind


def _of_record(kind: Any, types_of: Mapping[Any, Any]) -> _Codec:
    hints = {name: _filled_in(hint, types_of) for name, hint in get_type_hints(kind).items()}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    inner = {name: _codec(hints[name]) for name in fields}

    def convert(values: Mapping[str, Any], arrays: Arrays | None, way: int) -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            try:
                found[name] = inner[name][way](value, arrays)
            except _MisfitError as error:
                error.steps.append(f".{name}")
                raise
        return found

    def encode(value: Any, arrays: Arrays | None) -> dict[str, Any]:
        if type(value) is not kind:
            raise _misfit(value, f"a {kind.__name__}")
        return convert({name: getattr(value, name) for name in fields}, arrays, 0)

    def decode(value: Any, arrays: Arrays | None) -> Any:
        if not isinstance(value, dict):
            raise _misfit(value, f"an object ({kind.__name__})")
        if unknown := sorted(set(value) - set(fields)):
            raise _MisfitError(f"{kind.__name__} has no field {shown_value(unknown[0])}")
        if missing := sorted(needed - set(value)):
            raise _MisfitError(f"the field {missing[0]!r} of {kind.__name__} is missing")
        found = convert(value, arrays, 1)
        try:
            return kind(**found)
        except (ValueError, TypeError, RsgrpoError) as error:
            raise _MisfitError(shown_error(error)) from error

    return _Codec(encode, decode)
