"""Fits by every method under a strategy; a program of its own.

Logical devices and workers must be there before TensorFlow starts, so that
tests run this file as a process: `python replicated.py mirrored`, or
`python replicated.py worker FILE` with TF_CONFIG in the environment.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd

TRANSFER = ("finetune+l2+l2-sp", "lwf+attention+jacobian")
SOME = "kd+ipot+jacobian+sp+fitnet+crd"
EXAMPLES = 13  # Of a batch of 8 the last has five, which replicas share.


def data():
    """Images `[13, 16, 16, 1]`, their labels and weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, 16, 16, 1))
    y = rng.integers(0, 3, size=EXAMPLES)
    return x, y, rng.uniform(0.5, 1.5, size=EXAMPLES)


def all_of_a_distiller():
    """The sum of all methods that a Distiller knows."""
    names = [name for name in tfkd.methods.NAMES if name[:3] != "lwf"]
    return "+".join(n for n in names if n not in ("finetune", "l2", "l2-sp"))


def network(seed, classes=3, synchronized=True):
    """A VGG-4 of 16x16 images."""
    keras.utils.set_random_seed(seed)
    return tfkd.models.build(
        "vgg4",
        num_classes=classes,
        input_shape=(16, 16, 1),
        width=0.03,
        synchronized=synchronized,
    )


def distilled(strategy, names):
    """Logs and weights of a Distiller's stages, two epochs each.

    Args:
        strategy: A `tf.distribute.Strategy`.
        names: A sum of methods.

    Returns:
        Dict of arrays.
    """
    x, y, weights = data()
    records = {"label": y, "index": np.arange(EXAMPLES)}
    results = {}
    with strategy.scope():
        student, teacher = network(0), network(1)
        known = {}
        if "crd" in names.split("+"):
            known["crd"] = {"labels": y, "negatives": 4}
        method = tfkd.methods.build(
            names, student=student, teacher=teacher, **known
        )
        for stage in (*method.stages, method):
            trainer = tfkd.Distiller(
                student=student, teacher=teacher, matches=stage
            )
            results |= _fitted(trainer, (x, records, weights), stage.name)
    return results


def transferred(strategy, names):
    """As `distilled`, of a Transferer; class weights for sample weights."""
    x, y, _ = data()
    with strategy.scope():
        student, teacher = network(0), network(1, classes=5)
        given = {"reference": "start"}
        if "lwf" in names:
            given = {"teacher": teacher, "source_head": True}
        method = tfkd.methods.build(
            names, student=student, teacher=given.get("teacher")
        )
        trainer = tfkd.Transferer(student=student, matches=method, **given)
        return _fitted(
            trainer, (x, y), names, class_weight={0: 0.5, 1: 1.0, 2: 2.0}
        )


def of_statistics(strategy, batch_statistics, synchronized=True):
    """As `distilled`, of a Jacobian with the statistics of the batch."""
    x, y, _ = data()
    with strategy.scope():
        trainer = tfkd.Distiller(
            student=network(0, synchronized=synchronized),
            teacher=network(1),
            matches=[tfkd.JacobianMatch(batch_statistics=batch_statistics)],
            label_weight=0.0,
        )
        return _fitted(trainer, (x, y), batch_statistics)


