"""A model from a Python file: `file.py:factory`."""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robust.errors import InputError, unknown
from robust.models.wrappers import CallableModel

_FRAMES = 3
# Modules that an earlier file imported from its own folder: another folder may hold others of the same names.
_siblings: set[str] = set()


def load_factory(spec: str) -> nn.Module:
    """The model that ``path/file.py:name`` makes: ``name`` is called without arguments, or is itself a module.

    The file runs under a private module name, with its folder on ``sys.path`` while it and the factory run. Raises
    InputError; where the user's code raises, with its own last frames.
    """
    file, name = _parts(spec)
    with _importable(file.parent):
        module = _run_file(file)
        model = _made(_attribute(module, name, file), spec, file.parent)
    if isinstance(model, nn.Module):
        return model
    if callable(model):
        return CallableModel(model)
    raise InputError(f"{spec}: returned a {type(model).__name__}: return a torch.nn.Module or a callable")


def _parts(spec: str) -> tuple[Path, str]:
    text, colon, name = spec.rpartition(":")
    if not colon or not text.lower().endswith(".py"):
        file = Path(spec).expanduser()
        if not file.is_file():
            raise InputError(f"{spec}: no such file")
        found = f" such as {', '.join(_public(file)[:4])}" if _public(file) else ""
        raise InputError(f"{spec}: name the function that returns the model{found}: write {spec}:NAME")
    file = Path(text).expanduser()
    if not file.is_file():
        raise InputError(f"{text}: no such file")
    return file.resolve(), name


def _public(file: Path) -> list[str]:
    """Functions and classes that the file defines, found without running it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _run_file(file: Path) -> ModuleType:
    # Compiled here, not imported: a cached .pyc of an older version can never be run in its place.
    module = ModuleType(f"_robust_model_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        code = compile(file.read_bytes(), str(file), "exec")
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise InputError(f"{file}{line}: {error.msg}: correct the file") from error
    except ValueError as error:  # null bytes, in some versions of Python
        raise InputError(f"{file}: {error}: correct the file") from error
    _guarded(lambda: exec(code, module.__dict__), f"{file}: the file raised", file.parent)
    return module


def _attribute(module: ModuleType, name: str, file: Path) -> Any:
    if not hasattr(module, name):
        named = {key for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        own = {key for key in named if getattr(getattr(module, key), "__module__", None) == module.__name__}
        if not named:
            raise InputError(f"{file}: defines no {name!r}, and no function or class at all")
        raise unknown(f"name in {file}", name, own or named)
    return getattr(module, name)


def _made(factory: Any, spec: str, folder: Path) -> Any:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise InputError(f"{spec}: is a {type(factory).__name__}: name a function that returns the model")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(f"{spec}: {error}: name a function that needs no arguments and returns the model") from error
    except ValueError:
        pass  # a builtin without a signature: calling it will tell
    return _guarded(factory, f"{spec}: the factory raised", folder)


def _guarded(run: Callable[[], Any], what: str, folder: Path) -> Any:
    """The result of the user's code. Raises InputError with the last of the user's frames."""
    try:
        return run()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        message = "".join(traceback.format_exception_only(type(error), error)).strip()
        frames = "".join(traceback.format_list(_frames(error, folder))).rstrip()
        raise InputError(f"{what} {message}\n{frames}".rstrip()) from error


def _frames(error: BaseException, folder: Path) -> list[traceback.FrameSummary]:
    """The last frames in the user's folder, and the one that raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if _inside(Path(frame.filename), folder)][-_FRAMES:]
    return own + [frame for frame in frames[-1:] if frame not in own]


def _inside(file: Path, folder: Path) -> bool:
    return folder in file.parents and "site-packages" not in file.parts


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder first on ``sys.path``; what is imported from it is forgotten before the next file is loaded."""
    for name in _siblings:
        sys.modules.pop(name, None)
    _siblings.clear()
    before, path = set(sys.modules), str(folder)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        if path in sys.path:
            sys.path.remove(path)
        _siblings.update(name for name in set(sys.modules) - before if _is_sibling(name, folder, before))


def _is_sibling(name: str, folder: Path, before: set[str]) -> bool:
    """Whether module ``name`` is a file, or lies in a package, right in ``folder`` (not in an environment below it)."""
    top = name.partition(".")[0]
    file = getattr(sys.modules[name], "__file__", None)
    if top in before or file is None or folder not in Path(file).parents:
        return False
    return Path(file).relative_to(folder).parts[0] in (top, f"{top}.py")
