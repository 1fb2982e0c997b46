"""What the layers of a neural network know: AND and OR interactions, learned, kept and forgotten.

`track` is the door: one call that explains a network. Everything is imported when it is first used.
"""
__version__ = "0.2.0"

import importlib
import sys
import types

_WHERE = {                                     # name -> module: written by hand, the rest by nbdev
    "track": "track", "layers": "track", "Knowledge": "knowledge", "open": "knowledge",
    "patches": "rules", "segments": "rules", "columns": "rules", "words": "text",
    "Players": "players",
    "train_probes": "probes", "score_table": "scores", "sparsify": "sparsify",
    "and_interactions": "interactions", "or_interactions": "interactions",
    "reconstruct": "interactions", "shapley_values": "interactions", "layer_metrics": "metrics",
    "masks": "sampled",
}
__all__ = list(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; "
                             f"it has {', '.join(_WHERE)}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__():
    return sorted([*__all__, "__version__"])


class _Package(types.ModuleType):
    "Where a module and its function share a name, as `track` and `sparsify`, it means the function"
    def __setattr__(self, name, value):
        function = isinstance(value, types.ModuleType) and name in _WHERE
        super().__setattr__(name, getattr(value, name) if function else value)


sys.modules[__name__].__class__ = _Package
