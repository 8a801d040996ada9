"""What the tasks of all recipes share: data, networks, schedules, scores.

Of a run's configuration they read these settings:

- "data": name of a dataset of `tfkd.data`; "classes": labels that are kept,
  or None; "examples_per_class": a number, or None for all; "batch_size";
  "augment".
- "optimizer": "adam" or "sgd" (momentum 0.9); "learning_rate"; "drops":
  after which shares of the steps the rate falls to a tenth; "steps".
- "seed": of the weights, the examples and their order.
"""

import functools

import common
import keras

import tfkd
from tfkd import caching, data, models
from tfkd.callbacks import StopOnDivergence

# Debian's package dataset-fashion-mnist puts it there.
FASHION = "idx:/usr/share/datasets/fashion-mnist"

_EVALUATION_BATCH = 500
# At most so many steps in one call of the graph, of what divides the steps.
_STEPS_PER_CALL = 50


def load(config):
    """The `tfkd.data.Dataset` of a run, with indices as records."""
    settings = {
        name: config[name]
        for name in ("classes", "examples_per_class", "augment", "image_size")
        if config.get(name)
    }
    return data.load(
        config["data"],
        batch_size=config["batch_size"],
        index=True,
        seed=config["seed"],
        **settings,
    )


def build(config, dataset):
    """An untrained network.

    Args:
        config: Dict with "network" and "width", and "seed" of its weights
            if that is to be set here.
        dataset: The `tfkd.data.Dataset` that it is to learn.
    """
    if "seed" in config:
        keras.utils.set_random_seed(config["seed"])
    return models.build(
        config["network"],
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        width=config["width"],
    )


def optimizer(config):
    """The optimizer of a run, with its schedule."""
    rate, drops = config["learning_rate"], config["drops"]
    if drops:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # The last step of the rate before.
            [round(drop * config["steps"]) - 1 for drop in drops],
            [rate * 0.1**number for number in range(len(drops) + 1)],
        )
    if config["optimizer"] == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=0.9)


def fit(trainer, dataset, config, *, teacher=None, runs=None, callbacks=()):
    """Trains for the steps of a run, whatever an epoch is.

    Args:
        trainer: A `tfkd.Distiller` or `tfkd.Transferer`, not compiled.
        dataset: A `tfkd.data.Dataset` with indices.
        config: The run's configuration.
        teacher: The trainer's teacher, or None.
        runs: The `runs.Runs` beside which the teacher's side of the matches
            is computed in advance; None: the teacher runs in each step, as
            it must where images are augmented or a match draws at random.
        callbacks: List of further callbacks.

    Returns:
        The `keras.callbacks.History`, of one epoch.
    """
    trainer.compile(
        optimizer(config),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=_divisor(config["steps"]),
        jit_compile=False,
    )
    train = dataset.train
    if runs is not None and teacher is not None:
        train = caching.with_teacher(
            train,
            teacher=teacher,
            matches=trainer.matches,
            cache_dir=runs.folder / "teachers",
            verbose=0,
        )
    return trainer.fit(
        train.repeat(),
        epochs=1,
        steps_per_epoch=config["steps"],
        shuffle=False,  # tf.data shuffles.
        verbose=0,
        callbacks=[StopOnDivergence(), *callbacks],
    )


def scores(network, config):
    """A trained network on validation and test images.

    Args:
        network: A Keras model that returns logits.
        config: The run's configuration.

    Returns:
        Dict with "accuracy" and "validation", in percent.
    """
    dataset = measured(config)
    return {
        name: 100 * common.evaluate(network, part).accuracy
        for name, part in (
            ("accuracy", dataset.test),
            ("validation", dataset.validation),
        )
    }


def measured(config):
    """The `tfkd.data.Dataset` of a run to measure on, which no seed changes.

    Args:
        config: The run's configuration.
    """
    return _measured(
        config["data"],
        tuple(config.get("classes") or ()),
        config.get("image_size"),
    )


@functools.lru_cache(1)
def _measured(name, classes, image_size):
    return data.load(
        name,
        batch_size=_EVALUATION_BATCH,
        classes=list(classes) or None,
        image_size=image_size,
    )


def trained(config, runs):
    """A task: a network that learns labels alone, and is kept.

    Args:
        config: The run's configuration, with "network" and "width".
        runs: The `runs.Runs`.

    Returns:
        As `scores`.
    """
    dataset = load(config)
    network = build(config, dataset)
    fit(tfkd.Distiller(student=network), dataset, config)
    runs.keep_network(config, network)
    return scores(network, config)


def _divisor(steps):
    """The largest number up to `_STEPS_PER_CALL` that divides the steps."""
    return max(
        size for size in range(1, _STEPS_PER_CALL + 1) if steps % size == 0
    )
