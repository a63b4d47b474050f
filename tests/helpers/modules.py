"""Running the code of a module of the package once more, in this process, where its coverage is measured."""

import importlib.machinery
import importlib.util
from types import ModuleType

__all__ = ["fresh_copy", "run_as_main"]


def fresh_copy(name: str) -> ModuleType:
    """Run the module's code, and return the new module, which is not in `sys.modules`.

    pytest imports the root of the package and its plug-in before it starts to measure coverage.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_as_main(name: str) -> None:
    """Run the module's code under the name `__main__`, as `python -m` does.

    `runpy.run_module` fails where pytest rewrites the module's assertions, since pytest's loader has no code to give.
    pytest rewrites all modules of a distribution that brings a plug-in, unless it is installed in editable mode.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    # Coverage learns the module's file from the loader.
    loader = importlib.machinery.SourceFileLoader(name, spec.origin)
    code = loader.get_code(name)
    assert code is not None
    exec(code, {"__name__": "__main__", "__package__": name.rpartition(".")[0], "__loader__": loader})
