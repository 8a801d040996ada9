"""Trains one network alone, by its labels: a teacher or a baseline.

Writes a Keras file, which distill.py takes as --teacher.
"""

import pathlib
import time

import common

from tfkd import data, models

SMOKE = {"epochs": 1, "width": 0.0625}


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0, or as of `common.run`.

    Raises:
        SystemExit: With code 2 on bad input, before any training.
    """
    parser = _parser()
    options = parser.parse(argv, SMOKE)
    return common.run(parser, lambda: _train(parser, options))


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add(
        "--network",
        default=common.RECIPE.network,
        help=f"one of {', '.join(models.NAMES)}",
    )
    add(
        "--width",
        type=common.positive_number,
        default=common.RECIPE.width,
        metavar="FACTOR",
        help="on the channels of the network",
    )
    add(
        "--examples-per-class",
        type=common.count_or_all,
        default="all",
        metavar="N",
        help='training images of each class, or "all"',
    )
    add(
        "--seed",
        type=common.integer(0, 2**32 - 1),
        default=common.RECIPE.seed,
        help="of weights, examples and their order",
    )
    common.add_training_arguments(
        parser,
        epochs=common.RECIPE.epochs,
        batch_size=common.RECIPE.batch_size,
    )
    common.add_output_arguments(
        parser,
        metavar="FILE",
        default="saved_models/NETWORK-DATASET.keras",
        kind=common.keras_file,
    )
    return parser


def _train(parser, options):
    """Checks, trains and writes; returns the exit code."""
    started = time.perf_counter()
    recipe = common.Recipe(
        network=options.network,
        width=options.width,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    output = pathlib.Path(
        options.output
        or common.SAVED_MODELS
        / f"{recipe.network}-{common.slug(options.dataset)}.keras"
    )
    writing = common.output_file(output, options.overwrite)
    with parser.opening("--output", writing) as file:
        with parser.checking("--dataset"):
            dataset = data.load(
                options.dataset,
                batch_size=recipe.batch_size,
                examples_per_class=options.examples_per_class,
                seed=recipe.seed,
            )
        with parser.checking("--network"):
            network = common.build(recipe, dataset)
        common.say(
            f"{common.describe(dataset)}\n{network.name}, width "
            f"{recipe.width:g}: {network.count_params():,} parameters"
        )
        common.train(network, dataset, recipe, progress=_show)
        network.save(file)
    validation = common.evaluate(network, dataset.validation)
    test = common.evaluate(network, dataset.test)
    common.say(
        f"validation {common.percent(validation.accuracy)} %, test "
        f"{common.percent(test.accuracy)} %\nwrote {output} in "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 0


def _show(row):
    common.say(
        f"epoch {row['epoch']:4}  loss {row['loss']:.4f}  validation "
        f"{common.percent(row['validation_accuracy'])} %"
    )


if __name__ == "__main__":
    common.start(main)
