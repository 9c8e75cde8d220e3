"""Scores of functions, chunk by chunk, as an evaluation gives them.

Shapes: N functions of a chunk, E examples, C classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from trainer.evaluation.functions.scores import of_functions, score_examples
from trainer.evaluation.scoring import outputs, split_batches
from trainer.models.heads import PackedModel
from trainer.processes.distributed import Ranks, is_equal_everywhere
from trainer.run.trained import Trained


@dataclass(frozen=True)
class ChunkScores:
    """What the model says of a chunk.

    Attributes:
        scores_NC: Of each class.
        num_tokens_N: Of each whole function; -1 where it was too long to be tokenised.
        is_scored_N: False where data.long_functions drops a function.
    """

    scores_NC: npt.NDArray[np.float64]
    num_tokens_N: npt.NDArray[np.int32]
    is_scored_N: npt.NDArray[np.bool_]


def score_chunk(
    trained: Trained, model: PackedModel, codes: Sequence[str], ranks: Ranks
) -> ChunkScores:
    """Score functions; all ranks call this with the same ones, and all get all scores.

    Rows of packed functions are scored one by one, so that the ranks, which share the rows, change
    no score. Long functions are cut as in training.

    Raises:
        DataError: The ranks read other texts.
        DivergedError: A score is not finite.
    """
    config, classes = trained.config, trained.classes
    if ranks.world_size > 1:
        digest = hashlib.sha256("\0".join(codes).encode("utf-8", "surrogatepass")).hexdigest()
        if not is_equal_everywhere(digest, ranks):
            raise DataError(
                "the ranks read different files: all nodes need the same tree, and nothing may"
                " change it meanwhile"
            )
    examples, num_tokens_N = trained.examples_of(codes)
    batches = split_batches(examples, config.data, 1, ranks, "functions of these")
    scores_EC = score_examples(outputs(model, batches), len(examples), classes, ranks)
    nothing_C = np.zeros(len(classes.names))
    scores_NC = of_functions(scores_EC, examples, nothing_C, config.eval.window_score)
    is_scored_N = np.isin(np.arange(len(codes)), examples.record_E)
    return ChunkScores(scores_NC, num_tokens_N, is_scored_N)
