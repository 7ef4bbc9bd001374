"""One of two processes that evaluate together: COORDINATOR RANK FOLDER."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from configs import tiny
from groupvit_jax.models import build_model
from tests.eval.conftest import random_variables
from tests.eval.photos import with_highest_scale
from tests.eval.test_segmentation_evaluator import evaluate, other_results

if __name__ == "__main__":
    coordinator, rank, folder = sys.argv[1:]
    jax.distributed.initialize(coordinator, 2, int(rank))
    model = build_model(tiny.get_config().model)
    variables = with_highest_scale(random_variables(model))
    folder = Path(folder)
    np.save(folder / f"{rank}.npy", evaluate(model, variables, 4).confusion(variables))
    results = other_results(model, variables, 4, folder)
    (folder / f"{rank}.json").write_text(json.dumps(results))
