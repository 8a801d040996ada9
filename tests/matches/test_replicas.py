"""Matches with a state of their own, on two replicas and on one device."""

import pathlib
import subprocess
import sys

# Logical devices must be there before TensorFlow starts.
_REPLICAS = """
import keras
import numpy as np
import tensorflow as tf
import tfkd

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
one = tf.distribute.get_strategy()
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
rng = np.random.default_rng(0)
x = rng.normal(size=(8, 6, 6, 2)).astype("float32")
labels = rng.integers(0, 3, size=8)
# Of the halves that the replicas get the second is the first in another
# order, for what normalises over a batch; or they differ.
repeated = np.array([0, 1, 2, 3, 2, 0, 3, 1])

def network(name, width):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(width, 3, activation="softplus", name="map"),
            keras.layers.GlobalAveragePooling2D(name="features"),
            keras.layers.Dense(3),
        ],
        name=name,
    )

def fitted(strategy, matches_of, examples=slice(None), steps=3):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        student, teacher = network("student", 4), network("teacher", 6)
        matches = matches_of()
        results = []
        for match in matches:
            alone = not match.trains_student
            distiller = tfkd.Distiller(
                student=student,
                teacher=teacher,
                matches=[match],
                label_weight=0.0 if alone else 1.0,
            )
            distiller.compile(
                keras.optimizers.SGD(0.05),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            data = tf.data.Dataset.from_tensors((x[examples], labels[examples]))
            data = data.unbatch().batch(8, drop_remainder=True).repeat(steps)
            before = [np.array(w) for w in distiller.trainable_variables]
            history = distiller.fit(data, epochs=1, verbose=0).history
            results += [value[-1] for value in history.values()]
            results += [np.ravel(w) for w in distiller.weights]
            after = [np.array(w) for w in distiller.trainable_variables]
            moved = [np.any(a != b) for a, b in zip(after, before)]
            assert sum(moved) >= len(match.trainable_variables) > 0
    return np.hstack(results)

def assert_equal(matches_of, **kwargs):
    expected = fitted(one, matches_of, **kwargs)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(
        fitted(two, matches_of, **kwargs), expected, rtol=1e-5, atol=1e-6
    )
    return expected

def variational():
    return [tfkd.VariationalMatch(["map", "features"])]

def factors():
    factor = tfkd.FactorMatch("map", weight=20.0)
    first = tfkd.ParaphraserMatch("map", paraphraser=factor.paraphraser)
    return [first, factor]

assert_equal(variational)
assert_equal(lambda: factors()[:1])
assert_equal(factors, examples=repeated)
assert np.any(
    fitted(one, variational) != fitted(one, variational, examples=repeated)
)

def contrastive():
    return tfkd.ContrastiveMatch(np.arange(8) % 2, negatives=2, dimensions=3)

def networks():
    return {
        "student": network("student", 4), "teacher": network("teacher", 6)
    }

for scope in ("construction", "compile"):
    try:
        if scope == "construction":
            with two.scope():
                tfkd.Distiller(**networks(), matches=[contrastive()])
        else:
            distiller = tfkd.Distiller(**networks(), matches=[contrastive()])
            with two.scope():
                distiller.compile("sgd")
    except ValueError as error:
        assert "2 replicas. Train on one" in str(error), error
    else:
        raise AssertionError(f"not refused at {scope}")
print("equal")
"""


def test_two_replicas_equal_one_device():
    """Losses and all weights after three steps of vid, ft and its stage.

    Batch normalisation, in the translator of ft, is of each replica's part;
    it is given equal parts. Contrastive banks are refused before any step.
    """
    done = subprocess.run(
        [sys.executable, "-c", _REPLICAS],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
