"""Times the training step of every method against cross-entropy alone.

Of a method with a stage before the main one, both are timed: ab and fsp
compare nothing in the main one. Steps run without XLA. Networks of equal
widths suit every method. Times are medians over the rounds, and those of the
fastest rounds, and so are the ratios.
"""

import argparse

import common
import keras
import numpy as np
import tensorflow as tf

import tfkd
from benchmarks import timing

SMOKE = {
    "methods": ["kd", "ft", "crd"],
    "rounds": 2,
    "batch_size": 4,
    "width": 0.25,
    "teacher": "resnet8",
    "examples": 64,
}
NUM_CLASSES = 100
_HEADER = (
    "method",
    "ms per step",
    "fastest",
    "against ce",
    "fastest against ce",
)


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add(
        "--methods",
        nargs="+",
        type=_method,
        default=list(tfkd.methods.NAMES),
        metavar="METHOD",
        help="which, beside ce; sums such as kd+sp, too",
    )
    add("--rounds", type=common.integer(1), default=10, help="timed steps")
    add("--batch-size", type=common.integer(2), default=64, help="images")
    names = tfkd.models.NAMES
    add("--student", choices=names, default="resnet8")
    add("--teacher", choices=names, default="resnet20")
    add(
        "--width",
        type=common.positive_number,
        default=1.0,
        help="of both networks",
    )
    add(
        "--examples",
        type=common.integer(2),
        default=50_000,
        help="training examples, of which crd keeps embeddings",
    )


def _method(text):
    """An argument type: a method, or a sum of some."""
    try:
        for part in text.split("+"):
            tfkd.methods.describe(part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None
    return text


def run(options):
    """Prints the table."""
    steps = {}
    for method in dict.fromkeys(["ce", *options.methods]):
        steps |= steps_of(method, options)
    seconds = timing.times(steps, options.rounds)
    common.say(
        f"{options.student} beside {options.teacher}, batch "
        f"{options.batch_size}\n"
    )
    common.say(table_of(seconds))


def steps_of(method, options):
    """Functions that run one training step of a method's stages.

    Args:
        method: As of `tfkd.methods.build`.
        options: Those of the table.

    Returns:
        Dict, the method's name -> function without arguments that returns
        the loss; and likewise the name followed by ", stage before". The
        stage's has run once.
    """
    keras.utils.set_random_seed(0)
    networks = {
        role: tfkd.models.build(
            getattr(options, role),
            num_classes=NUM_CLASSES,
            input_shape=(32, 32, 3),
            width=options.width,
        )
        for role in ("student", "teacher")
    }
    settings = {}
    if "crd" in method.split("+"):
        settings["crd"] = {"labels": np.arange(options.examples) % NUM_CLASSES}
    whole = tfkd.methods.build(method, **networks, **settings)
    index = tf.range(options.batch_size) % options.examples
    records = {"label": index % NUM_CLASSES, "index": index}
    images = tf.random.normal([options.batch_size, 32, 32, 3])
    steps = {}
    for stage in (*whole.stages, whole):
        name = method if stage is whole else f"{method}, stage before"
        steps[name] = _step(networks, stage, images, records)
        if stage is not whole:
            steps[name]()  # ft's main stage wants a trained paraphraser
    return steps


def _step(networks, matches, images, records):
    distiller = tfkd.Distiller(**networks, matches=matches)
    distiller.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    train = tf.function(distiller.train_step, jit_compile=False)
    return lambda: float(train((images, records))["loss"])


def table_of(seconds):
    """The table.

    Args:
        seconds: Name -> `[rounds]`, seconds; "ce" among them.

    Returns:
        A string.
    """
    rows = []
    for name, values in seconds.items():
        milliseconds = [f"{1000 * f(values):.1f}" for f in (np.median, np.min)]
        ratios = [
            f"{f(values) / f(seconds['ce']):.2f}" for f in (np.median, np.min)
        ]
        rows.append([name, *milliseconds, *ratios])
    return common.markdown_table(_HEADER, rows)
