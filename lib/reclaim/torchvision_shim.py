"""Let `torchvision` be imported beside a torch build that has none of its operators.

timm needs torchvision, whose wheels are compiled for CUDA. Beside the CPU build of torch their extension does not load, and
the import fails because the fake kernels of `nms` and `qnms` have no operator to attach to. Declaring the two schemas first
is enough; nothing in this project calls them. Import this module before `timm` or `transformers`. Where torchvision is
absent or its extension loads, the module does nothing.
"""

import importlib.machinery
import importlib.util
from pathlib import Path

import torch


def _extension_loads(package: Path) -> bool:
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    for path in (package / f"_C{suffix}" for suffix in suffixes):
        if path.exists():
            try:
                torch.ops.load_library(path)
                return True
            except OSError:
                return False
    return False


def _declare() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _extension_loads(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# The library object owns the declarations: they vanish with it.
LIBRARY = _declare()
