"""Training: objectives, levels, weights, and the trainer that survives crashes."""

from sfumato.training.progress import Event
from sfumato.training.run import train
from sfumato.training.run_file import Run, read
from sfumato.training.trainer import Trainer

__all__ = ["Event", "Run", "Trainer", "read", "train"]
