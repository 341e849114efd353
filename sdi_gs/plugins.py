# SPDX-License-Identifier: Apache-2.0
"""Code from outside of the package: what it registers is known to YAML, to the command line and to
comparisons like the package's own.

A plug-in is a Python file or a module that calls :func:`sdi_gs.register`. The setting ``plugins``
names it, or, when it is installed, an entry point of the group ``sdi_gs.plugins``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from .errors import UserError

GROUP = "sdi_gs.plugins"
_loaded: set[str] = set()  # full paths, names of modules and of entry points


def load(names: Sequence[str]) -> list[str]:
    """Import the plug-ins ``names`` and every installed one, each once in a process; files by their
    full path, as they are remembered in a run's settings. UserError for one that does not import.
    """
    for point in entry_points(group=GROUP):
        _once(f"{GROUP}: {point.name}", f"the installed plug-in {point.name!r} ({point.value})",
              point.load)  # fmt: skip
    found = []
    for name in names:
        path = Path(name).expanduser()
        if path.suffix == ".py" or path.is_file():
            full = str(path.resolve())
            _once(full, f"plugins: {name}", lambda at=full: _import_file(Path(at)))  # type: ignore[misc]
            found.append(full)
        else:
            _once(name, f"plugins: {name}", lambda at=name: importlib.import_module(at))  # type: ignore[misc]
            found.append(name)
    return found


def _once(key: str, shown: str, load_it: Callable[[], object]) -> None:
    if key in _loaded:
        return
    try:
        load_it()
    except UserError as error:
        raise UserError(f"{shown}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{shown}: no such file; give a Python file or a module") from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"{shown} does not import: {error}; give a Python file (plugins=my_method.py) or the "
            "name of an installed module"
        ) from error
    except Exception as error:
        raise UserError(
            f"{shown} does not import: {type(error).__name__}: {error}{_line_of(error, key)}"
        ) from error
    _loaded.add(key)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"sdi_gs_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_of(error: Exception, file: str) -> str:
    """Where in the plug-in it happened."""
    if isinstance(error, SyntaxError):
        return ""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" (line {line} of it)"
