"""EVALUATIONS[task] measures a model before, while and after it learns the task."""

from trainer.evaluation.functions.evaluation import FunctionEvaluation
from trainer.evaluation.language.evaluation import LanguageEvaluation
from trainer.evaluation.scoring import Evaluation

EVALUATIONS: dict[str, type[Evaluation]] = {
    "classification": FunctionEvaluation,
    "instruction": LanguageEvaluation,
    "causal_lm": LanguageEvaluation,
}
