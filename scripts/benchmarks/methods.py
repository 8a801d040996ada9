"""Times the training step of each method against cross-entropy alone.

The table gives medians over the rounds and their ratios.
"""

import common
import keras
import numpy as np
import tensorflow as tf

import tfkd
from benchmarks import timing

METHODS = ("ce", "kd", "activations", "jacobian", "fitnet", "ipot", "remd")
SMOKE = {"rounds": 2, "batch_size": 16, "width": 0.0625}
_HEADER = ("method", "ms per step", "against ce")


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add("--rounds", type=common.integer(1), default=20, help="timed steps")
    add("--batch-size", type=common.integer(1), default=64, help="images")
    add(
        "--width",
        type=common.positive_number,
        default=0.25,
        help="of the VGG-4 student and the VGG-9 teacher",
    )


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


def run(options):
    """Prints the table."""
    steps = {
        method: step_of(method, options.batch_size, options.width)
        for method in METHODS
    }
    medians = {
        method: np.median(seconds)
        for method, seconds in timing.times(steps, options.rounds).items()
    }
    rows = [
        (method, f"{1000 * median:.1f}", f"{median / medians['ce']:.2f}")
        for method, median in medians.items()
    ]
    common.say(common.markdown_table(_HEADER, rows))
