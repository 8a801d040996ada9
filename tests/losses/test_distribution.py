"""`DistributionLoss`: sample weights as masses, and the reduction."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.losses import DistributionLoss


class MeanSignal(DistributionLoss):
    """Squared difference of the batches' means; keeps what it was given."""

    def distance(self, y_true, y_pred, masses):
        self.given = y_true, y_pred, masses
        mean = tf.linalg.matvec(y_true - y_pred, masses, transpose_a=True)
        return tf.reduce_sum(mean * mean)


def test_value_is_repeated_for_each_example():
    """Means 2 and 1: (2 - 1)^2."""
    values = MeanSignal().call([[1.0], [3.0]], [[2.0], [0.0]])
    np.testing.assert_array_equal(values, [1.0, 1.0])
    assert MeanSignal()([[1.0], [3.0]], [[2.0], [0.0]]) == 1.0


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_weights_are_masses(shape):
    """Masses 3/4 and 1/4 put the means at 1.5 and 1.5 + 2; mean weight 2.

    So (2)^2 * 2 = 8.
    """
    weights = np.reshape([3.0, 1.0], shape)
    loss = MeanSignal()
    y_true, y_pred = [[1.0], [3.0]], [[3.0], [5.0]]
    values = loss.call(y_true, y_pred, sample_weight=weights)
    np.testing.assert_allclose(loss.given[2], [0.75, 0.25])
    np.testing.assert_allclose(values, [8.0, 8.0])
    np.testing.assert_allclose(loss(y_true, y_pred, sample_weight=weights), 8.0)


def test_weights_of_zero_give_zero_and_whole_masses():
    """No subclass is given an empty distribution."""
    loss = MeanSignal()
    values = loss.call([[1.0], [3.0]], [[3.0], [5.0]], np.zeros(2))
    np.testing.assert_array_equal(values, [0.0, 0.0])
    np.testing.assert_array_equal(loss.given[2], [0.5, 0.5])


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum_over_batch_size", 8.0),
        ("mean", 8.0),
        ("sum", 16.0),
        ("mean_with_sample_weight", 4.0),
        ("none", [12.0, 4.0]),
        (None, [12.0, 4.0]),
    ],
)
def test_reduces_as_keras_does_with_a_value_per_example(reduction, expected):
    """Value 4 for either example, of weights 3 and 1."""
    loss = MeanSignal(reduction=reduction)
    value = loss(
        [[1.0], [3.0]], [[3.0], [5.0]], sample_weight=np.float32([3, 1])
    )
    np.testing.assert_allclose(value, expected)


def test_is_divided_by_the_number_of_replicas(monkeypatch):
    """As Keras divides every mean: the optimizer adds the replicas up."""
    alone = MeanSignal()([[1.0]], [[3.0]])
    two = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: two)
    assert MeanSignal()([[1.0]], [[3.0]]) == alone / 2


def test_gives_the_subclass_at_least_float32():
    for dtype, expected in (
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float64", "float64"),
    ):
        loss = MeanSignal()
        loss.call(tf.zeros([2, 1], dtype), tf.zeros([2, 1], dtype))
        assert [tensor.dtype for tensor in loss.given] == [expected] * 3


def test_float16_policy_computes_in_float32_all_the_same():
    loss = MeanSignal(dtype="float16")
    value = loss(np.float32([[3.0]]), np.float32([[1.0]]))
    assert value.dtype == tf.float16
    assert [tensor.dtype for tensor in loss.given] == ["float32"] * 3


@pytest.mark.parametrize("shape", [(2, 3), (3,), (), (2, 1, 1)])
def test_weights_of_anything_but_examples_are_refused(shape):
    for evaluate in (MeanSignal(), MeanSignal().call):
        with pytest.raises(ValueError, match="`sample_weight`"):
            evaluate(
                [[1.0], [3.0]], [[3.0], [5.0]], sample_weight=np.ones(shape)
            )


def test_shapes_may_differ_where_the_subclass_says_so():
    class AcrossWidths(MeanSignal):
        same_shape = False

        def distance(self, y_true, y_pred, masses):
            return tf.reduce_mean(y_true) - tf.reduce_mean(y_pred)

    y_true, y_pred = [[3.0, 5.0]], [[1.0]]
    assert AcrossWidths()(y_true, y_pred) == 3.0
    with pytest.raises(ValueError, match="same shape"):
        MeanSignal()(y_true, y_pred)


def test_base_has_no_distance():
    with pytest.raises(NotImplementedError):
        DistributionLoss()([[1.0]], [[1.0]])


def test_is_a_keras_loss_in_compile():
    """`fit` weighs, reduces and reports it as any other."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss=MeanSignal())
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    weights = np.float32([1, 1, 1, 0])
    expected = MeanSignal()(y, model(x), sample_weight=weights)
    value = model.evaluate(x, y, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
