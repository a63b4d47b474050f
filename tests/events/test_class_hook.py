"""Every class that is decoded can be, and a class that could not be decoded correctly is refused with the reason."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs
import pytest

from trio_agentmail._codec import decoded_classes
from trio_agentmail._structuring import hook_of


@attrs.frozen(kw_only=True)
class Part:
    name: str | None = None


@pytest.mark.parametrize("cls", decoded_classes(), ids=lambda cls: cls.__name__)
def test_the_function_of_every_class_can_be_generated(cls: Any) -> None:
    assert callable(hook_of(cls))


def test_an_item_that_lacks_a_required_field_is_left_out() -> None:
    @attrs.frozen(kw_only=True)
    class Named:
        name: str

    @attrs.frozen(kw_only=True)
    class Whole:
        parts: tuple[Named, ...] = ()

    structure = hook_of(Whole)
    assert structure({"parts": [{}, {"name": "a"}, {"name": ""}, {"other": 1}]}) == Whole(parts=(Named(name="a"),))


# Defaults


def _upper(value: str) -> str:
    return value.upper()


def _as_tuple(value: Any) -> Any:
    return tuple(value)


@attrs.frozen(kw_only=True)
class WithDefaults:
    text: str = "text"
    no_text: str = ""
    number: int | None = 7
    ratio: float | None = 0.5
    zero: float | None = 0.0
    flag: bool | None = True
    texts: tuple[str, ...] = ("a", "b")
    parts: tuple[Part, ...] = (Part(name="p"),)
    part: Part | None = attrs.field(factory=Part)
    mapping: Mapping[str, str] = attrs.field(factory=lambda: {"a": "b"})
    anything: Any = attrs.field(factory=list)
    upper: str = attrs.field(default="a", converter=_upper)
    converted: Any = attrs.field(factory=lambda: [1, 2], converter=_as_tuple)


@pytest.mark.parametrize("value", [{}, dict.fromkeys(attrs.fields_dict(WithDefaults))], ids=["missing", "null"])
def test_a_field_that_is_missing_or_null_has_its_default(value: dict[str, Any]) -> None:
    assert hook_of(WithDefaults)(value) == WithDefaults()


def test_a_factory_makes_a_default_for_each_instance() -> None:
    first, second = hook_of(WithDefaults)({}), hook_of(WithDefaults)({})
    assert first.anything == []
    assert first.anything is not second.anything
    assert first.mapping is not second.mapping


def test_a_value_of_the_wrong_type_is_none_or_empty_and_does_not_become_the_default() -> None:
    wrong = {"text": 1, "number": "x", "ratio": "x", "flag": 0, "texts": {}, "parts": 1, "part": 1, "mapping": 1}
    found = hook_of(WithDefaults)(wrong)
    assert (found.text, found.number, found.ratio, found.flag) == ("", None, None, None)
    assert (found.texts, found.parts, found.part, found.mapping) == ((), (), None, {})


@pytest.mark.parametrize(
    ("value", "read"), [(0.25, 0.25), (2, 2.0), (10**308, 1e308), (True, None), ("0.25", None), ([], None)], ids=repr
)
def test_a_float_is_read_as_one(value: Any, read: float | None) -> None:
    found = hook_of(WithDefaults)({"ratio": value}).ratio
    assert found == read
    assert found is None or type(found) is float


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["10**400", "-10**400"])
def test_an_integer_beyond_the_range_of_a_float_is_none(value: int) -> None:
    assert hook_of(WithDefaults)({"ratio": value}).ratio is None


@attrs.define(kw_only=True)
class NotFrozen:
    upper: str = attrs.field(default="a", converter=_upper)
    text: str = attrs.field(default="", on_setattr=attrs.setters.frozen)


def test_what_attrs_does_when_an_attribute_is_set_does_not_apply_to_a_new_instance() -> None:
    assert NotFrozen.__setattr__ is not object.__setattr__
    assert hook_of(NotFrozen)({"upper": "b", "text": "c"}) == NotFrozen(upper="b", text="c")


# Refusals


@attrs.frozen(kw_only=True)
class WithValidator:
    text: str = attrs.field(default="", validator=attrs.validators.max_len(3))


@attrs.frozen(kw_only=True)
class WithPostInit:
    text: str = ""

    def __attrs_post_init__(self) -> None: ...


@attrs.frozen(kw_only=True)
class WithPreInit:
    text: str = ""

    def __attrs_pre_init__(self) -> None: ...


@attrs.frozen(kw_only=True, init=False)
class WithOwnInit:
    text: str = ""

    def __init__(self) -> None:
        self.__attrs_init__(text="own")


@attrs.frozen(kw_only=True)
class WithNew:
    text: str = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "WithNew":
        return super().__new__(cls)


@attrs.define(kw_only=True)
class WithSetattr:
    text: str = ""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.upper())


@attrs.define(kw_only=True)
class WithInheritedSetattr(WithSetattr):
    other: str = ""


class WithSetattrOfAPlainSubclass(NotFrozen):
    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None: ...


@attrs.frozen(kw_only=True, cache_hash=True)
class WithCachedHash:
    text: str = ""


@attrs.frozen(kw_only=True, slots=False)
class WithoutSlots:
    text: str = ""


@attrs.frozen(kw_only=True)
class WithoutInitOfAField:
    text: str = attrs.field(default="", init=False)


@attrs.frozen(kw_only=True)
class WithConverterOfSelf:
    text: str = attrs.field(default="", converter=attrs.Converter(lambda value, self: value, takes_self=True))  # type: ignore[misc]


@attrs.frozen(kw_only=True)
class WithDefaultOfSelf:
    text: str = ""
    other: str = attrs.field(default=attrs.Factory(lambda self: self.text, takes_self=True))


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (WithValidator, "the validator of text would not be called"),
        (WithPostInit, "its __attrs_post_init__ would not be called"),
        (WithPreInit, "its __attrs_pre_init__ would not be called"),
        (WithOwnInit, "its own __init__ or __new__ would not be called"),
        (WithNew, "its own __init__ or __new__ would not be called"),
        (WithSetattr, "its own __setattr__ would not be called"),
        (WithInheritedSetattr, "its own __setattr__ would not be called"),
        (WithSetattrOfAPlainSubclass, "its own __setattr__ would not be called"),
        (WithCachedHash, "the cache of its hash would not be set up"),
        (WithoutSlots, "it is not slotted"),
        (WithoutInitOfAField, "text has init=False"),
        (WithConverterOfSelf, "the converter of text takes more than the value"),
        (WithDefaultOfSelf, "the default of other is computed from other fields"),
    ],
)
def test_a_class_that_needs_its_init_is_refused(cls: type, reason: str) -> None:
    with pytest.raises(TypeError) as refused:
        hook_of(cls)
    assert str(refused.value) == f"{cls.__qualname__} cannot be decoded: {reason}"


@attrs.frozen(kw_only=True)
class Tree:
    branches: "tuple[Tree, ...]" = ()


@attrs.frozen(kw_only=True)
class Chicken:
    egg: "Egg | None" = None


@attrs.frozen(kw_only=True)
class Egg:
    chicken: Chicken | None = None


attrs.resolve_types(Tree)
attrs.resolve_types(Chicken)


@pytest.mark.parametrize(
    ("cls", "way"),
    [
        (Tree, ["the field branches of Tree"]),
        (Chicken, ["the field chicken of Egg", "the field egg of Chicken"]),
        (Egg, ["the field egg of Chicken", "the field chicken of Egg"]),
    ],
)
def test_a_class_that_contains_itself_is_refused(cls: type, way: list[str]) -> None:
    for _ in range(2):  # the refusal leaves nothing behind
        with pytest.raises(TypeError) as refused:
            hook_of(cls)
        assert str(refused.value) == f"{cls.__qualname__} cannot be decoded: it contains itself"
        assert refused.value.__notes__ == [f"for {step}" for step in way]


def with_type(type_: Any, **arguments: Any) -> Any:
    return attrs.make_class("Made", {"given": attrs.field(type=type_, **arguments)}, frozen=True, slots=True)


@pytest.mark.parametrize(
    "type_",
    [
        int,
        float,
        bytes,
        datetime,
        list[str],
        set[str],
        dict[str, int],
        tuple[int, ...],
        tuple[Part],
        tuple[Part, Part],
        tuple[Part | WithDefaults, ...],
        list[str] | None,
        str | int,
        str | int | None,
        Part | WithDefaults | None,
        "str",
        None,
    ],
    ids=str,
)
def test_a_type_that_no_hook_reads_is_refused(type_: Any) -> None:
    with pytest.raises(TypeError, match=r"no hook reads the type .*; add one to _HOOKS") as refused:
        hook_of(with_type(type_, default=None))
    assert refused.value.__notes__ == ["for the field given of Made"]


def test_a_refusal_names_the_field_of_a_part_and_the_way_to_it() -> None:
    inner = attrs.make_class("Inner", {"size": attrs.field(type=bytes, default=b"")}, frozen=True, slots=True)
    with pytest.raises(TypeError, match="bytes") as refused:
        hook_of(with_type(tuple.__class_getitem__((inner, ...)), default=()))
    assert refused.value.__notes__ == ["for the field size of Inner", "for the field given of Made"]


def test_a_part_with_a_default_must_be_optional() -> None:
    with pytest.raises(TypeError, match=r"the type must be Part \| None"):
        hook_of(with_type(Part, default=Part()))
    assert hook_of(with_type(Part))({"given": {"name": "p"}}).given == Part(name="p")
    assert hook_of(with_type(Part))({"given": 7}) is None
