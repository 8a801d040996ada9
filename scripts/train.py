"""Trains one network alone, by its labels: a teacher or a baseline.

Writes a Keras file, which distill.py takes as --teacher.
"""

import functools
import pathlib
import time

import common
import resuming
from protocols import PROTOCOLS

from tfkd import models

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
    common.add_reading_arguments(parser)
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
        learning_rate=options.learning_rate
        or PROTOCOLS[options.protocol].rate_of(options.network),
        seed=options.seed,
        protocol=options.protocol,
    )
    output = pathlib.Path(
        options.output
        or common.SAVED_MODELS
        / f"{recipe.network}-{common.slug(options.dataset)}.keras"
    )
    if resuming.is_complete(parser, options, "train"):
        common.say(f"{output} is complete")
        return 0
    writing = common.output_file(output, options.overwrite)
    with (
        resuming.keeping(parser, options, "train") as kept,
        parser.opening("--output", writing) as file,
    ):
        with parser.checking("--dataset"):
            dataset = common.load_data(
                options.dataset,
                protocol=recipe.protocol,
                batch_size=recipe.batch_size,
                examples_per_class=options.examples_per_class,
                seed=recipe.seed,
                **common.reading(options),
            )
        with parser.checking("--network"):
            network = common.build(recipe, dataset)
        common.say(
            f"{common.describe(dataset, recipe.protocol)}\n{network.name}, "
            f"width {recipe.width:g}: {network.count_params():,} parameters"
        )
        on_test = common.validates_on_test(recipe.protocol)
        seen = "test" if on_test else "validation"
        rows = common.train(
            network,
            dataset,
            recipe,
            progress=functools.partial(_show, seen),
            kept=kept,
        )
        network.save(file)
    test = common.evaluate(network, dataset.test)
    best = common.best_epoch(rows)
    if on_test:
        summary = (
            f"test {common.percent(test.accuracy)} % after the last epoch, "
            f"{common.percent(best['validation_accuracy'])} % after the best, "
            f"epoch {best['epoch']}"
        )
    else:
        validation = common.percent(rows[-1]["validation_accuracy"])
        summary = f"validation {validation} %, test "
        summary += f"{common.percent(test.accuracy)} %"
    common.say(
        f"{summary}\nwrote {output} in {time.perf_counter() - started:.0f} s"
    )
    return 0


def _show(seen, row):
    common.say(
        f"epoch {row['epoch']:4}  loss {row['loss']:.4f}  {seen} "
        f"{common.percent(row['validation_accuracy'])} %"
    )


if __name__ == "__main__":
    common.start(main)
