"""What the tasks of all recipes share: data, networks, schedules, scores.

Of a run's configuration they read these settings:

- "data": name of a dataset of `tfkd.data`; "classes": labels that are kept,
  or None; "examples_per_class": a number, or None for all; "batch_size";
  "augment", "image_size", "validation_from", "ten_crop": as of
  `tfkd.data.load`, where they are there.
- "optimizer": "adam" or "sgd" (momentum 0.9); "learning_rate"; "drops":
  after which shares of the steps the rate falls to a tenth; "decay": of "sgd",
  coupled as in `protocols`, where it is there; "steps".
- "seed": of the weights, the examples and their order.
"""

import functools
import json

import common
import keras
import numpy as np
import protocols
import strategies

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
    return data.load(
        config["data"],
        batch_size=config["batch_size"],
        index=True,
        seed=config["seed"],
        **_given(config, "classes", "examples_per_class", "augment"),
        **_given(config, "image_size", "validation_from"),
    )


def _given(config, *names):
    """Those of some settings that a run has."""
    return {name: config[name] for name in names if config.get(name)}


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
    """The optimizer of a run, with its schedule and its weight decay."""
    rate, drops = config["learning_rate"], config["drops"]
    if drops:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # The last step of the rate before.
            [round(drop * config["steps"]) - 1 for drop in drops],
            [rate * 0.1**number for number in range(len(drops) + 1)],
        )
    if config["optimizer"] == "adam":
        return keras.optimizers.Adam(rate)
    return protocols.CoupledSGD(
        rate, decay=config.get("decay", 0.0), momentum=0.9
    )


def fit(
    trainer,
    dataset,
    config,
    *,
    teacher=None,
    runs=None,
    points=1,
    callbacks=(),
):
    """Trains for the steps of a run, whatever an epoch of the data is.

    Args:
        trainer: A `tfkd.Distiller` or `tfkd.Transferer`, not compiled.
        dataset: A `tfkd.data.Dataset` with indices, which nothing else looks
            at from now on.
        config: The run's configuration.
        teacher: The trainer's teacher, or None.
        runs: The `runs.Runs` beside which the teacher's side of the matches
            is computed in advance; None: the teacher runs in each step, as
            it must where images are augmented or a match draws at random.
        points: How many epochs the callbacks see, each of as many steps.
        callbacks: List of further callbacks.
    """
    steps = max(1, config["steps"] // points)
    trainer.compile(
        optimizer(config),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=_divisor(steps),
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
    # Rows of one seed see one order, whatever else looked at the images.
    dataset.passes.restart()
    trainer.fit(
        train.repeat(),
        epochs=points,
        steps_per_epoch=steps,
        shuffle=False,  # tf.data shuffles.
        verbose=0,
        callbacks=[StopOnDivergence(), *callbacks],
    )


def scores(network, config):
    """A trained network on the test images.

    Args:
        network: A Keras model that returns logits.
        config: The run's configuration.

    Returns:
        Dict with "accuracy", "top-1 error" and "top-5 error", and where some
        images are held out for it "validation", an accuracy; in percent.

    Raises:
        DivergedError: If a logit is not finite.
    """
    dataset = measured(config)
    views = network
    if config.get("ten_crop"):
        views = tfkd.models.average_views(network)
    logits = strategies.predict(views, dataset.test)
    labels = np.concatenate([y.numpy() for _, y in dataset.test])
    accuracy = 100 * common.score(logits, labels, network.name).accuracy
    in_five = keras.ops.in_top_k(labels, logits, k=min(5, logits.shape[1]))
    results = {
        "accuracy": accuracy,
        "top-1 error": 100 - accuracy,
        "top-5 error": 100 * (1 - float(np.mean(in_five))),
    }
    if not config.get("validation_from"):
        held_out = common.evaluate(network, dataset.validation)
        results["validation"] = 100 * held_out.accuracy
    return results


def measured(config):
    """The `tfkd.data.Dataset` of a run to measure on, which no seed changes.

    Args:
        config: The run's configuration.
    """
    settings = _given(
        config, "classes", "image_size", "validation_from", "ten_crop"
    )
    photographs = "image_size" in settings
    batch_size = config["batch_size"] if photographs else _EVALUATION_BATCH
    return _measured(config["data"], batch_size, json.dumps(settings))


@functools.lru_cache(1)
def _measured(name, batch_size, settings):
    return data.load(name, batch_size=batch_size, **json.loads(settings))


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