def _fitted(trainer, arrays, name, **kwargs):
    """What two epochs log and change."""
    trainer.compile(
        keras.optimizers.SGD(1e-5, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = tf.data.Dataset.from_tensor_slices(arrays).batch(8)
    before = [v.numpy() for v in trainer.trainable_weights]
    history = trainer.fit(batches, epochs=2, verbose=0, **kwargs).history
    results = {key: np.array(value) for key, value in history.items()}
    for i, (v, old) in enumerate(
        zip(trainer.trainable_weights, before, strict=True)
    ):
        results[f"change of {v.path} {i}"] = v.numpy() - old
    for i, v in enumerate(trainer.non_trainable_weights):
        results[f"{v.path} {i}"] = v.numpy()
    return {f"{name}: {key}": value for key, value in results.items()}


def inferred(strategy):
    """What `evaluate` and `predict` give, of batches that differ in size."""
    x, y, weights = data()
    with strategy.scope():
        student, teacher = network(0), network(1)
        distiller = tfkd.Distiller(
            student=student,
            teacher=teacher,
            matches=tfkd.methods.build(
                "kd+w2", student=student, teacher=teacher
            ),
        )
        distiller.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8)
    logs = distiller.evaluate(batches, verbose=0, return_dict=True)
    results = {f"evaluate: {key}": np.array(v) for key, v in logs.items()}
    return {**results, "predict": distiller.predict(batches, verbose=0)}


def overflowing(strategy):
    """Weights and scale of float16 where one example's gradient overflows.

    It is another replica's than the first, in each of three steps.
    """
    keras.utils.set_random_seed(0)
    x, y = np.ones([8, 4], "float32"), np.ones([8, 3], "float32")
    y[-1] = 1e4
    with strategy.scope():
        layers = [keras.Input((4,)), keras.layers.Dense(3, dtype="float16")]
        trainer = tfkd.Distiller(student=keras.Sequential(layers))
        trainer.compile(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
            "mean_squared_error",
        )
    trainer.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    scale = trainer.optimizer.dynamic_scale.numpy()
    assert scale == 2.0**12
    weights = [v.numpy() for v in trainer.trainable_weights]
    return {"scale": scale, "kernel": weights[0], "bias": weights[1]}


def checkpointed(strategy, folder, ends):
    """Weights of a training with dropout, of which each fit is another's.

    Args:
        strategy: A `tf.distribute.Strategy`.
        folder: Path of a folder for its checkpoints.
        ends: For each fit the epoch it ends with.

    Returns:
        Dict of arrays.
    """
    x, y, _ = data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for seed, epochs in enumerate(ends):
        with strategy.scope():
            body = network(seed)
            dropped = keras.layers.Dropout(0.5)(body.outputs[0])
            trainer = tfkd.Distiller(student=keras.Model(body.input, dropped))
            trainer.compile(
                keras.optimizers.SGD(0.1, momentum=0.9),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        checkpoints = tfkd.callbacks.Checkpoints(folder)
        trainer.fit(batches, epochs=epochs, verbose=0, callbacks=[checkpoints])
    assert trainer.history.epoch == [*range(ends[-1])]
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 2
    assert all(name.endswith(".checkpoint") for name in names)
    return {f"weight {i}": v.numpy() for i, v in enumerate(trainer.weights)}


def assert_equal(received, expected):
    """Raises where an array differs by more than rounding in float64.

    All methods act in one step, some a million times less than others: only
    so near do weights tell that each has its share.
    """
    assert len(received) == len(expected)
    for (key, expect), value in zip(
        expected.items(), received.values(), strict=True
    ):
        assert not np.any(np.isnan(expect)), key
        scale = np.max(np.abs(expect[np.isfinite(expect)]), initial=0.0)
        np.testing.assert_allclose(
            value, expect, rtol=1e-8, atol=1e-8 * scale + 1e-14, err_msg=key
        )


def use_float64():
    """Everything in float64, and graphs run as they are traced."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    # Of graphs that run twice, optimizing takes most of the time.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )


def _mirrored():
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    one = tf.distribute.get_strategy()
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert two.num_replicas_in_sync == 2
    assert_equal(inferred(two), inferred(one))
    assert_equal(overflowing(two), overflowing(one))
    for kind in ("batch", "frozen"):
        expected = of_statistics(one, kind, synchronized=False)
        assert_equal(of_statistics(one, kind), expected)
        assert_equal(of_statistics(two, kind), expected)
    for names in TRANSFER:
        assert_equal(transferred(two, names), transferred(one, names))
    names = all_of_a_distiller()
    assert_equal(distilled(two, names), distilled(one, names))
    _assert_empty_parts_are_refused(two)
    with tempfile.TemporaryDirectory() as folder:
        _assert_goes_on(two, pathlib.Path(folder))


def _assert_goes_on(strategy, folder):
    """A training by its checkpoints is that of one process, bit for bit."""
    whole = checkpointed(strategy, folder / "whole", [3])
    parts = checkpointed(strategy, folder / "parts", [1, 3])
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)


def _assert_empty_parts_are_refused(strategy):
    x, y, _ = data()
    with strategy.scope():
        trainer = tfkd.Distiller(student=network(0))
        trainer.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    error, message = tf.errors.InvalidArgumentError, "drop_remainder=True"
    with pytest.raises(error, match=message):
        trainer.evaluate(x[:9], y[:9], batch_size=8, verbose=0)


def of_workers(strategy):
    """What workers are compared in; dict of arrays."""
    results = {**inferred(strategy), **overflowing(strategy)}
    results |= distilled(strategy, SOME)
    for names in TRANSFER:
        results |= transferred(strategy, names)
    return results


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        workers = tf.distribute.MultiWorkerMirroredStrategy()
        assert workers.num_replicas_in_sync == 2
        use_float64()
        np.savez(sys.argv[2], *of_workers(workers).values())
        _assert_goes_on(workers, pathlib.Path(sys.argv[2]).parent)
    else:
        use_float64()
        _mirrored()
    print("equal" if sys.argv[1] == "mirrored" else "done")
