"""`module:function` or `FILE.py:function` -> a function of the user's own, and a hash of the file that it is in."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from psutil import Process

from expo_search.config.own_scorer import function_of
from expo_search.errors import StudyError
from expo_search.text import shortened

_ran: dict[str, str] = {}  # a module's name -> the hash of its file when it was run last


def load_function(named: str) -> Callable[..., Any]:
    """Import it, which runs its module. A module is found on Python's path and in the working directory.

    A module that was imported before, and whose file was edited since, is run again, as in a notebook.

    Raises:
        StudyError: no such module, file or function; a module that cannot be imported; something that is no function.
    """
    function = function_of(named)
    assert function is not None, "the caller asked"
    home, name = function
    try:
        found: Any = getattr(_file_module(home) if home.endswith(".py") else _module(home), name)
    except (Exception, SystemExit) as fault:  # what it does when it is imported is somebody's own code
        raise StudyError(
            where=f"scorer {named}",
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a function module:function, on Python's path or in the working directory, or FILE.py:function",
            do="check the name",
        ) from None
    if not callable(found):
        raise StudyError(
            where=f"scorer {named}", found=f"a {type(found).__name__}", expected="a function", do="check the name"
        )
    loaded: Callable[..., Any] = found
    return loaded


def file_hash(named: str) -> str:
    """16 hex digits of the content of the file that a loaded function is in; empty where it is in none."""
    function = function_of(named)
    assert function is not None, "the caller asked"
    home = function[0]
    return content_hash(Path(home)) if home.endswith(".py") else _ran.get(home, "")


def content_hash(file: Path) -> str:
    """16 hex digits of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _module(name: str) -> ModuleType:
    known = sys.modules.get(name)
    with _looking_in(os.getcwd()):  # noqa: PTH109  a string, as Python's path has it
        module = importlib.import_module(name) if known is None or not _is_stale(known) else importlib.reload(known)
    _ran[name] = _hash_of(module)
    return module


def _is_stale(module: ModuleType) -> bool:
    """Whether a module's file is no longer what ran; where somebody else imported it, what the process began with."""
    if module.__name__ in _ran:
        return _ran[module.__name__] != _hash_of(module)
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).stat().st_mtime > Process().create_time()


def _hash_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return "" if file is None else content_hash(Path(file))


def _file_module(path: str) -> ModuleType:
    """Run a file anew, as a module that finds others beside it."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    loader = _AlwaysCompiled(f"_own_{file.stem}", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None, "made from a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and the like look for it
    with _looking_in(str(file.absolute().parent)):
        loader.exec_module(module)
    return module


class _AlwaysCompiled(SourceFileLoader):
    """Without a cache, which takes a file that is changed twice in a second for the older one, and writes beside it."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        return self.source_to_code(self.get_data(self.path), self.path)


@contextmanager
def _looking_in(folder: str) -> Iterator[None]:
    importlib.invalidate_caches()  # it may have been written a moment ago
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
