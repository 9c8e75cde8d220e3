"""The evaluation of a task measures a model before, while and after it learns the task."""

from data.text.labels import Classes
from trainer.evaluation.functions.class_evaluation import ClassEvaluation
from trainer.evaluation.functions.evaluation import FunctionEvaluation
from trainer.evaluation.language.evaluation import LanguageEvaluation
from trainer.evaluation.scoring import Evaluation

EVALUATIONS: dict[str, type[Evaluation]] = {
    "classification": FunctionEvaluation,
    "instruction": LanguageEvaluation,
    "causal_lm": LanguageEvaluation,
}


def evaluation_of(task: str, classes: Classes) -> type[Evaluation]:
    """The evaluation of a run; one threshold decides between two classes."""
    if task == "classification" and not classes.is_binary:
        return ClassEvaluation
    return EVALUATIONS[task]
