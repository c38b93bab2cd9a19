"""Training loops to read and copy, with the data, metrics and pictures that they need.

Nothing here is imported by the rest of the package, and what is imported here beyond torch
(Lightning Fabric, rich, scikit-learn, Pillow, matplotlib) comes with ``pip install
"deepgen_ext[recipes]"``.

- ``data``, ``densities``, ``image_files``: data sets as tensors of levels or of real vectors
- ``registry``: the models that can be trained by name; adding one is one entry
- ``train``: the loop;  ``run``: the folder of a run;  ``checkpoint``: files that survive a kill or
  a full disk
- ``metrics``, ``pictures``: what is measured and drawn;  ``demo``: all of it in two minutes
- ``scores``, ``transport``: samples against data, by a ``feature_network`` or exactly; with
  ``pip install "deepgen_ext[metrics]"``
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["RecipeError", "require"]


class RecipeError(ValueError):
    """A mistake of the user's, or of the machine's (a full disk), said in one sentence that needs
    no traceback.
    """


def require(module: str, purpose: str, *, extra: str = "recipes") -> ModuleType:
    """Import an optional dependency, or say in one sentence how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the module is there, something inside it is broken: that is not a missing extra
        raise RecipeError(
            f'{purpose} needs {module.split(".")[0]}: pip install "deepgen_ext[{extra}]"'
        ) from None
