"""Distances class by class: against each class by itself."""

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.losses import (
    AttentionTransfer,
    ClassConditional,
    DistributionLoss,
    OptimalTransport,
    RelaxedEarthMover,
    SquaredError,
)


def _batch(batch=48, width=64, classes=5, *, seed=0):
    """Teacher's and student's side, with labels of their own each."""
    rng = np.random.default_rng(seed)
    sides = rng.normal(size=(2, batch, width)).astype("float32")
    labels = rng.integers(0, classes, size=(2, batch))
    return [
        {"features": features, "labels": own}
        for features, own in zip(sides, labels, strict=True)
    ]


def _class(side, k):
    return side["features"][side["labels"] == k]


def _exact(teacher, student, metric):
    """Mean over the common classes of the exact cost within each."""
    common = np.intersect1d(teacher["labels"], student["labels"])
    return np.mean(
        [
            ot.emd2(
                [],
                [],
                reference.pairwise_cost(
                    _class(teacher, k), _class(student, k), metric
                ),
            )
            for k in common
        ]
    )


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize("classes", [1, 2, 5, 30])
def test_is_the_mean_over_classes_of_the_exact_cost(metric, classes):
    """Of 30 classes some are on one side only, some have one example."""
    teacher, student = _batch(classes=classes)
    value = ClassConditional(OptimalTransport(metric))(teacher, student)
    np.testing.assert_allclose(
        value, _exact(teacher, student, metric), rtol=2e-3
    )


def test_meets_a_tolerance():
    teacher, student = _batch()
    loss = ClassConditional(
        OptimalTransport("squared_euclidean", tolerance=1e-4)
    )
    exact = _exact(teacher, student, "squared_euclidean")
    np.testing.assert_allclose(loss(teacher, student), exact, rtol=1.1e-4)


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
def test_relaxed_is_the_mean_over_classes(metric):
    """The dearer way round may be another in each class."""
    teacher, student = _batch(classes=6)
    values = [
        RelaxedEarthMover(metric)._costs(_class(teacher, k), _class(student, k))
        for k in range(6)
    ]
    expected = np.mean(
        [
            reference.relaxed_emd(
                np.float64(cost),
                *(np.full(size, 1 / size) for size in cost.shape),
            )
            for cost in values
        ]
    )
    loss = ClassConditional(RelaxedEarthMover(metric))
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-4)


def test_classes_count_the_same_and_weights_within_them():
    """Class 0: from 0 to 2 and 4 with weights 1 and 3; class 1: from 0 to 3.

    (1/4 * 2 + 3/4 * 4 + 3) / 2 = 3.25 in distance, times the mean weight 2.
    """
    labels = [0, 0, 1]
    teacher = {"features": [[0.0], [0.0], [0.0]], "labels": labels}
    student = {"features": [[2.0], [4.0], [3.0]], "labels": labels}
    loss = ClassConditional(OptimalTransport("euclidean"))
    value = loss(teacher, student, sample_weight=[1.0, 3.0, 2.0])
    np.testing.assert_allclose(value, 6.5, rtol=1e-4)


@pytest.mark.parametrize("inner", [OptimalTransport, RelaxedEarthMover])
def test_no_common_class_gives_zero(inner):
    teacher = {"features": tf.ones([3, 2]), "labels": [0, 1, 2]}
    features = tf.zeros([3, 2])
    with tf.GradientTape() as tape:
        tape.watch(features)
        student = {"features": features, "labels": [3, 4, 4]}
        value = ClassConditional(inner())(teacher, student)
    assert value == 0
    np.testing.assert_array_equal(tape.gradient(value, features), 0.0)


