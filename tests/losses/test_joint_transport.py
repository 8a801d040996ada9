"""`JointTransport`: features and predictions carried together."""

import keras
import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.losses import JointTransport, OptimalTransport


def _batch(batch=32, width=64, classes=4, *, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "features": rng.normal(size=(batch, width)).astype("float32"),
            "outputs": 2 * rng.normal(size=(batch, classes)).astype("float32"),
        }
        for _ in range(2)
    ]


def _costs(teacher, student, label_distance="squared_euclidean"):
    """Costs of features and of predictions, in float64."""
    features = reference.pairwise_cost(
        teacher["features"], student["features"], "squared_euclidean"
    )
    p, q = (
        np.exp([reference._log_softmax(row) for row in np.float64(outputs)])
        for outputs in (teacher["outputs"], student["outputs"])
    )
    if label_distance == "cross_entropy":
        return features, -p @ np.log(q).T
    return features, reference.pairwise_cost(p, q, "squared_euclidean")


@pytest.mark.parametrize("agree", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0, 100.0, 1e3, None])
@pytest.mark.parametrize(
    "label_distance", ["squared_euclidean", "cross_entropy"]
)
def test_agrees_with_the_exact_cost(label_distance, weight, agree):
    """By default both parts have the same mean.

    Predictions at random or, if they agree, sure of one class in four.
    """
    batch = _batch()
    if agree:
        for side in batch:
            side["outputs"] += 8 * np.eye(4, dtype="float32")[np.arange(32) % 4]
    features, labels = _costs(*batch, label_distance)
    factor = features.mean() / labels.mean() if weight is None else weight
    exact = ot.emd2([], [], features + factor * labels)
    loss = JointTransport(weight, label_distance=label_distance)
    # Predictions of four classes, that is of three dimensions, at 1e3.
    rtol = 0.03 if weight == 1e3 else 5e-3
    np.testing.assert_allclose(loss(*batch), exact, rtol=rtol)


def test_weight_zero_is_transport_of_features():
    batch = _batch()
    np.testing.assert_allclose(
        JointTransport(0.0)(*batch),
        OptimalTransport("squared_euclidean")(
            *(side["features"] for side in batch)
        ),
        rtol=1e-5,
    )


def test_meets_a_tolerance():
    """At any weight, where the default is a hundredth off."""
    batch = _batch()
    features, labels = _costs(*batch)
    exact = ot.emd2([], [], features + 1e3 * labels)
    loss = JointTransport(1e3, tolerance=1e-3)
    np.testing.assert_allclose(loss(*batch), exact, rtol=1e-3)


def test_cross_entropy_is_not_zero_at_the_teacher():
    """All are softmax(0, 0): -log 1/2 each; squared it is zero."""
    side = {"features": tf.eye(2), "outputs": tf.zeros([2, 2])}
    loss = JointTransport(1.0, label_distance="cross_entropy")
    np.testing.assert_allclose(loss(side, side), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(JointTransport(1.0)(side, side), 0, atol=1e-6)


@pytest.mark.parametrize("key", ["features", "outputs"])
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_degenerate_sides(key, value):
    """Constant features or outputs leave the other part; NaN stays."""
    batch = _batch()
    for side in batch:
        side[key] = np.full_like(side[key], value)
    for weight in (None, 10.0):
        got = JointTransport(weight, tolerance=1e-3)(*batch)
        near = JointTransport(weight)(*batch)
        if np.isnan(value):
            assert np.all(np.isnan([got, near]))
            continue
        features, labels = _costs(*batch)
        factor = weight
        if weight is None:
            with np.errstate(divide="ignore"):
                ratio = np.divide(features.mean(), labels.mean())
            factor = 0.0 if np.isinf(ratio) else ratio
        exact = ot.emd2([], [], features + factor * labels)
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(near, exact, rtol=0.1, atol=1e-6)


def test_gradient_agrees_with_central_differences():
    """Of the exact cost, whose plan is clear and one, at a given weight."""
    rng = np.random.default_rng(0)
    order = [2, 0, 4, 1, 3]
    x, h = 3 * rng.normal(size=(5, 4)), 3 * rng.normal(size=(5, 3))
    y, g = (z[order] + 0.1 * rng.normal(size=z.shape) for z in (x, h))
    teacher = {"features": x, "outputs": h}
    for distance in ("squared_euclidean", "cross_entropy"):
        student = {"features": tf.constant(y), "outputs": tf.constant(g)}
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = JointTransport(2.0, label_distance=distance)
            value = loss.call(teacher, student)[0]
        gradients = tape.gradient(value, student)
        for key, point in (("features", y), ("outputs", g)):

            def exact(z, key=key, distance=distance):
                moved = {"features": y, "outputs": g, key: z}
                features, labels = _costs(teacher, moved, distance)
                return reference.exact_transport_cost(features + 2 * labels)

            np.testing.assert_allclose(
                gradients[key],
                reference.central_difference(exact, point),
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": -1.0},
        {"weight": np.inf},
        {"label_distance": "kl"},
        {"num_iters": 0},
        {"tolerance": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (argument,) = settings
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        JointTransport(**settings)


def test_settings_are_saved():
    loss = JointTransport(
        2.0, label_distance="cross_entropy", num_iters=9, tolerance=0.1
    )
    saved = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(saved)
    assert copy.get_config() == loss.get_config()
