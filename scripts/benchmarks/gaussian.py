"""Times distances between Gaussians against their printed formulas.

Loss and gradient for 64 examples, in float32. The Wasserstein distance (512
dimensions) stands against POT's, which takes roots of covariances: with
gradient where PyTorch is installed, else in NumPy and its value alone, which
is less work. The divergence (2048 dimensions) stands against Cholesky
factors of covariances in TensorFlow. The table gives medians over the
rounds, fastest rounds, and how many times as long the formula takes.
"""

import importlib.util

import common
import numpy as np
import ot
import tensorflow as tf

from benchmarks import timing
from tfkd.transport import (
    gaussian_kl,
    gaussian_kl_of_moments,
    gaussian_squared_wasserstein,
)

SMOKE = {"rounds": 2, "batch_size": 8, "wasserstein_width": 12, "kl_width": 12}
TARGETS = {"Wasserstein": 20.0, "KL": 100.0}
_RIDGE = 0.1
_POT_RIDGE = 0.1  # with less, POT's root is NaN in float32

_HEADER = ("distance", "by", "ms", "fastest", "formula takes", "target")


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add("--rounds", type=common.integer(1), default=10, help="timed steps")
    add("--batch-size", type=common.integer(2), default=64, help="examples")
    add(
        "--wasserstein-width",
        type=common.integer(1),
        default=512,
        help="dimensions of the Wasserstein distance",
    )
    add(
        "--kl-width",
        type=common.integer(1),
        default=2048,
        help="dimensions of the divergence",
    )


def run(options):
    """Prints the table."""
    size = options.batch_size
    steps = wasserstein_steps(*features(size, options.wasserstein_width))
    steps |= kl_steps(*features(size, options.kl_width))
    common.say(table(timing.times(steps, options.rounds)))


def features(batch_size, width):
    """The teacher's and the student's, `[batch_size, width]` each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, batch_size, width)).astype("float32")


def wasserstein_steps(teacher, student):
    """(Distance, by what) -> function that computes it, with gradient."""

    def distance(teacher, student):
        return gaussian_squared_wasserstein(x=student, y=teacher)

    if importlib.util.find_spec("torch"):
        formula, how = _pot_in_torch(teacher, student), "POT, PyTorch"
    else:
        formula, how = _pot(teacher, student), "POT, NumPy, value alone"
    return {
        ("Wasserstein", how): formula,
        ("Wasserstein", "graph"): timing.gradient_step(
            distance, teacher, student
        ),
        ("Wasserstein", "XLA"): timing.gradient_step(
            distance, teacher, student, True
        ),
    }


def kl_steps(teacher, student):
    """(Distance, by what) -> function that computes it, with gradient."""

    def divergence(teacher, student):
        return gaussian_kl(x=student, y=teacher, ridge=_RIDGE)

    def dense(teacher, student):
        return dense_kl(student, teacher)

    return {
        ("KL", "covariances"): timing.gradient_step(dense, teacher, student),
        ("KL", "graph"): timing.gradient_step(divergence, teacher, student),
        ("KL", "XLA"): timing.gradient_step(divergence, teacher, student, True),
    }


def dense_kl(x, y):
    """What `tfkd.transport.gaussian_kl` computes, by covariances."""
    moments = []
    for points in (x, y):
        mean = tf.reduce_mean(points, axis=0)
        centred = points - mean
        covariance = tf.matmul(centred, centred, transpose_a=True)
        moments += [mean, covariance / points.shape[0]]
    width = x.shape[-1]
    ridge = _RIDGE * tf.linalg.trace(moments[3]) / width
    load = ridge * tf.eye(width, dtype=x.dtype)
    value = gaussian_kl_of_moments(
        mean_x=moments[0],
        covariance_x=moments[1] + load,
        mean_y=moments[2],
        covariance_y=moments[3] + load,
    )
    return value / width


def table(seconds):
    """The table.

    Args:
        seconds: (Distance, by what) -> `[rounds]`, seconds; the formula
            comes first of its distance.

    Returns:
        A string.
    """
    rows, formula = [], {}
    for (distance, how), values in seconds.items():
        median, fastest = np.median(values), np.min(values)
        row = [distance, how, f"{1000 * median:.2f}", f"{1000 * fastest:.2f}"]
        if distance in formula:
            row += [
                f"{formula[distance] / median:.1f} times as long",
                f"{TARGETS[distance]:.0f}",
            ]
        else:
            formula[distance] = median
            row += ["", ""]
        rows.append(row)
    return common.markdown_table(_HEADER, rows)


def _pot(teacher, student):
    return lambda: ot.gaussian.empirical_bures_wasserstein_distance(
        student, teacher, reg=_POT_RIDGE
    )


def _pot_in_torch(teacher, student):
    import torch

    torch.set_num_threads(timing.THREADS)
    teacher, student = torch.tensor(teacher), torch.tensor(student)
    student.requires_grad_()

    def evaluate():
        value = ot.gaussian.empirical_bures_wasserstein_distance(
            student, teacher, reg=_POT_RIDGE
        )
        return torch.autograd.grad(value**2, student)[0].numpy()

    return evaluate
