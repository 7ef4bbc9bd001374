"""Writes goldens.npz: what transformers' GroupViT computes for the small cases.

python -m tests.interop.make_goldens

It needs PyTorch and transformers; test_goldens.py, which compares with the file, doesn't. Weights
and inputs are drawn from NumPy's frozen random streams, so only outputs are stored.
"""

from pathlib import Path

import numpy as np

from tests.interop import weights

PATH = Path(__file__).with_name("goldens.npz")
CASES = ("gcc_yfcc", "one_stage", "three_stage", "224x336")
TRAINING_CASES = ("gcc_yfcc",)


def summarise(gradient: np.ndarray) -> np.ndarray:
    """A gradient's norm and its product with a fixed direction, which few mistakes leave alone."""
    flat = gradient.ravel().astype(float)
    direction = np.random.RandomState(0).normal(size=flat.size)
    return np.array([np.linalg.norm(flat), flat @ direction / np.linalg.norm(direction)])


def case_inputs(case: str, batch_size: int):
    config = weights.small_config(case)
    return weights.images_and_tokens(config, weights.small_size(case), batch_size)


def main() -> None:
    from tests.interop import reference

    goldens = {}
    for case in CASES:
        pretrained = weights.random_pretrained(weights.small_config(case))
        for name, output in reference.outputs(pretrained, *case_inputs(case, 2)).items():
            goldens[f"{case}/outputs/{name}"] = output
    for case in TRAINING_CASES:
        config = weights.training_config(weights.small_config(case))
        pretrained = weights.random_pretrained(config)
        loss, statistics, gradients = reference.training_step(pretrained, *case_inputs(case, 8))
        goldens[f"{case}/loss"] = np.array(loss)
        goldens |= {f"{case}/statistics/{name}": array for name, array in statistics.items()}
        names = sorted(gradients)
        goldens[f"{case}/gradient_names"] = np.array(names)
        goldens[f"{case}/gradients"] = np.stack([summarise(gradients[name]) for name in names])
    np.savez_compressed(PATH, **goldens)
    print(f"{PATH}: {PATH.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
