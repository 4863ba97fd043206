"""Accuracy of an engine: tasks of lm-evaluation-harness and perplexity, and what a precision loses against another."""

from engines.accuracy.evaluate import Server, add_results, evaluate_checkpoint, evaluate_server, refuse_emulated
from engines.accuracy.harness import KNOWN_TASKS, Questions, tasks_at_hand
from engines.accuracy.loss import AccuracyLoss, losses

__all__ = [
    "KNOWN_TASKS",
    "AccuracyLoss",
    "Questions",
    "Server",
    "add_results",
    "evaluate_checkpoint",
    "evaluate_server",
    "losses",
    "refuse_emulated",
    "tasks_at_hand",
]
