"""Finding what a command names as `module:attribute`, and saying clearly why it cannot be found."""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigurationError, TidemillError


def load(target: str, kind: str, fits: Callable[[object], bool]) -> Any:
    """The object `target` names, if it `fits`; `kind` is what messages call such an object ("a Service").

    The working directory is searched first, as `python -m` does. Raises `ConfigurationError` where there is no such
    module or attribute, where it is something else, or where the module fails to import; the text then ends in the
    traceback, cut to the user's own frames.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigurationError(
            f"{target!r} does not name {kind}. "
            f"Write module:name, such as {_example(module_name)}:{attribute or 'name'}."
        )
    if module_name.endswith(".py") or os.sep in module_name:
        raise ConfigurationError(
            f"{module_name!r} is a file, and what is needed is a module: {_example(module_name)}:{attribute}, "
            "run from the directory it is in."
        )
    module = _import(module_name)
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(
                f"module {module_name!r} ({getattr(module, '__file__', None)}) has no {attribute!r}. "
                f"{_what_there_is(module, attribute, fits)}"
            ) from None
    if not fits(found):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise ConfigurationError(f"{target} is {what}, not {kind}. {_what_there_is(module, attribute, fits)}")
    return found


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except TidemillError:
        raise  # it names the declaration and its file itself
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r}. Looked in {here} and where Python looks for packages. "
                "Run the command from the directory the module is in, or install it."
            ) from None
        raise ConfigurationError(f"{name!r} could not be imported:\n\n{own_traceback(error)}") from None


def own_traceback(error: BaseException) -> str:
    """The traceback without the frames of Python, of installed packages and of Tidemill, where others remain."""
    summary = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()

    def cut(one: traceback.TracebackException | None) -> None:
        if one is None or id(one) in seen:
            return
        seen.add(id(one))
        kept = [frame for frame in one.stack if not _foreign(frame.filename)]
        one.stack = traceback.StackSummary.from_list(kept)
        cut(one.__cause__)
        cut(one.__context__)

    cut(summary)
    return "".join(summary.format()).rstrip()


_FOREIGN = tuple(
    f"{place}{os.sep}"
    for place in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        Path(__file__).parents[1],
    )
)


def _foreign(file: str) -> bool:
    return file.startswith(("<frozen", *_FOREIGN))


def _what_there_is(module: ModuleType, attribute: str, fits: Callable[[object], bool]) -> str:
    names = [name for name, value in vars(module).items() if not name.startswith("_") and fits(value)]
    if not names:
        return "That module has none."
    near = difflib.get_close_matches(attribute, names, n=1) or (names if len(names) == 1 else [])
    if near:
        return f"Did you mean {module.__name__}:{near[0]}?"
    return f"It has: {', '.join(sorted(names))}."


def _example(module_name: str) -> str:
    return module_name.removesuffix(".py").replace(os.sep, ".").strip(".") or "shop"
