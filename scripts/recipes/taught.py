"""Tasks: students that a method of `tfkd.methods` teaches, by its name.

Beside those of `learning`, configurations may have these settings:

- "decay": weight decay of all that is trained, coupled as in `protocols`.
- "validation_from", "ten_crop": as of `tfkd.data.load`.
- "points": how often a run is looked at, evenly spread over its steps.
"""

import functools
import json

import common
import keras
import numpy as np
import protocols
import strategies

import tfkd
from recipes import learning
from tfkd import analysis, data
from tfkd.callbacks import StopOnDivergence

# At most so many steps in one call of the graph, of what divides the steps.
_STEPS_PER_CALL = 50
_DATA = ("classes", "augment", "image_size", "validation_from")


def trained(config, runs):
    """A task: as `learning.trained`, with this file's settings.

    Args:
        config: The run's configuration, with "network" and "width".
        runs: The `runs.Runs`.

    Returns:
        As `scores`.
    """
    dataset = load(config)
    network = learning.build(config, dataset)
    learn(tfkd.Distiller(student=network), dataset, config)
    runs.keep_network(config, network)
    return scores(network, config)


def taught(config, runs):
    """A task: a student that learns by a method.

    Args:
        config: The run's configuration. "method": as of `tfkd.methods.build`;
            "settings": dict of what it is given, by part; "label_weight":
            None for the method's own; "teacher": a run, or None for labels
            alone. "stage_share": how long each stage before the main one
            takes, in units of "steps". "points": None, or so many looks, for
            the results "accuracy 1", "label loss 1", "value 1" and so on.
            "aligned": None, or how many test images are put into one plane.
        runs: The `runs.Runs`.

    Returns:
        As `scores`, and what the looks saw; with "aligned" the mean
        "distance" of both features in units of the teacher's spread, and
        the points of "teacher features" and "student features".
    """
    dataset = load(config)
    student = learning.build(config, dataset)
    teacher = config["teacher"] and runs.network(config["teacher"])
    method = tfkd.methods.build(
        config["method"],
        student=student,
        teacher=teacher,
        **_settings(config, dataset),
    )
    for stage in method.stages:
        before = tfkd.Distiller(student=student, teacher=teacher, matches=stage)
        steps = round(config["stage_share"] * config["steps"])
        learn(before, dataset, config, steps=max(1, steps), drops=False)
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=method,
        label_weight=config["label_weight"],
    )
    looks = []
    watcher = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: looks.append(
            {
                "accuracy": scores(student, config)["accuracy"],
                "label loss": float(logs["label_loss"]),
                "value": sum(
                    float(logs[match.name]) for match in method.matches
                ),
            }
        )
    )
    points = config["points"]
    learn(
        distiller,
        dataset,
        config,
        points=points or 1,
        callbacks=[watcher] if points else [],
    )
    results = scores(student, config)
    for number, look in enumerate(looks, start=1):
        results |= {f"{name} {number}": v for name, v in look.items()}
    if config["aligned"]:
        results |= _aligned(student, teacher, config)
    return results


def _settings(config, dataset):
    """What the method's parts are given; labels too where they are needed."""
    settings = {part: {**own} for part, own in config["settings"].items()}
    if "crd" in config["method"].split("+"):
        labels = common.training_labels(dataset)
        settings["crd"] = {**settings.get("crd", {}), "labels": labels}
    return settings


def _aligned(student, teacher, config):
    """How far the student's features are from the teacher's."""
    plane = analysis.feature_alignment(
        student,
        teacher,
        measured(config).test,
        max_examples=config["aligned"],
    )
    return {
        "distance": plane.distance,
        "teacher features": np.round(plane.teacher, 4).tolist(),
        "student features": np.round(plane.student, 4).tolist(),
    }


def load(config):
    """The `tfkd.data.Dataset` of a run, with indices as records."""
    return data.load(
        config["data"],
        batch_size=config["batch_size"],
        index=True,
        seed=config["seed"],
        examples_per_class=config["examples_per_class"],
        **{name: config[name] for name in _DATA if config.get(name)},
    )


def measured(config):
    """The `tfkd.data.Dataset` of a run to measure on, which no seed changes.

    Args:
        config: The run's configuration.
    """
    names = ("classes", "image_size", "validation_from", "ten_crop")
    settings = {name: config[name] for name in names if config.get(name)}
    batch = config["batch_size"] if "image_size" in settings else 500
    return _measured(config["data"], batch, json.dumps(settings))


@functools.lru_cache(1)
def _measured(name, batch_size, settings):
    return data.load(name, batch_size=batch_size, **json.loads(settings))


def optimizer(config, *, drops=True):
    """The optimizer of a run, with its schedule and its weight decay.

    Args:
        config: The run's configuration.
        drops: Whether the rate falls.
    """
    own = learning.optimizer(config if drops else {**config, "drops": []})
    if not config.get("decay"):
        return own
    return protocols.CoupledSGD.from_config(
        {**own.get_config(), "decay": config["decay"]}
    )


def learn(
    trainer,
    dataset,
    config,
    *,
    steps=None,
    drops=True,
    points=1,
    callbacks=(),
):
    """Trains for the steps of a run, whatever an epoch of the data is.

    Args:
        trainer: A `tfkd.Distiller` or `tfkd.Transferer`, not compiled.
        dataset: A `tfkd.data.Dataset` with indices.
        config: The run's configuration.
        steps: Those of the training; None: the run's.
        drops: Whether the rate falls.
        points: How many epochs the callbacks see, each of as many steps.
        callbacks: List of further callbacks.
    """
    steps = max(1, (steps or config["steps"]) // points)
    per_call = max(
        size for size in range(1, _STEPS_PER_CALL + 1) if steps % size == 0
    )
    trainer.compile(
        optimizer(config, drops=drops),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=per_call,
        jit_compile=False,
    )
    trainer.fit(
        dataset.train.repeat(),
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
        Dict with "accuracy", "top-1 error" and "top-5 error", in percent.
    """
    test = measured(config).test
    if config.get("ten_crop"):
        network = tfkd.models.average_views(network)
    logits = strategies.predict(network, test)
    if not np.all(np.isfinite(logits)):
        raise common.DivergedError(
            f"network '{network.name}' returns numbers that are not finite."
        )
    labels = np.concatenate([y.numpy() for _, y in test])
    own = logits[np.arange(len(labels)), labels]
    # Of equal logits, the first is the answer.
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = np.sum(
        (logits > own[:, None]) | ((logits == own[:, None]) & before), axis=1
    )
    return {
        "accuracy": 100 * float(np.mean(rank == 0)),
        "top-1 error": 100 * float(np.mean(rank > 0)),
        "top-5 error": 100 * float(np.mean(rank >= 5)),
    }
