"""What input noise adds to a loss: propositions 1 and 2, equations 2 and 3.

Srinivas & Fleuret 2018, in float64. Noise is a cubature: the mean over the
points x +- rho e_d along all D axes, which has the moments of Gaussian noise
of variance s^2 = rho^2 / D up to the third, and so is exact for squared errors
of functions that are linear between the points. For functions that are not,
noise is Gauss-Hermite quadrature or a sample.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import bind, jacobian, run

import tfkd
from tfkd.trace import Trace

_RHO = 0.2

# Noise is on the input of the network that is used, by moving statistics.
_match = functools.partial(tfkd.JacobianMatch, batch_statistics="moving")
_penalty = functools.partial(tfkd.JacobianPenalty, batch_statistics="moving")


def _dense_network():
    """Two hidden layers of rectifiers."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(12),
            keras.layers.ReLU(),
            keras.layers.Dense(8),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ]
    )


def _convolutional_network():
    """Max pooling, convolutions, and BatchNormalization in between."""
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(6, 2, padding="same"),
            keras.layers.ReLU(),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(5, 2, padding="same"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def _set_weights(model, x, seed):
    """Random weights with kinks far from x, and outputs of order 1 there.

    Biases lead each rectifier 3 above or below zero, in turns.
    """
    rng = np.random.default_rng(seed)
    for layer, following in itertools.pairwise([*model.layers, None]):
        if isinstance(layer, keras.layers.BatchNormalization):
            scale, shift, mean, variance = rng.uniform(0.5, 1.5, [4, 6])
            layer.set_weights([scale, shift, mean, variance])
        elif layer.weights:
            kernel = rng.normal(size=layer.kernel.shape)
            kernel /= np.sqrt(np.prod(kernel.shape[:-1]))
            if following is None:
                kernel *= 3.0 if x.ndim == 2 else 30.0
            layer.set_weights([kernel, np.zeros(kernel.shape[-1])])
            values = keras.Model(model.inputs[0], layer.output)(x).numpy()
            center = values.mean(axis=tuple(range(values.ndim - 1)))
            kinks = 3.0 * (-1.0) ** np.arange(len(center))
            ends = rng.normal(size=len(center))
            layer.bias.assign((kinks if following else ends) - center)


def _inputs(kind):
    """Three inputs of one region, as is tested."""
    rng = np.random.default_rng(5)
    near = 0.05 * rng.normal(size=(3, 4) if kind == "dense" else (3, 4, 4, 2))
    if kind == "dense":
        return near + rng.normal(size=4)
    # The entries of each pooled window are a unit apart.
    windows = rng.permuted(np.tile(np.arange(-1.5, 2.0), (2, 2, 2, 1)), axis=-1)
    windows = windows.reshape(2, 2, 2, 2, 2)  # [i, j, channels, rows, columns]
    return near + windows.transpose(0, 3, 1, 4, 2).reshape(4, 4, 2)


def _pattern(model, x):
    """Which rectifiers are open and which entries are pooled, `[batch, n]`."""
    places = [layer.output for layer in model.layers[:-1]]
    inner = keras.Model(model.inputs[0], places)
    inputs = [x, *(values.numpy() for values in inner(x))]
    parts = []
    for layer, values in zip(model.layers, inputs, strict=True):
        if isinstance(layer, keras.layers.ReLU):
            parts.append(values > 0)
        elif isinstance(layer, keras.layers.MaxPooling2D):
            windows = values.reshape(len(x), 2, 2, 2, 2, 2)
            windows = windows.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
            parts.append(np.argmax(windows, axis=-1))
    return np.concatenate([part.reshape(len(x), -1) for part in parts], 1)


def _axes(x, rho):
    """The points x +- rho e_d, `[2 D batch, ...]`, point by point."""
    shape = x.shape[1:]
    directions = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    points = [x + s * rho * d for d in directions for s in (1, -1)]
    return np.concatenate(points)


@pytest.fixture(params=["dense", "convolutional"])
def region(float64, request):
    """Student, teacher, and inputs whose neighbourhoods are linear regions.

    A region of one pattern is convex: when the extreme points x +- rho e_d
    show the pattern of x, so does all that lies between them.
    """
    make = {"dense": _dense_network, "convolutional": _convolutional_network}
    x = _inputs(request.param)
    models = [make[request.param]() for _ in range(2)]
    for seed, model in enumerate(models):
        _set_weights(model, x, seed)
        pattern = _pattern(model, x)
        open_share = np.mean(pattern > 0)
        assert 0.2 < open_share < 0.8
        around = _pattern(model, _axes(x, _RHO))
        points = len(around) // len(x)
        np.testing.assert_array_equal(around, np.tile(pattern, (points, 1)))
    return *models, x


def _added(error, x, rho=_RHO):
    """What noise adds to the mean error, divided by its variance."""
    added = np.mean(error(_axes(x, rho))) - np.mean(error(x))
    return added / (rho**2 / x[0].size)


def _points(values, x):
    """Values of the examples, repeated for all points around them."""
    return np.tile(values, (len(x) // len(values),) + (1,) * (values.ndim - 1))


# === Proposition 1 ===


def test_noisy_outputs_are_outputs_and_jacobians(region):
    """To the last digits: the whole loss, and the added term alone."""
    student, teacher, x = region
    match = bind(tfkd.Match(tfkd.losses.SquaredError()), student, teacher)

    def value(x):
        x = tf.constant(x)
        observed = match.observe(Trace(teacher, x))
        return float(match.value(Trace(student, x), observed))

    noisy = value(_axes(x, _RHO))
    variance = _RHO**2 / x[0].size
    term = float(run(_match(of="all"), student, teacher, x))
    np.testing.assert_allclose(noisy, value(x) + variance * term, rtol=1e-12)
    np.testing.assert_allclose((noisy - value(x)) / variance, term, rtol=1e-12)


@pytest.mark.parametrize("of", ["label", "top"])
def test_noise_on_one_output_adds_its_row(region, of):
    student, teacher, x = region
    labels = np.array([2, 0, 1])
    chosen = labels if of == "label" else np.argmax(teacher(x), axis=-1)

    def error(x):
        difference = (teacher(x) - student(x)).numpy()
        return difference[np.arange(len(x)), _points(chosen, x)] ** 2

    term = run(_match(of=of), student, teacher, x, labels)
    np.testing.assert_allclose(_added(error, x), term, rtol=1e-12)


@pytest.mark.parametrize("batch_statistics", ["frozen", "batch"])
def test_other_statistics_are_another_function(region, batch_statistics):
    """With BatchNormalization noise adds the "moving" term and no other."""
    student, teacher, x = region
    terms = [
        float(
            run(
                tfkd.JacobianMatch(of="all", batch_statistics=statistics),
                student,
                teacher,
                x,
            )
        )
        for statistics in ("moving", batch_statistics)
    ]
    if x.ndim == 2:
        np.testing.assert_allclose(*terms, rtol=1e-12)
    else:
        assert abs(terms[0] - terms[1]) > 0.01 * terms[0]


# === Proposition 2 ===


def test_noisy_labels_are_labels_and_the_norm(region):
    student, _, x = region
    y = np.random.default_rng(1).normal(size=(len(x), 3))

    def error(x):
        return np.sum((_points(y, x) - student(x).numpy()) ** 2, axis=-1)

    term = run(_penalty(of="all"), student, None, x)
    np.testing.assert_allclose(_added(error, x), term, rtol=1e-12)


def test_noise_on_the_labels_output_adds_its_row(region):
    student, _, x = region
    labels = np.array([2, 0, 1])

    def error(x):
        outputs = student(x).numpy()[np.arange(len(x)), _points(labels, x)]
        return (1.0 - outputs) ** 2

    term = run(_penalty(), student, None, x, labels)
    np.testing.assert_allclose(_added(error, x), term, rtol=1e-12)


# === Equations 2 and 3: exact to the order of s^2 ===


def _limit(error, x):
    """The limit of what noise adds, per variance, and two steps towards it.

    The steps are at rho and rho / 2; an error of order rho^2 is four times
    as large at the first.
    """
    wide, narrow = (_added(error, x, rho) for rho in (0.02, 0.01))
    return (4 * narrow - wide) / 3, wide, narrow


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_noise_adds_the_completed_square_where_outputs_agree(
    region, temperature
):
    """Equation 2. The printed form is another number."""
    student, teacher, x = region
    # The student's slopes with the teacher's outputs, at one example.
    x = x[:1]
    offset = (teacher(x) - student(x)).numpy()
    dense = student.layers[-1]
    dense.bias.assign(dense.bias + offset[0])

    def divergence(x):
        log_p, log_q = (
            tf.nn.log_softmax(model(x) / temperature).numpy()
            for model in (teacher, student)
        )
        return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)

    def term(**kwargs):
        loss = tfkd.losses.JacobianCrossEntropy(temperature, **kwargs)
        match = _match(loss, of="all")
        return float(run(match, student, teacher, x))

    limit, wide, narrow = _limit(divergence, x)
    exact = term()
    np.testing.assert_allclose(limit, exact, rtol=1e-6)
    np.testing.assert_allclose(wide - exact, 4 * (narrow - exact), rtol=1e-2)
    assert abs(term(printed=True) - exact) > 0.1 * exact


def _cross_entropy(model, label):
    return lambda x: -tf.nn.log_softmax(model(x)).numpy()[:, label]


def test_noise_adds_half_the_variance_whatever_the_label(region):
    """Equation 3, corrected.

    The printed form changes with the label; its mean over labels drawn from
    the student's own probabilities is twice what noise adds.
    """
    student, _, x = region
    x = x[:1]
    exact = float(run(_penalty("cross_entropy"), student, None, x))
    printed = []
    for label in range(3):
        limit, wide, narrow = _limit(_cross_entropy(student, label), x)
        np.testing.assert_allclose(limit, exact, rtol=1e-6)
        np.testing.assert_allclose(
            wide - exact, 4 * (narrow - exact), rtol=1e-2
        )
        match = _penalty("printed_cross_entropy")
        printed.append(float(run(match, student, None, x, np.array([label]))))
    assert np.all(np.abs(np.array(printed) - exact) > 0.02 * exact)
    assert np.ptp(printed) > exact
    probabilities = tf.nn.softmax(student(x)).numpy()[0]
    np.testing.assert_allclose(probabilities @ printed, 2 * exact, rtol=1e-12)


def test_gaussian_noise_adds_half_the_variance(float64):
    """Equation 3 against a sample of 200000 pairs of opposite draws.

    The terms of odd order cancel in a pair. At this deviation what is left
    of order s^4 is below a standard error.
    """
    student, x = _dense_network(), _inputs("dense")
    _set_weights(student, x, 0)
    x, label, s, pairs = x[:1], 1, 0.03, 200_000
    noise = s * np.random.default_rng(2).normal(size=(pairs, 4))
    assert np.all(_pattern(student, x + noise) == _pattern(student, x))
    loss = _cross_entropy(student, label)
    draws = (0.5 * (loss(x + noise) + loss(x - noise)) - loss(x)) / s**2
    error = draws.std() / np.sqrt(pairs)
    exact = float(run(_penalty("cross_entropy"), student, None, x))
    assert error < 0.01 * exact
    assert abs(draws.mean() - exact) < 4 * error
    match = _penalty("printed_cross_entropy")
    printed = float(run(match, student, None, x, [label]))
    assert abs(draws.mean() - printed) > 100 * error


# === Smooth networks: the terms that the propositions neglect ===


def _smooth_network(activation, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                10, activation, bias_initializer="random_normal"
            ),
            keras.layers.Dense(2),
        ]
    )


