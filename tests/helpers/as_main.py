"""To run a module of this package as `python -m` does, in this process."""

import importlib.machinery
import importlib.util

__all__ = ["run_as_main"]


def run_as_main(name: str) -> None:
    """Run the module's code under the name `__main__`.

    `runpy.run_module` cannot where pytest rewrites the module's assertions, as it does in all modules of a distribution
    that brings a plug-in, unless that is installed in editable mode: its loader has no code to give.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    loader = importlib.machinery.SourceFileLoader(name, spec.origin)
    code = loader.get_code(name)
    assert code is not None
    # By the loader, coverage knows which module it is.
    exec(code, {"__name__": "__main__", "__package__": name.rpartition(".")[0], "__loader__": loader})
