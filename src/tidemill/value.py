"""A plain annotated class becomes an immutable value: a frozen `msgspec.Struct` that keeps all the class has.

What would be lost on the way is refused instead, with the way out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")

# Other makers of values: the mark each leaves on its classes, and what one writes to ask for it.
_MAKERS = {
    "__dataclass_fields__": "@dataclass(frozen=True)",
    "__attrs_attrs__": "@attrs.frozen",
    "__pydantic_validator__": "@pydantic.dataclasses.dataclass(frozen=True)",
}


def as_value(cls: type[T]) -> type[T]:
    """`cls` where it makes values already (dataclass, Struct, attrs, pydantic), else the Struct made from it.

    Raises `TypeError` where the Struct would lack something the class has.
    """
    if issubclass(cls, msgspec.Struct) or any(mark in cls.__dict__ for mark in _MAKERS):
        return cls
    _refuse_losses(cls)
    namespace: dict[str, Any] = {
        name: _as_msgspec_field(name, cast(Any, value)) if isinstance(value, dataclasses.Field) else value
        for name, value in cls.__dict__.items()
        if name not in ("__dict__", "__weakref__", "__slots__") and not isinstance(value, types.MemberDescriptorType)
    }
    namespace["__qualname__"] = cls.__qualname__
    bases = tuple(base for base in cls.__bases__ if base is not object)
    options = {"frozen": True}
    if any(isinstance(value, functools.cached_property) for value in namespace.values()):
        options["dict"] = True  # that is where it keeps what it has computed
    made = types.new_class(cls.__name__, (*bases, msgspec.Struct), options, lambda body: body.update(namespace))
    for value in namespace.values():
        _rebind(value, cls, made)
    return cast("type[T]", made)


def field_names(cls: Any) -> tuple[str, ...] | None:
    """The names of the fields of a class that makes values; None where its kind does not tell."""
    if issubclass(cls, msgspec.Struct):
        return tuple(cls.__struct_fields__)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in cls.__attrs_attrs__)
    fields: Mapping[str, object] | None = getattr(cls, "model_fields", None)
    return tuple(fields) if fields is not None else None


def _refuse_losses(cls: type) -> None:
    for mark, decorator in _MAKERS.items():
        if hasattr(cls, mark):
            raise TypeError(
                "it inherits from a class that is decorated but is not decorated itself, so that fields of its "
                f"own would not count. Put {decorator} right above the class, below @event."
            )
    for base in cls.__mro__:
        if base is object or issubclass(base, msgspec.Struct):
            continue
        whose = "it has its" if base is cls else f"it inherits from {base.__qualname__}, which has its"
        if "__init__" in base.__dict__ or "__new__" in base.__dict__:
            raise TypeError(
                f"{whose} own __init__. An event is plain data: declare its fields as annotations, or make the "
                "class a dataclass, a msgspec Struct, an attrs or a pydantic class."
            )
        if base is not cls and (fields := _annotated(cast(Any, base))):
            raise TypeError(
                f"{whose} own fields ({', '.join(fields)}) and is no event; neither type checkers nor dataclasses "
                f"count such fields. Make {base.__name__} a msgspec.Struct, or put @dataclass(frozen=True) above "
                "both."
            )


def _annotated(cls: type) -> list[str]:
    annotations = cast("dict[str, object]", inspect.get_annotations(cls))
    return [
        name
        for name, annotation in annotations.items()
        if not str(annotation).removeprefix("typing.").startswith("ClassVar")
    ]


def _as_msgspec_field(name: str, field: dataclasses.Field[Any]) -> Any:
    if not (field.init and field.repr and field.compare) or field.kw_only is True or field.hash is not None:
        raise TypeError(
            f"{name!r} asks dataclasses.field() for more than default and default_factory, which a plain class "
            "does not give. Put @dataclass(frozen=True) right above the class, below @event."
        )
    if field.default_factory is not dataclasses.MISSING:
        return msgspec.field(default_factory=field.default_factory)
    if field.default is not dataclasses.MISSING:
        return msgspec.field(default=field.default)
    return msgspec.field()


def _rebind(attribute: object, old: type, new: type) -> None:
    """Make `super()` and `__class__` in a method of `old` mean `new`, which holds the method now."""
    for function in _functions(attribute):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__" and cell.cell_contents is old:
                cell.cell_contents = new


def _functions(attribute: Any) -> Iterator[types.FunctionType]:
    """The functions behind a class's attribute: itself, or what a property, classmethod or wrapper holds."""
    inner: tuple[Any, ...] = ()
    match attribute:
        case property():
            inner = (attribute.fget, attribute.fset, attribute.fdel)
        case functools.cached_property():
            inner = (cast(Any, attribute).func,)
        case types.FunctionType():
            yield attribute
            inner = (getattr(attribute, "__wrapped__", None),)
        case classmethod() | staticmethod():
            inner = (cast(Any, attribute).__func__,)
        case _:
            pass
    for each in inner:
        yield from _functions(each)
