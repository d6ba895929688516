"""PyTorch state dicts."""

from __future__ import annotations

from streamrnn.importers.torch.options import TorchOptions
from streamrnn.importers.torch.state_dict import import_state_dict, import_torch

__all__ = ["TorchOptions", "import_state_dict", "import_torch"]