def _laplacian(fn, x):
    """[batch, outputs], the trace of the second derivative of each output."""
    x = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = fn(x)
        first = inner.batch_jacobian(y, x)
    second = outer.batch_jacobian(first, x)  # [batch, outputs, d, d]
    return tf.linalg.trace(second).numpy()


def _gaussian_mean(error, x, s):
    """Mean of the error under Gaussian noise, by nine nodes an axis."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = np.array(list(itertools.product(range(9), repeat=3)))
    weights = np.prod(weights[grid], axis=-1) / (2 * np.pi) ** 1.5
    points = x[:, None] + s * nodes[grid]  # [batch, nodes, 3]
    values = error(points.reshape(-1, 3)).reshape(len(x), -1)
    return np.mean(values @ weights)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("proposition", [1, 2])
def test_smooth_networks_have_laplacian_terms(float64, activation, proposition):
    """The Jacobian alone is off by s^2; with the Laplacian, by s^4.

    Half of s^2 times the Laplacian of |T - S|^2 is the Jacobian term plus
    sum (T - S) Lap(T - S); with labels y for T, Lap T is 0.
    """
    student = _smooth_network(activation, 1)
    x = np.random.default_rng(0).normal(size=(4, 3))
    if proposition == 1:
        teacher = _smooth_network(activation, 2)
        match = _match(of="all")
        jacobians = float(run(match, student, teacher, x))
    else:
        labels = np.random.default_rng(1).normal(size=(4, 2))
        match = _penalty(of="all")
        jacobians = float(run(match, student, None, x))

        def teacher(x):
            return np.repeat(labels, len(x) // 4, axis=0)

    def difference(x):
        return (teacher(x) - student(x)).numpy()

    def error(x):
        return np.sum(difference(x) ** 2, axis=-1)

    bends = _laplacian(student, x)
    bends = _laplacian(teacher, x) - bends if proposition == 1 else -bends
    laplacian = np.mean(np.sum(difference(x) * bends, axis=-1))
    added = {
        s: _gaussian_mean(error, x, s) - np.mean(error(x)) for s in (0.04, 0.02)
    }
    with_both, with_one = (
        {s: value - s**2 * term for s, value in added.items()}
        for term in (jacobians + laplacian, jacobians)
    )
    order = np.log2(with_both[0.04] / with_both[0.02])
    np.testing.assert_allclose(order, 4.0, atol=0.05)
    order = np.log2(with_one[0.04] / with_one[0.02])
    np.testing.assert_allclose(order, 2.0, atol=0.05)
    np.testing.assert_allclose(with_one[0.02] / 0.02**2, laplacian, rtol=0.02)
    assert abs(laplacian) > 0.02 * jacobians


def test_the_jacobians_of_the_formulas_are_tensorflows(region):
    """The terms above, once more, from batch Jacobians."""
    student, teacher, x = region
    ours = jacobian(lambda x: student(x, training=False), x)
    theirs = jacobian(lambda x: teacher(x, training=False), x)
    value = run(_match(of="all"), student, teacher, x)
    expected = np.sum((theirs - ours) ** 2) / len(x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    value = run(_penalty(of="all"), student, None, x)
    np.testing.assert_allclose(value, np.sum(ours**2) / len(x), rtol=1e-12)
