"""Functions and classes of people's own, by name: `package.module:name`. The module is imported; no more is run."""

import importlib
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_dotted(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def named(setting: str, name: str) -> Any:
    """What `name`, the value of `setting`, stands for: something to call. Raises ValueError with what to do."""
    if not is_dotted(name):
        raise ValueError(f"{setting} must be the name of something to import, package.module:name, got {name!r}")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{setting}={name}: {module_name} imports {error.name}, which is not installed") from error
        raise ValueError(
            f"{setting}={name}: there is no module {error.name!r} to import; install it, or put the folder that "
            "holds it into PYTHONPATH"
        ) from error
    except Exception as error:  # whatever its top level does
        raise ValueError(f"{setting}={name}: importing {module_name} failed ({told(error)}); mend it") from error
    found = getattr(module, attribute, None)
    if found is None:
        own = [
            n
            for n, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module_name
        ]
        there = f"; it has {', '.join(own[:10])}" if own else ""
        raise ValueError(f"{setting}={name}: {module_name} ({_place(module)}) has no {attribute!r}{there}")
    if not callable(found):
        raise ValueError(f"{setting}={name}: is a {type(found).__name__}, which cannot be called; name a function")
    return found


def told(error: BaseException) -> str:
    """The error in one line, with the file and line where it arose."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f", {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' * bool(said)}{said[:300]}{where}"


def _place(module: Any) -> str:
    return getattr(module, "__file__", None) or "built in"
