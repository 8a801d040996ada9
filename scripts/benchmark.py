"""Times the training step of each method against cross-entropy alone.

Every method runs in turn in each round, so that a noisy machine slows all of
them alike; the table gives medians over the rounds and their ratios.
"""

import time

import common
import keras
import numpy as np
import tensorflow as tf

import tfkd

METHODS = ("ce", "kd", "activations", "jacobian", "fitnet", "ipot", "remd")
SMOKE = {"rounds": 2, "batch_size": 16, "width": 0.0625}
_HEADER = ("method", "ms per step", "against ce")


def parser():
    """The script's argument parser."""
    result = common.Parser(__doc__)
    add = result.add_argument
    add("--rounds", type=common.integer(1), default=20, help="timed steps")
    add("--batch-size", type=common.integer(1), default=64, help="images")
    add(
        "--width",
        type=common.positive_number,
        default=0.25,
        help="of the VGG-4 student and the VGG-9 teacher",
    )
    return result


def step_of(method, batch_size, width):
    """A function that runs one training step of a method.

    Args:
        method: A name of `tfkd.methods`.
        batch_size: Images per step.
        width: Of both networks.

    Returns:
        A function without arguments; its steps were traced.
    """
    keras.utils.set_random_seed(0)
    student, teacher = (
        tfkd.models.build(
            name, num_classes=10, input_shape=(32, 32, 1), width=width
        )
        for name in ("vgg4", "vgg9")
    )
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=tfkd.methods.build(method, student=student, teacher=teacher),
    )
    distiller.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    images = tf.random.normal([batch_size, 32, 32, 1])
    labels = tf.random.uniform([batch_size], 0, 10, tf.int32)

    def step():
        distiller.train_on_batch(images, labels)

    step()
    return step


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of strings, or None for the command line.

    Returns:
        0.
    """
    options = parser().parse(argv, SMOKE)
    steps = {
        method: step_of(method, options.batch_size, options.width)
        for method in METHODS
    }
    # Building a network makes TensorFlow prepare the earlier ones anew.
    for step in steps.values():
        step()
    times = {method: [] for method in METHODS}
    for _ in range(options.rounds):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - start)
    medians = {method: np.median(values) for method, values in times.items()}
    rows = [
        (method, f"{1000 * median:.1f}", f"{median / medians['ce']:.2f}")
        for method, median in medians.items()
    ]
    common.say(common.markdown_table(_HEADER, rows))
    return 0


if __name__ == "__main__":
    common.start(main)
