"""Records come back as they were, and nothing else comes back at all."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import FileError
from rsgrpo.io.record_codec import Arrays, RecordError, from_plain, read_record, to_plain, write_record
from rsgrpo.types import CreditedGroup, FloatArray, IntArray
from tests.examples import examples
from tests.unit.report_run import make_group, make_sample


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inner:
    ids: IntArray
    weights: FloatArray | None = None


@dataclass(kw_only=True, slots=True)
class Outer:
    text: str
    count: int
    share: float
    flag: bool
    colour: Colour
    mode: Literal["a", "b"]
    maybe: float | None
    either: int | str
    pair: tuple[int, str]
    many: tuple[tuple[float, ...], ...]
    listed: list[Inner]
    ordered: Sequence[bool]
    named: Mapping[str, Inner | None]
    deep: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)


Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True, slots=True)
class Box(Generic[Content]):
    many: tuple[Content, ...]
    one: Content | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    numbers: Box[int]
    named: list[Box[Named]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    name: str


def test_a_generic_record_is_read_as_what_the_annotation_says_it_holds() -> None:
    shelf = Shelf(numbers=Box(many=(1, 2), one=3), named=[Box(many=(Named(name="a"),))])
    plain = to_plain(shelf)
    assert plain == {
        "numbers": {"many": [1, 2], "one": 3},
        "named": [{"many": [{"name": "a"}], "one": None}],
    }
    assert from_plain(Shelf, plain) == shelf
    with pytest.raises(RecordError, match=r"numbers\.many\[1\]: got 'x', expected a whole number"):
        from_plain(Shelf, {**plain, "numbers": {"many": [1, "x"]}})
    with pytest.raises(TypeError, match="stands for nothing here"):
        to_plain(Box(many=(1,)))


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)
ARRAYS = st.integers(0, 4).map(lambda size: np.arange(size, dtype=np.int32))
INNERS = st.builds(
    Inner,
    ids=ARRAYS,
    weights=st.none() | st.lists(st.floats(width=32), max_size=3).map(lambda v: np.array(v, np.float32)),
)
OUTERS = st.builds(
    Outer,
    text=st.text(st.characters()),  # lone surrogates included
    count=st.integers(),
    share=ANY_FLOAT,
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    mode=st.sampled_from(["a", "b"]),
    maybe=st.none() | ANY_FLOAT,
    either=st.integers() | st.text(),
    pair=st.tuples(st.integers(), st.text()),
    many=st.lists(st.lists(ANY_FLOAT, max_size=3).map(tuple), max_size=3).map(tuple),
    listed=st.lists(INNERS, max_size=3),
    ordered=st.lists(st.booleans(), max_size=3).map(tuple),
    named=st.dictionaries(st.text(), st.none() | INNERS, max_size=3),
    deep=st.dictionaries(
        st.text(), st.dictionaries(st.text(), st.lists(st.integers(), max_size=3).map(tuple), max_size=2), max_size=2
    ),
)


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, NaN equal to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if isinstance(left, Inner | Outer):
        return all(same(getattr(left, attribute.name), getattr(right, attribute.name)) for attribute in fields(left))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


@examples(150)
@given(record=OUTERS)
def test_a_record_comes_back_through_files_as_it_was(record: Outer, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_record(folder, "one", record, version=2)
    assert same(read_record(folder, "one", Outer, version=2), record)


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | ANY_FLOAT
    | st.text(max_size=3)
    | st.sampled_from(["0", "1", "RED", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ids", "weights", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@examples(200)
@given(record=OUTERS, name=st.sampled_from([attribute.name for attribute in fields(Outer)]), value=PLAIN)
def test_a_foreign_value_anywhere_fits_or_is_refused_by_the_name_of_its_place(
    record: Outer, name: str, value: Any
) -> None:
    arrays: Arrays = {}
    plain = json.loads(json.dumps(to_plain(record, arrays))) | {name: value}
    try:
        read = from_plain(Outer, plain, arrays)
    except RecordError as error:
        assert str(error).startswith(name) and len(str(error)) < 500
    else:
        assert isinstance(read, Outer)


def _plain(**changed: Any) -> dict[str, Any]:
    return {"text": "t", "count": 1, "share": 0.5} | changed


@dataclass(frozen=True, kw_only=True, slots=True)
class Small:
    text: str
    count: int
    share: float = 0.0


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (_plain(count=True), "count: got True, expected a whole number"),
        (_plain(count=1.0), "count: got 1.0, expected a whole number"),
        (_plain(share="0.5"), "share: got '0.5', expected a number"),
        (_plain(share=math.nan), "share: got nan, expected a finite number"),
        (_plain(share="nan"), "share: got 'nan', expected a number"),  # only beside arrays, in a checkpoint
        (_plain(share=10**400), "share: got 1000"),
        (_plain(text=None), "text: got None, expected a text"),
        (_plain(other=1), "Small has no field 'other'"),
        ({"text": "t"}, "the field 'count' of Small is missing"),
        ([], "got [], expected an object (Small)"),
    ],
)
def test_what_does_not_fit_is_named(plain: object, message: str) -> None:
    with pytest.raises(RecordError) as refused:
        from_plain(Small, plain)
    assert message in str(refused.value)


def test_fields_with_a_default_may_be_missing() -> None:
    assert from_plain(Small, {"text": "t", "count": 1}) == Small(text="t", count=1)


def test_another_record_or_version_is_refused_by_name(tmp_path: Path) -> None:
    write_record(tmp_path, "one", Small(text="t", count=1), version=2)
    with pytest.raises(RecordError, match="is of version 2; this release reads version 3: start a new run"):
        read_record(tmp_path, "one", Small, version=3)
    with pytest.raises(RecordError, match="holds 'Small' where 'Inner' is expected"):
        read_record(tmp_path, "one", Inner, version=2)


def test_an_array_of_another_precision_is_no_array_of_this_field() -> None:
    with pytest.raises(RecordError, match=r"Inner\.ids: got dtype\('int64'\), expected an array of int32"):
        to_plain(Inner(ids=np.arange(3)), {})
    with pytest.raises(RecordError, match=r"ids: got dtype\('float32'\), expected the name of an array of int32"):
        from_plain(Inner, {"ids": "0"}, {"0": np.zeros(2, np.float32)})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    groups: tuple[CreditedGroup, ...]


@examples(60)
@given(place=st.floats(0, 1), cut=st.booleans(), which=st.sampled_from(["json", "safetensors"]))
def test_damaged_files_give_the_record_or_one_sentence(
    place: float, cut: bool, which: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    kept = Kept(groups=(make_group(make_sample(), 0.5, 1, size=2),))
    write_record(folder, "two", kept, version=2)
    path = folder / f"two.{which}"
    content = bytearray(path.read_bytes())
    position = min(int(place * len(content)), len(content) - 1)
    if cut:
        del content[position:]
    else:
        content[position] ^= 0x55
    path.write_bytes(content)
    try:
        read_record(folder, "two", Kept, version=2)
    except (RecordError, FileError) as error:
        assert isinstance(error, RsgrpoError) and len(str(error)) < 500
