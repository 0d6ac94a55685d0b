"""The durable workflow engine: knows no other app. Its names are those of `apps.workflows.engine`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Give the public names without importing models before Django's apps are ready."""
    if name.startswith("_"):
        raise AttributeError(name)
    from importlib import import_module

    engine = import_module("apps.workflows.engine")
    if name not in engine.__all__:
        raise AttributeError(name)
    return getattr(engine, name)
