"""Training of models from tables: NumPy only, no framework, no numba.

``verify`` alone imports the engine, when it is called: the engine must reproduce the trainer.
"""

from __future__ import annotations

from streamrnn.training.config import TrainingConfig
from streamrnn.training.train import TrainingResult, train, train_to_file

__all__ = ["TrainingConfig", "TrainingResult", "train", "train_to_file"]
