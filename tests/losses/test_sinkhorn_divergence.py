"""`SinkhornDivergence` against Sinkhorn's algorithm in float64."""

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.losses import OptimalTransport, SinkhornDivergence

METRICS = ("cosine", "euclidean", "squared_euclidean")


def _signals(batch=24, width=16, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, width)), rng.normal(
        size=(batch, width)
    ) + 0.3


def _expected(teacher, student, metric, epsilon, masses=None):
    """S by POT: entropic costs at e = epsilon times the mean cost."""
    n = len(teacher)
    masses = np.full(n, 1 / n) if masses is None else masses
    pairs = ((teacher, student), (teacher, teacher), (student, student))
    costs = [reference.pairwise_cost(x, y, metric) for x, y in pairs]
    cross, own, other = (masses @ cost @ masses for cost in costs)
    # The three problems that are solved have the cross one, S and T.
    strength = epsilon * (cross + own + other) / 3
    values = []
    for cost in costs:
        plan = ot.sinkhorn(
            masses,
            masses,
            cost,
            reg=strength,
            method="sinkhorn_log",
            numItermax=20000,
            stopThr=1e-12,
        )
        ratio = np.log(np.maximum(plan, 1e-300) / np.outer(masses, masses))
        values.append(np.sum(plan * cost) + strength * np.sum(plan * ratio))
    return values[0] - (values[1] + values[2]) / 2


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("metric", METRICS)
def test_agrees_with_sinkhorn(metric, epsilon):
    teacher, student = _signals()
    value = SinkhornDivergence(metric, epsilon=epsilon)(
        np.float32(teacher), np.float32(student)
    )
    expected = _expected(teacher, student, metric, epsilon)
    np.testing.assert_allclose(value, expected, rtol=2e-3)


def test_weights_are_masses():
    teacher, student = _signals()
    weights = np.random.default_rng(1).uniform(0.5, 1.5, size=24)
    value = SinkhornDivergence()(
        np.float32(teacher), np.float32(student), sample_weight=weights
    )
    expected = _expected(
        teacher, student, "squared_euclidean", 0.1, weights / weights.sum()
    )
    np.testing.assert_allclose(value, expected * weights.mean(), rtol=2e-3)


def test_a_strong_entropy_compares_means():
    """For squared costs: the product plan, less both spreads."""
    teacher, student = _signals()
    value = SinkhornDivergence(epsilon=1e3)(
        np.float32(teacher), np.float32(student)
    )
    expected = np.sum((teacher.mean(0) - student.mean(0)) ** 2)
    np.testing.assert_allclose(value, expected, rtol=1e-2)


def test_a_weak_entropy_is_transport():
    teacher, student = (np.float32(z) for z in _signals())
    np.testing.assert_allclose(
        SinkhornDivergence(epsilon=1e-3, num_iters=500)(teacher, student),
        OptimalTransport("squared_euclidean", tolerance=1e-4)(teacher, student),
        rtol=1e-2,
    )


@pytest.mark.parametrize("metric", METRICS)
def test_is_zero_with_no_gradient_at_the_teacher(metric):
    """There it is least; a biased loss would pull towards the mean."""
    teacher = tf.constant(_signals()[0], tf.float32)
    student = tf.identity(teacher)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = SinkhornDivergence(metric)(teacher, student)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(value, student), 0.0 * student, atol=1e-4
    )


@pytest.mark.parametrize("seed", range(5))
def test_is_never_negative(seed):
    teacher, student = _signals(12, 3, seed=seed)
    for epsilon in (0.02, 0.1, 1.0):
        loss = SinkhornDivergence(epsilon=epsilon)
        assert loss(np.float32(teacher), np.float32(student)) > 0


def test_gradient_agrees_with_central_differences():
    """At a fixed strength: the mean cost is a constant of the gradient."""
    teacher, student = _signals(6, 3)
    strength = {}

    def fixed(y):
        pairs = ((teacher, y), (teacher, teacher), (y, y))
        mean = np.mean(
            [
                reference.pairwise_cost(*pair, "squared_euclidean").mean()
                for pair in pairs
            ]
        )
        start = strength.setdefault("mean", mean)
        return _expected(teacher, y, "squared_euclidean", 0.5 * start / mean)

    fixed(student)
    expected = reference.central_difference(fixed, student, step=1e-4)
    signal = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(signal)
        loss = SinkhornDivergence(epsilon=0.5, num_iters=300)
        value = loss.call(teacher, signal)[0]
    np.testing.assert_allclose(
        tape.gradient(value, signal), expected, rtol=1e-4, atol=1e-6
    )


def test_the_teachers_term_sends_no_gradient():
    """To y_true goes only that of the cross term: nothing where it is flat.

    All of the student's signals at one point: the plan is the product, and
    the gradient to teacher i is that of its mean squared distance.
    """
    teacher, _ = _signals(6, 3)
    student = np.zeros_like(teacher)
    signal = tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch(signal)
        value = SinkhornDivergence().call(signal, student)[0]
    np.testing.assert_allclose(
        tape.gradient(value, signal), 2 * teacher / 6, rtol=1e-6
    )


def test_equal_points_one_example_and_nan():
    """Equal points: zero. One example: its cost. NaN: NaN."""
    loss = SinkhornDivergence()
    assert loss(tf.ones([5, 2]), tf.ones([5, 2])) == 0
    np.testing.assert_allclose(loss([[0.0, 0.0]], [[3.0, 4.0]]), 25, rtol=1e-6)
    assert np.isnan(loss([[0.0], [1.0]], [[np.nan], [1.0]]))


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"cost": "manhattan"}, "cost"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"num_iters": 0}, "num_iters"),
    ],
)
def test_settings_out_of_range_are_refused(settings, argument):
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        SinkhornDivergence(**settings)
