"""`MaximumMeanDiscrepancy`: against double sums, and its limits."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.losses import MaximumMeanDiscrepancy

KERNELS = ("gaussian", "polynomial", "energy")


def signals(batch=9, width=6, *, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, batch, width)).astype(dtype)


def expected(kernel, y_true, y_pred, masses=None):
    """By a double sum over examples, in float64."""
    y_true, y_pred = np.float64(y_true), np.float64(y_pred)
    masses = np.full(len(y_true), 1 / len(y_true)) if masses is None else masses
    if kernel == "gaussian":
        squared = reference.pairwise_cost(y_true, y_pred, "squared_euclidean")
        width = np.median(squared)  # an odd number of pairs of equal mass

        def of(x, y):
            return np.exp(-np.sum((x - y) ** 2) / (2 * width))

    elif kernel == "polynomial":

        def of(x, y):
            return np.sum(reference.unit(x) * reference.unit(y)) ** 2

    else:

        def of(x, y):
            return -np.sqrt(np.sum((x - y) ** 2))

    return reference.maximum_mean_discrepancy(y_true, y_pred, masses, of)


def gradient(loss, y_true, y_pred):
    y_pred = tf.convert_to_tensor(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss(y_true, y_pred)
    return tape.gradient(value, y_pred)


def test_energy_of_pairs_on_a_line():
    """Twice the mean over (5, 7, 1, 3), less the means 4/2 and 2/2."""
    loss = MaximumMeanDiscrepancy("energy")
    value = loss([[0.0], [4.0]], [[5.0], [7.0]])
    np.testing.assert_allclose(value, 2 * 4 - 2 - 1, rtol=1e-6)


def test_polynomial_of_directions():
    """(1, 0) against (0, 5): 1 + 1 - 0. Against (-3, 0): 1 + 1 - 2."""
    loss = MaximumMeanDiscrepancy("polynomial")
    np.testing.assert_allclose(loss([[1.0, 0.0]], [[0.0, 5.0]]), 2.0)
    np.testing.assert_allclose(
        loss([[1.0, 0.0]], [[-3.0, 0.0]]), 0.0, atol=1e-6
    )


def test_gaussian_of_two_points_has_their_distance_for_width():
    """2 - 2 exp(-1/2), whatever the distance."""
    loss = MaximumMeanDiscrepancy()
    for distance in (1e-3, 1.0, 1e3):
        np.testing.assert_allclose(
            loss([[0.0]], [[distance]]), 2 - 2 * np.exp(-0.5), rtol=1e-5
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [1, 6, 40])
def test_agrees_with_the_double_sum(kernel, width):
    y_true, y_pred = signals(width=width)
    value = MaximumMeanDiscrepancy(kernel)(y_true, y_pred)
    np.testing.assert_allclose(
        value, expected(kernel, y_true, y_pred), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kernel", ["polynomial", "energy"])
def test_weights_are_masses(kernel):
    y_true, y_pred = signals()
    weights = np.float32([3, 1, 0, 2, 1, 1, 1, 1, 0.5])
    masses = weights / np.sum(weights)
    np.testing.assert_allclose(
        MaximumMeanDiscrepancy(kernel)(y_true, y_pred, sample_weight=weights),
        expected(kernel, y_true, y_pred, masses) * np.mean(weights),
        rtol=1e-5,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_agrees_with_central_differences(kernel, float64):
    """The width of the Gaussian is a constant of the gradient.

    So its double sum here has the width of the undisturbed signals.
    """
    y_true, y_pred = signals(5, 4, dtype="float64")
    loss = MaximumMeanDiscrepancy(kernel)
    if kernel == "gaussian":
        squared = reference.pairwise_cost(y_true, y_pred, "squared_euclidean")
        width = np.median(squared)

        def value(y_pred):
            return reference.maximum_mean_discrepancy(
                y_true,
                y_pred,
                np.full(5, 0.2),
                lambda x, y: np.exp(-np.sum((x - y) ** 2) / (2 * width)),
            )

    else:

        def value(y_pred):
            return expected(kernel, y_true, y_pred)

    np.testing.assert_allclose(
        gradient(loss, y_true, y_pred),
        reference.central_difference(value, y_pred),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_is_never_negative(kernel):
    loss = MaximumMeanDiscrepancy(kernel)
    for seed in range(20):
        y_true, y_pred = signals(seed=seed)
        if seed % 2:
            y_pred = y_true + np.float32(10.0 ** -(seed // 2)) * y_pred
        unit = np.float32(10.0 ** (seed % 5 - 2))
        assert 0 <= loss(unit * y_true, unit * y_pred) < np.inf


@pytest.mark.parametrize("distance", [1e-3, 1.0, 1e3])
def test_gaussian_of_one_example_is_blind_to_the_distance(distance):
    loss = MaximumMeanDiscrepancy("gaussian")
    value = loss([[0.0, 1.0]], [[distance, 1.0]])
    np.testing.assert_allclose(value, 2 - 2 * np.exp(-0.5), rtol=1e-5)
    assert float(loss([[0.0, 1.0]], [[0.0, 1.0]])) == 0.0


def test_energy_draws_pairs_together_to_the_last():
    """Though squares expanded in float32 lose 1e-4 beside 10.

    Of each pair, alone at its place: 2/n |t_i - s_i| / n, so a gradient of
    2 / n^2 along the pair; the others', and Keras' mean, leave it so.
    """
    y_true = 10 * np.eye(6, dtype="float32")
    y_pred = y_true.copy()
    y_pred[0, 1] += 1e-4
    value = MaximumMeanDiscrepancy("energy")(y_true, y_pred)
    np.testing.assert_allclose(value, 2 * 1e-4 / 36, rtol=0.05)
    slope = gradient(MaximumMeanDiscrepancy("energy"), y_true, y_pred)
    np.testing.assert_allclose(slope[0, 1], 2 / 36, rtol=0.01)


@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_moving_and_turning_the_space_changes_nothing(kernel):
    y_true, y_pred = signals(dtype="float64")
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    loss = MaximumMeanDiscrepancy(kernel)
    np.testing.assert_allclose(
        loss.call(y_true @ turn + 7, y_pred @ turn + 7),
        loss.call(y_true, y_pred),
        rtol=1e-9,
    )


def test_scale_of_the_signals():
    """No part of the Gaussian and of directions; a factor of the energy."""
    y_true, y_pred = signals()
    for kernel, factor in (("gaussian", 1), ("polynomial", 1), ("energy", 8)):
        loss = MaximumMeanDiscrepancy(kernel)
        np.testing.assert_allclose(
            loss(8 * y_true, 8 * y_pred),
            factor * loss(y_true, y_pred),
            rtol=1e-5,
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_hard_signals_have_finite_gradients(kernel, batch):
    y_true, y_pred = signals(batch)
    loss = MaximumMeanDiscrepancy(kernel)
    for case in (
        (y_true, y_true),
        (np.ones_like(y_true), y_pred),
        (y_true, np.ones_like(y_true)),
        (np.ones_like(y_true), np.ones_like(y_true)),
        (np.zeros_like(y_true), np.zeros_like(y_true)),
        (y_true[:1].repeat(batch, axis=0), y_true),
        (1e4 * y_true, y_pred),
    ):
        assert np.isfinite(loss(*case))
        assert np.all(np.isfinite(gradient(loss, *case)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_is_not_hidden(kernel):
    y_true, y_pred = signals()
    y_pred[3, 2] = np.nan
    assert np.isnan(MaximumMeanDiscrepancy(kernel)(y_true, y_pred))


@pytest.mark.parametrize("kernel", ["polynomial", "energy"])
def test_kernels_compile(kernel):
    """The default's does in the contract test."""
    loss = MaximumMeanDiscrepancy(kernel)
    arguments = [tf.constant(side) for side in signals()]
    compiled = tf.function(
        lambda x, y: (loss(x, y), gradient(loss, x, y)), jit_compile=True
    )
    for tensor, same in zip(
        compiled(*arguments),
        (loss(*arguments), gradient(loss, *arguments)),
        strict=True,
    ):
        np.testing.assert_allclose(tensor, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_is_saved(kernel):
    loss = MaximumMeanDiscrepancy(kernel)
    saved = keras.saving.serialize_keras_object(loss)
    restored = keras.saving.deserialize_keras_object(saved)
    assert restored.kernel == kernel
    np.testing.assert_array_equal(restored(*signals()), loss(*signals()))


@pytest.mark.parametrize("kernel", ["rbf", None])
def test_unknown_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match="`kernel`.*'gaussian', 'polynomial'"):
        MaximumMeanDiscrepancy(kernel)
