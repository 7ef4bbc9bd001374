"""Self-distillation of image embeddings by a centred softmax."""

import jax
import jax.numpy as jnp

from groupvit_jax.losses.pairwise import Metrics, l2_normalize
from groupvit_jax.typing import Array, Float

# As in DINO (arXiv 2104.14294): the teacher's is sharper.
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04


def distillation_loss(
    student: Float[Array, "B D"], teacher: Float[Array, "B D"]
) -> tuple[Float[Array, ""], Metrics]:
    """Return the mean cross-entropy of the student under the teacher's targets.

    With l2-normalised embeddings, the target of an image is `softmax((teacher - c) / 0.04)` over
    the channels, with c the teachers' mean over the global batch, and the student's prediction
    `softmax(student / 0.1)` (SILC, arXiv 2310.13355). Without the centre all images could have one
    target; without the low temperature all channels could be equal.

    Args:
      student: embeddings of crops, not normalised.
      teacher: embeddings of whole images by the average of the parameters; they get no gradient.

    Returns:
      The loss, and its metric `target_entropy`, over its largest value: 1 is uniform.
    """
    teacher = jax.lax.stop_gradient(l2_normalize(teacher))
    log_target = jax.nn.log_softmax((teacher - teacher.mean(axis=0)) / TEACHER_TEMPERATURE)
    # The entropy needs the logarithm, too: that of a softmax would be -inf where it underflows.
    target = jnp.exp(log_target)
    predicted = jax.nn.log_softmax(l2_normalize(student) / STUDENT_TEMPERATURE)
    entropy = -(target * log_target).sum(axis=1).mean() / jnp.log(target.shape[1])
    return -(target * predicted).sum(axis=1).mean(), {"target_entropy": entropy}
