"""Loads a job's code and calls it: a function, a script, or a folder whose script is main.py.

For a `run` a script is executed as `__main__`. For a `map` or `train` it is executed once, as a module that is not
`__main__`, and the function it defines is called for each segment. All this runs code of the job: it is why the host
does not do it.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, ModuleType

from provider.sandbox.inside import failures

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from provider.sandbox.inside.folder import CodeFolder

    Call = Callable[[Any, int], object]

_SCRIPT = "/job/script.py"
MAIN = "main.py"
"""The script of a folder."""


class Program:
    """What was loaded. `call(given, index)` is a segment; `folder` is the folder of the code, where there is one."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.folder: CodeFolder | None = None
        self._kind = task["kind"]
        self._output_bytes = task["output_bytes"]
        if task["entry"] == "function":
            from _pickle import loads  # the C half alone: the whole of pickle costs 5 ms more

            self.call = self._adapt(loads(task["code"]))
            return
        path, code = (_SCRIPT, task["code"]) if task["entry"] == "script" else self._enter(task["code"])
        source = failures.remember_source(path, code)
        program = compile(source, path, "exec", dont_inherit=True)
        if self._kind == "run":
            self.call = lambda given, _: self._run_script(program, path, *given)
        else:
            self.call = self._adapt(_define(program, path, task["function"]))

    def restore(self) -> None:
        """Between two segments: the code lies there as it was sent, and that is where the next one begins."""
        if self.folder is not None:
            self.folder.restore()
            os.chdir(self.folder.top)

    def _adapt(self, function: Any) -> Call:
        if self._kind == "map":
            return lambda given, _: function(given)
        if self._kind == "train":
            return function  # type: ignore[no-any-return]  # a job's function has no type that one could know
        return lambda given, _: function(*given[0], **given[1])

    def _enter(self, packed: bytes) -> tuple[str, bytes]:
        """Writes the folder, makes it the place to work in and to import from, and gives its script."""
        from provider.sandbox.inside.folder import CODE, CodeFolder  # only folders need it

        self.folder = CodeFolder(packed)
        os.chdir(CODE)
        sys.path.insert(0, CODE)
        path = f"{CODE}/{MAIN}"
        if not os.path.isfile(path):
            raise FileNotFoundError(f"the folder has no {MAIN}, which is the script that is run")
        with open(path, "rb") as file:
            return path, file.read()

    def _run_script(self, program: CodeType, path: str, args: Any, kwargs: Any) -> object:
        """Runs a script as `__main__` and takes its global `result`. It finds `args` and `inputs` (the keyword
        arguments) as globals, and the texts of `args` in `sys.argv`.
        """
        main = ModuleType("__main__")
        main.__dict__.update(
            __file__=path, __builtins__=__builtins__, args=tuple(args), inputs=dict(kwargs), result=None
        )
        sys.modules["__main__"] = main
        sys.argv = [path, *map(str, args)]
        if self.folder is None:
            _execute(program, main)
            return main.__dict__.get("result")
        from provider.sandbox.inside.folder import OUTPUTS, collect_outputs  # loaded by now

        os.mkdir(OUTPUTS)
        _execute(program, main)
        value, files = main.__dict__.get("result"), collect_outputs(self._output_bytes)
        return {"result": value, "files": files} if files else value


def _execute(program: CodeType, module: ModuleType) -> None:
    """Runs a script; leaving with status 0 is an end like any other."""
    try:
        exec(program, module.__dict__)  # noqa: S102  # running the job's script is what this process is for
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise


def _define(program: CodeType, path: str, name: str) -> Any:
    """Executes a script once, as a module named after its file, and gives the function it defines."""
    module = ModuleType(os.path.basename(path).removesuffix(".py"))
    module.__dict__.update(__file__=path, __builtins__=__builtins__)
    sys.modules[module.__name__] = module
    sys.argv = [path]
    exec(program, module.__dict__)  # noqa: S102  # running the job's script is what this process is for
    function = module.__dict__.get(name)
    if not callable(function):
        what = "defines no" if function is None else "names something that can't be called by"
        raise LookupError(f"{os.path.basename(path)} {what} `{name}`, which was to be called for each segment")
    return function
