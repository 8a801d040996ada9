"""Tasks: networks that are fine-tuned, and compared with their own start."""

import math

import keras
import numpy as np

import tfkd
from recipes import learning
from tfkd import analysis

# What keras.applications' ResNets take: blue, green, red, minus these.
_MEANS = (103.939, 116.779, 123.68)
# What tfkd.data makes of photographs, in units of 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_WATCHED = "features"


def tuned(config, runs):
    """A task: a network of another task that learns a new one.

    Args:
        config: The run's configuration. "start": the run that kept the
            network; "method", "settings": as of `taught.taught`, a method
            that does without a teacher. "layers": where the neurons are
            compared with the start's in the end, or None; "images": on so
            many of the validation's, or some more to fill a batch, or what
            there are; "points": None, or how often those of "features" are
            compared along the way.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`, and the traces of the transport plans: "trace
        LAYER" of each layer in the end, "trace at 1" and so on.
    """
    dataset = learning.load(config)
    start = runs.network(config["start"])
    keras.utils.set_random_seed(config["seed"])
    student = tfkd.models.with_head(start, num_classes=dataset.num_classes)
    # The same layers as the student's; a start may lack its "features".
    reference = tfkd.models.with_head(start, num_classes=dataset.num_classes)
    method = tfkd.methods.build(
        config["method"], student=student, **config["settings"]
    )
    compared = any(match.needs_teacher for match in method.matches)
    trainer = tfkd.Transferer(
        student=student,
        reference="start" if compared else None,
        matches=method,
    )
    held_out = learning.measured(config).validation
    # In whole batches.
    size = next(iter(held_out))[1].shape[0]
    held_out = held_out.take(math.ceil(config["images"] / size))
    callbacks, traces = [], []
    if config["points"]:
        callbacks = [
            analysis.TransportTraceLogger(reference, held_out, [_WATCHED]),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda _, logs: traces.append(
                    float(logs[f"trace_{_WATCHED}"])
                )
            ),
        ]
    learning.fit(
        trainer,
        dataset,
        config,
        points=config["points"] or 1,
        callbacks=callbacks,
    )
    results = learning.scores(student, config)
    for number, trace in enumerate(traces, start=1):
        results[f"trace at {number}"] = trace
    if config["layers"]:
        found = analysis.transport_trace(
            student, reference, held_out, config["layers"]
        )
        for layer, trace in zip(found.layers, found.traces, strict=True):
            results[f"trace {layer}"] = float(trace)
    return results


def pretrained(config, runs):
    """A task: a ResNet-101 of keras.applications that knows ImageNet.

    It takes photographs as `tfkd.data` standardises them.

    Args:
        config: The run's configuration; "weights": as of
            `keras.applications.ResNet101`.
        runs: The `runs.Runs`.

    Returns:
        Dict with its number of "parameters".
    """
    side = config["image_size"]
    inputs = keras.Input((side, side, 3))
    pixels = keras.layers.Rescaling(_STD, _MEAN, name="pixels")(inputs)
    # A fixed convolution turns red, green, blue around.
    turned = keras.layers.Conv2D(3, 1, name="blue_first")
    centered = turned(pixels)
    turned.set_weights([np.eye(3)[::-1].reshape(1, 1, 3, 3), -np.array(_MEANS)])
    turned.trainable = False
    network = keras.applications.ResNet101(
        include_top=False,
        weights=config["weights"],
        input_tensor=centered,
    )
    runs.keep_network(config, network)
    return {"parameters": network.count_params()}
