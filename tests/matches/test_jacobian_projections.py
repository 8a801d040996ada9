"""Random projections: unbiased, of known variance, seeded and fresh.

For signs v the square |v^T A|^2 has the mean |A|^2 and the variance
2 (|G|^2 - sum G_ii^2) with G = A A^T; along input directions G = A^T A. A mean
of m has an m-th of that. Everything is in float64, and a sample's error is
estimated from the sample.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import jacobian, run, run_each

import tfkd

_DRAWS = 8000


def _network(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((6,)), *layers])


def _log_softmax(model):
    return lambda x: tf.nn.log_softmax(model(x))


def _difference(student, teacher, x):
    return jacobian(teacher, x) - jacobian(student, x)


def _scaled_difference(student, teacher, x):
    roots = np.sqrt(tf.nn.softmax(teacher(x)))[..., None]
    rows = [jacobian(_log_softmax(model), x) for model in (teacher, student)]
    return np.sqrt(0.5) * roots * (rows[0] - rows[1])


def _own(student, teacher, x):
    return jacobian(student, x)


def _own_scaled(student, teacher, x):
    roots = np.sqrt(tf.nn.softmax(student(x)))[..., None]
    return np.sqrt(0.5) * roots * jacobian(_log_softmax(student), x)


_FORMS = {
    "match": (tfkd.JacobianMatch, _difference),
    "cross-entropy": (
        lambda **kwargs: tfkd.JacobianMatch(
            tfkd.losses.JacobianCrossEntropy(), **kwargs
        ),
        _scaled_difference,
    ),
    "penalty": (tfkd.JacobianPenalty, _own),
    "cross-entropy penalty": (
        lambda **kwargs: tfkd.JacobianPenalty("cross_entropy", **kwargs),
        _own_scaled,
    ),
}


@pytest.fixture
def networks(float64):
    return _network(1), _network(2)


@pytest.mark.parametrize("num_projections", [1, 3])
@pytest.mark.parametrize("directions", ["output", "input"])
@pytest.mark.parametrize("form", _FORMS)
def test_mean_and_variance(networks, form, directions, num_projections):
    """Each example of a batch of one input has a draw of its own."""
    make, matrix = _FORMS[form]
    x = np.random.default_rng(0).normal(size=(1, 6))
    (a,) = matrix(*networks, x)
    gram = a @ a.T if directions == "output" else a.T @ a
    variance = 2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2))
    variance /= num_projections
    match = make(num_projections=num_projections, directions=directions, seed=3)
    draws = run_each(match, *networks, np.repeat(x, _DRAWS, axis=0))
    error = np.sqrt(variance / _DRAWS)
    assert abs(draws.mean() - np.sum(a**2)) < 4 * error
    squares = (draws - draws.mean()) ** 2
    error = squares.std() / np.sqrt(_DRAWS)
    assert error < 0.05 * variance
    assert abs(squares.mean() - variance) < 4 * error


@pytest.mark.parametrize("printed", [False, True])
def test_all_signs_together_are_the_whole(networks, printed):
    """The mean over the sixteen signs of four outputs, without a sample."""
    loss = tfkd.losses.JacobianCrossEntropy(printed=printed)
    x = np.random.default_rng(0).normal(size=(1, 6))
    rows = [
        np.sqrt(tf.nn.softmax(networks[1](x)))[..., None]
        * jacobian(_log_softmax(model), x)
        for model in networks
    ]
    signs = 1 - 2 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    projected = [np.einsum("mk,bkd->mbd", signs, r)[:, None, 0] for r in rows]
    mean = loss(projected[1], projected[0])
    whole = run(tfkd.JacobianMatch(loss, of="all"), *networks, x)
    np.testing.assert_allclose(mean, whole, rtol=1e-12)


@pytest.mark.parametrize("directions", ["output", "input"])
def test_steps_draw_anew_and_repeat_from_the_seed(networks, directions):
    """At a learning rate of 0 only the directions change the value.

    In evaluation they stand still.
    """
    student, teacher = networks
    x = np.random.default_rng(0).normal(size=(8, 6))
    labels = np.arange(8) % 4

    def values(seed):
        match = tfkd.JacobianMatch(
            num_projections=1, directions=directions, seed=seed, name="match"
        )
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=[match]
        )
        distiller.compile(keras.optimizers.SGD(0.0), _cross_entropy())
        steps = []
        for run_once in (distiller.train_on_batch, distiller.test_on_batch):
            for _ in range(3):
                distiller.reset_metrics()
                steps.append(run_once(x, labels, return_dict=True)["match"])
        return [float(step) for step in steps]

    first = values(5)
    assert len(set(first[:3])) == 3
    assert len(set(first[3:])) == 1
    assert values(5) == first
    assert not set(values(6)[:3]) & set(first)


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