@pytest.mark.parametrize("inner", [OptimalTransport, RelaxedEarthMover])
def test_a_class_of_one_side_has_no_part(inner):
    """Nor does one whose examples on a side have no weight."""
    loss = ClassConditional(inner("squared_euclidean"))
    teacher = {"features": [[0.0], [7.0], [9.0]], "labels": [0, 1, 2]}
    features = tf.constant([[1.0], [5.0], [5.0]])
    with tf.GradientTape() as tape:
        tape.watch(features)
        student = {"features": features, "labels": [0, 3, 2]}
        value = loss(teacher, student, sample_weight=[1.0, 1.0, 0.0])
    np.testing.assert_allclose(value, 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(value, features), [[4 / 3], [0], [0]], rtol=1e-5
    )


@pytest.mark.parametrize(
    "encode",
    [
        lambda labels: labels[:, None],
        lambda labels: np.eye(5)[labels],
        lambda labels: 0.9 * np.eye(5, dtype="float32")[labels] + 0.02,
        lambda labels: labels.astype("float32"),
        lambda labels: labels.astype("uint8"),
    ],
    ids=["column", "one-hot", "smoothed", "float", "bytes"],
)
def test_labels_may_come_in_any_form(encode):
    sides = _batch()
    loss = ClassConditional(OptimalTransport())
    encoded = [{**side, "labels": encode(side["labels"])} for side in sides]
    np.testing.assert_array_equal(loss(*encoded), loss(*sides))


def test_eager_graph_and_xla_agree():
    sides = _batch()
    for inner in (OptimalTransport(), RelaxedEarthMover()):
        loss = ClassConditional(inner)
        for jit_compile in (False, True):
            compiled = tf.function(loss, jit_compile=jit_compile)
            np.testing.assert_allclose(
                compiled(*sides), loss(*sides), rtol=1e-5
            )


def test_gradient_agrees_with_central_differences():
    """Noisy copies: the plan within each class is clear and one."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 0, 1, 1, 2])
    x = 3 * rng.normal(size=(6, 4))
    y = x[[2, 4, 0, 1, 3, 5]] + 0.1 * rng.normal(size=(6, 4))
    teacher = {"features": x, "labels": labels}

    def value(y):
        return _exact(
            teacher, {"features": y, "labels": labels}, "squared_euclidean"
        )

    features = tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch(features)
        student = {"features": features, "labels": labels}
        loss = ClassConditional(OptimalTransport("squared_euclidean"))
        (first, *_) = tf.unstack(loss.call(teacher, student))
    np.testing.assert_allclose(
        tape.gradient(first, features),
        reference.central_difference(value, y),
        rtol=1e-5,
        atol=1e-6,
    )


def test_is_saved_with_the_loss_that_it_wraps():
    loss = ClassConditional(OptimalTransport("euclidean", num_iters=7))
    copy = ClassConditional.from_config(loss.get_config())
    assert copy.loss.get_config() == loss.loss.get_config()


@pytest.mark.parametrize("loss", [SquaredError(), AttentionTransfer(), "mse"])
def test_losses_without_classes_are_refused(loss):
    with pytest.raises(ValueError, match="`loss`.*conditional_distance"):
        ClassConditional(loss)


def test_a_distribution_loss_without_the_method_is_refused():
    class Own(DistributionLoss):
        def distance(self, y_true, y_pred, masses):
            return tf.reduce_sum(y_true)

    with pytest.raises(ValueError, match="conditional_distance"):
        ClassConditional(Own())


def test_one_tensor_a_side_is_refused():
    loss = ClassConditional(OptimalTransport())
    with pytest.raises(ValueError, match="dicts with the keys"):
        loss(tf.ones([2, 3]), tf.ones([2, 3]))
    with pytest.raises(ValueError, match=r"Received: \['features'\]"):
        loss({"features": tf.ones([2, 3])}, {"features": tf.ones([2, 3])})


def test_labels_of_positions_are_refused():
    side = {"features": tf.ones([2, 3]), "labels": tf.ones([2, 3, 4])}
    with pytest.raises(ValueError, match=r"labels.shape=\(2, 3, 4\)"):
        ClassConditional(OptimalTransport())(side, side)
