"""`NeuronTransport`: layers compared neuron by neuron, in any order."""

import pathlib
import subprocess
import sys

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.losses import NeuronTransport

PLANS = ("optimal", "identity", "uniform")


def _layers(batch=16, student=12, teacher=12, *, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, teacher)).astype("float32"),
        rng.normal(size=(batch, student)).astype("float32"),
    )


def _distances(y_true, y_pred):
    """M: root mean squares of differences between columns, `[d, d']`."""
    y_true, y_pred = np.float64(y_true), np.float64(y_pred)
    return np.array(
        [
            [np.sqrt(np.mean((ours - theirs) ** 2)) for theirs in y_true.T]
            for ours in y_pred.T
        ]
    )


def test_values_by_hand():
    """Neurons 5, 1 against 0, 5: 5 stays, 1 goes to 0; in place 5 and 4."""
    teacher, student = [[0.0, 5.0]], [[5.0, 1.0]]
    np.testing.assert_allclose(
        [NeuronTransport(plan)(teacher, student) for plan in PLANS],
        [(0 + 1) / 2, (5 + 4) / 2, (5 + 0 + 1 + 4) / 4],
        rtol=1e-4,
    )


@pytest.mark.parametrize(("student", "teacher"), [(12, 12), (8, 20), (20, 8)])
def test_agrees_with_the_formula(student, teacher):
    y_true, y_pred = _layers(64, student, teacher)
    distances = _distances(y_true, y_pred)
    value = NeuronTransport()(y_true, y_pred)
    np.testing.assert_allclose(value, ot.emd2([], [], distances), rtol=1e-3)
    uniform = NeuronTransport("uniform")(y_true, y_pred)
    np.testing.assert_allclose(uniform, distances.mean(), rtol=1e-5)
    if student == teacher:
        identity = NeuronTransport("identity")(y_true, y_pred)
        expected = np.diag(distances).mean()
        np.testing.assert_allclose(identity, expected, rtol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_the_printed_form_sums_over_the_batch(plan):
    """A norm over 16 examples is 4 times the root of the mean square."""
    layers = _layers()
    normalized = NeuronTransport(plan)(*layers)
    summed = NeuronTransport(plan, normalize=False)(*layers)
    np.testing.assert_allclose(summed, 4 * normalized, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_positions_of_a_map_are_examples(plan):
    """Also for the printed form, whose sum runs over them."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 4, 3, 2, 6)).astype("float32")
    flat = maps.reshape(2, 4 * 3 * 2, 6)
    for normalize in (True, False):
        loss = NeuronTransport(plan, normalize=normalize)
        np.testing.assert_allclose(loss(*maps), loss(*flat), rtol=1e-4)


def test_maps_of_different_size_are_averaged_to_the_smaller():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(4, 8, 6, 5)).astype("float32")
    small = rng.normal(size=(4, 4, 3, 7)).astype("float32")
    pooled = large.reshape(4, 4, 2, 3, 2, 5).mean(axis=(2, 4))
    loss = NeuronTransport()
    np.testing.assert_allclose(
        loss(large, small), loss(pooled, small), rtol=1e-5
    )
    np.testing.assert_allclose(
        loss(small, large), loss(small, pooled), rtol=1e-5
    )


def test_order_of_neurons_does_not_matter():
    y_true, y_pred = _layers()
    rng = np.random.default_rng(1)
    loss = NeuronTransport()
    value = loss(y_true, y_pred)
    for _ in range(3):
        ours, theirs = rng.permutation(12), rng.permutation(12)
        other = loss(y_true[:, theirs], y_pred[:, ours])
        np.testing.assert_allclose(other, value, rtol=1e-5)
    shuffled = loss(y_true, y_true[:, rng.permutation(12)])
    np.testing.assert_allclose(shuffled, 0.0, atol=1e-6)
    identity = NeuronTransport("identity")
    assert identity(y_true, y_true[:, rng.permutation(12)]) > 0.5


def test_a_neuron_twice_is_a_neuron_of_double_mass():
    """So is each of them: the student's width makes no difference."""
    y_true, y_pred = _layers(student=6)
    loss = NeuronTransport()
    np.testing.assert_allclose(
        loss(y_true, np.repeat(y_pred, 2, axis=1)),
        loss(y_true, y_pred),
        rtol=2e-3,
    )


@pytest.mark.parametrize("plan", ["optimal", "identity"])
def test_equal_neurons_have_no_gradient(plan):
    """But for the little that the solver's plan carries elsewhere."""
    y_true, y_pred = _layers()
    y_pred[:, :3] = y_true[:, :3]
    signal = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(signal)
        value = NeuronTransport(plan)(y_true, signal)
    gradient = tape.gradient(value, signal)
    sizes = np.linalg.norm(gradient, axis=0)
    np.testing.assert_allclose(sizes[:3], 0.0, atol=1e-3 * sizes[3:].min())


def test_gradient_agrees_with_central_differences():
    """Of the exact cost, whose plan is clear and one."""
    rng = np.random.default_rng(0)
    y_true = rng.normal(size=(7, 5))
    y_pred = y_true[:, [3, 0, 4, 1, 2]] + 0.1 * rng.normal(size=(7, 5))
    expected = reference.central_difference(
        lambda y: reference.exact_transport_cost(_distances(y_true, y)), y_pred
    )
    signal = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(signal)
        value = NeuronTransport().call(y_true, signal)[0]
    np.testing.assert_allclose(
        tape.gradient(value, signal), expected, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("plan", PLANS)
def test_one_example_no_feature_and_nan(plan):
    """One example: points on a line. Silent neurons: zero. NaN: NaN."""
    loss = NeuronTransport(plan)
    assert np.isfinite(loss(*_layers(batch=1)))
    np.testing.assert_array_equal(loss(*np.zeros([2, 4, 3])), 0.0)
    y_true, y_pred = _layers()
    y_pred[0, 0] = np.nan
    assert np.isnan(loss(y_true, y_pred))


def test_identity_needs_equal_widths():
    with pytest.raises(ValueError, match="the same shape"):
        NeuronTransport("identity")(*_layers(student=8, teacher=20))


@pytest.mark.parametrize(
    "shapes", [((4, 3), (4, 2, 2, 3)), ((4, 5, 3), (4, 6, 3)), ((4,), (4,))]
)
def test_positions_that_differ_are_refused(shapes):
    with pytest.raises(ValueError, match="the last axes of signals"):
        NeuronTransport()(*(tf.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    "settings", [{"plan": "exact"}, {"plan": None}, {"num_iters": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="Invalid value for argument"):
        NeuronTransport(**settings)


_MEASURE = """
import re, sys
import tensorflow as tf
from tfkd.losses import NeuronTransport

loss = NeuronTransport()

@tf.function(jit_compile=sys.argv[1] == "xla")
def step(y_true, y_pred):
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss(y_true, y_pred)
    return value, tape.gradient(value, y_pred)

def peak(neurons):
    y_true, y_pred = (
        tf.random.stateless_normal([64, neurons], [0, seed]) for seed in (0, 1)
    )
    step(y_true, y_pred)
    # Not ru_maxrss, which starts at the parent process's.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024

before = peak(8)
print(peak(2048) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("compiler", ["graph", "xla"])
def test_two_thousand_neurons_fit_in_200_mebibytes(compiler):
    """Beyond the inputs, with the gradient; a matrix of costs has 16."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, compiler],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 16 < float(done.stdout) < 200, done.stdout
