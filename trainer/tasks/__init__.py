"""Tasks: TASKS[name] knows the loss of a batch."""

from trainer.tasks.classification import Classification

TASKS = {"classification": Classification}
