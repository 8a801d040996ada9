"""What every loss of `tfkd.losses` promises, found by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.losses.distribution import flatten

LOSSES = [
    getattr(losses, name)
    for name in losses.__all__
    if name != "DistributionLoss"
]
# Losses that take nothing but maps; `fit` makes them of vectors.
OF_MAPS = (losses.AttentionTransfer, losses.NeuronSelectivity)
# Losses that are least, but not zero, at the teacher, and ask only for its
# signs, which have no gradient.
OF_SIGNS = (losses.ActivationBoundary,)
# Losses whose value falls with the number of examples, as published.
FALLING = (losses.SimilarityPreserving, losses.ProbabilisticTransfer)
# Losses of neighbours in the batch: they depend on its order, and an example
# that is there twice is its own neighbour.
OF_NEIGHBOURS = (losses.CorrelationCongruence,)
BATCH = 8


class OfSignals:
    """A loss of dicts, as one of features.

    The labels are two classes by the first feature's sign, on either side
    the teacher's; the outputs are three of the features.
    """

    def __init__(self, loss):
        self.loss = loss

    def __getattr__(self, name):
        return getattr(self.loss, name)

    def like(self, loss):
        return OfSignals(loss)

    def _sides(self, y_true, y_pred):
        y_true, y_pred = (
            tf.convert_to_tensor(y_true),
            tf.convert_to_tensor(y_pred),
        )
        count = tf.shape(y_true)[0]
        first = tf.reshape(y_true, [count, -1])[:, 0]
        sides = []
        for side in (y_true, y_pred):
            outputs = tf.reshape(side, [tf.shape(side)[0], -1])[:, :3]
            sides.append(
                {
                    "features": side,
                    "outputs": outputs,
                    "labels": tf.cast(first > 0, tf.int32),
                }
            )
        return sides

    def __call__(self, y_true, y_pred, sample_weight=None):
        return self.loss(*self._sides(y_true, y_pred), sample_weight)

    def call(self, y_true, y_pred):
        return self.loss.call(*self._sides(y_true, y_pred))


class OnTensors:
    """A loss of structured signals as one of tensors `[batch, ...]`."""

    def __init__(self, loss, structure):
        self.loss = loss
        self.structure = structure
        self.same_shape = True

    def like(self, loss):
        return OnTensors(loss, self.structure)

    def __call__(self, y_true, y_pred, sample_weight=None):
        arguments = self.structure(y_true, y_pred)
        return self.loss(*arguments, sample_weight=sample_weight)

    def call(self, y_true, y_pred):
        return self.loss.call(*self.structure(y_true, y_pred))

    def get_config(self):
        return self.loss.get_config()


def with_labels(y_true, y_pred):
    """Logits of one class more, and labels that the examples carry along."""
    logits = [tf.convert_to_tensor(y) for y in (y_true, y_pred)]
    logits = [flatten(y) if y.shape.rank == 4 else y for y in logits]
    labels = tf.argmax(flatten(logits[0]), axis=-1)
    logits = [tf.concat([y, 0 * y[..., :1]], axis=-1) for y in logits]
    return [{"outputs": y, "labels": labels} for y in logits]


def as_two_maps(y_true, y_pred):
    """A map and the same with its channels the other way round."""
    sides = []
    for y in map(tf.convert_to_tensor, (y_true, y_pred)):
        while y.shape.rank < 4:
            y = y[:, None]
        sides.append([y, y[..., ::-1]])
    return sides


STRUCTURES = {
    losses.DecoupledTargets: with_labels,
    losses.SolutionFlow: as_two_maps,
}


@pytest.fixture(params=LOSSES, ids=lambda cls: cls.__name__)
def loss(request):
    return make(request.param)


def make(loss_class):
    """A loss, with what it cannot be made without, of tensors."""
    if loss_class is losses.ClassConditional:
        return OfSignals(loss_class(losses.OptimalTransport()))
    loss = loss_class()
    if loss_class in STRUCTURES:
        return OnTensors(loss, STRUCTURES[loss_class])
    of_features = getattr(loss, "signals", ("features",)) == ("features",)
    return loss if of_features else OfSignals(loss)


def signals(batch=BATCH, width=12, *, dtype="float32", seed=0):
    """Teacher's and student's signal, `[batch, width]`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, batch, width)).astype(dtype)


def fit(loss, signals):
    """Signals `[batch, width]` as maps, one column wide, if need be."""
    if isinstance(loss, OF_MAPS) and np.ndim(signals[0]) == 2:
        return [signal[:, :, None, None] for signal in signals]
    return signals


def value_and_gradients(loss, y_true, y_pred):
    y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
    with tf.GradientTape() as tape:
        tape.watch([y_true, y_pred])
        value = loss(y_true, y_pred)
    gradients = tape.gradient(
        value, [y_true, y_pred], unconnected_gradients="zero"
    )
    return value, *gradients


def at_the_teacher():
    return np.stack([signals()[0]] * 2)


HARD = {
    "at the teacher": at_the_teacher(),
    "constant teacher": np.stack([np.ones((8, 12)), signals()[1]]),
    "constant student": np.stack([signals()[0], np.ones((8, 12))]),
    "both constant": np.ones((2, 8, 12)),
    "both zero": np.zeros((2, 8, 12)),
    "zero student": np.stack([signals()[0], np.zeros((8, 12))]),
    "fewer examples than dimensions": signals(3, 40),
    "batch of one": signals(1, 12),
    "one dimension": signals(8, 1),
    "large": 1e4 * signals(),
    "small": 1e-6 * signals(),
    "map": signals(4, 18).reshape(2, 4, 3, 3, 2),
}


@pytest.mark.parametrize("case", HARD)
def test_value_and_gradients_are_finite(loss, case):
    y_true, y_pred = fit(loss, HARD[case].astype("float32"))
    for tensor in value_and_gradients(loss, y_true, y_pred):
        assert np.all(np.isfinite(tensor))


def test_value_is_a_number_and_per_example_before_reduction(loss):
    y_true, y_pred = fit(loss, signals())
    assert loss(y_true, y_pred).shape == ()
    values = loss.call(y_true, y_pred)
    assert values.shape == (BATCH,)
    np.testing.assert_allclose(np.mean(values), loss(y_true, y_pred), rtol=1e-5)


def test_is_least_at_the_teacher(loss):
    y_true, y_pred = fit(loss, signals())
    at_teacher = loss(y_true, y_true)
    if not isinstance(loss, OF_SIGNS):
        np.testing.assert_allclose(at_teacher, 0.0, atol=1e-5)
    # Weights in the thousands are published for losses that fall.
    margin = 1e-3 if isinstance(loss, FALLING) else 0.01
    assert loss(y_true, y_pred) > at_teacher + margin


def test_gradient_reaches_teacher_and_student(loss):
    """A projector on the teacher's side is trained through `y_true`."""
    _, *gradients = value_and_gradients(loss, *fit(loss, signals()))
    if isinstance(loss, OF_SIGNS):
        np.testing.assert_array_equal(gradients.pop(0), 0.0)
    for gradient in gradients:
        assert np.max(np.abs(gradient)) > 1e-4


def test_eager_graph_and_xla_agree(loss):
    arguments = [tf.constant(signal) for signal in fit(loss, signals())]

    def evaluate(y_true, y_pred):
        return value_and_gradients(loss, y_true, y_pred)

    expected = evaluate(*arguments)
    unknown = [
        tf.TensorSpec([None, *signal.shape[1:]], tf.float32)
        for signal in arguments
    ]
    for compiled in (
        tf.function(evaluate),
        tf.function(evaluate, input_signature=unknown),
        tf.function(evaluate, jit_compile=True),
    ):
        for tensor, same in zip(compiled(*arguments), expected, strict=True):
            np.testing.assert_allclose(tensor, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_gives_the_numbers_of_float32(loss, dtype):
    low = [tf.cast(signal, dtype) for signal in fit(loss, signals())]
    high = [tf.cast(signal, tf.float32) for signal in low]
    for evaluate in (loss, loss.call):
        value = evaluate(*low)
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, evaluate(*high))


def test_float64_stays_in_call(loss):
    assert loss.call(*fit(loss, signals(dtype="float64"))).dtype == tf.float64


def test_weights_of_one_change_nothing(loss):
    expected = loss(*fit(loss, signals()))
    for shape in ((BATCH,), (BATCH, 1)):
        weighted = loss(*fit(loss, signals()), sample_weight=np.ones(shape))
        np.testing.assert_allclose(weighted, expected, rtol=1e-6)


def test_weights_of_two_double(loss):
    weighted = loss(*fit(loss, signals()), sample_weight=np.full(BATCH, 2.0))
    np.testing.assert_allclose(
        weighted, 2 * loss(*fit(loss, signals())), rtol=1e-6
    )


def test_weights_of_zero_remove_examples(loss):
    """The sum over the batch is that of the first five examples alone."""
    y_true, y_pred = fit(loss, signals())
    weights = np.float32([1, 2, 3, 1, 1, 0, 0, 0])
    with_all = BATCH * loss(y_true, y_pred, sample_weight=weights)
    five = loss(y_true[:5], y_pred[:5], sample_weight=weights[:5])
    np.testing.assert_allclose(with_all, 5 * five, rtol=1e-4)


def test_integer_weight_counts_examples(loss):
    """An example of weight two is the example twice."""
    if isinstance(loss, OF_NEIGHBOURS):
        pytest.skip("An example that is there twice is its own neighbour.")
    power = 2 if isinstance(loss, FALLING) else 1
    y_true, y_pred = fit(loss, signals())
    twice = [0, 0, *range(1, BATCH)]
    weights = np.float32([2] + [1] * (BATCH - 1))
    np.testing.assert_allclose(
        BATCH**power * loss(y_true, y_pred, sample_weight=weights),
        (BATCH + 1) ** power * loss(y_true[twice], y_pred[twice]),
        rtol=1e-4,
    )


def test_no_weight_at_all_gives_zero(loss):
    y_true, y_pred = (tf.constant(signal) for signal in fit(loss, signals()))
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss(y_true, y_pred, sample_weight=np.zeros(BATCH))
    assert value == 0
    np.testing.assert_array_equal(tape.gradient(value, y_pred), 0.0)


def test_order_of_examples_does_not_matter(loss):
    y_true, y_pred = fit(loss, signals())
    order = np.random.default_rng(1).permutation(BATCH)
    if isinstance(loss, OF_NEIGHBOURS):
        order = np.arange(BATCH)[::-1]  # who is next to whom stays the same
    np.testing.assert_allclose(
        loss(y_true[order], y_pred[order]), loss(y_true, y_pred), rtol=1e-4
    )


@pytest.mark.parametrize("shapes", [((8, 1), (8, 10)), ((8, 3, 4), (8, 12))])
def test_shapes_that_differ_are_refused_or_compared(loss, shapes):
    if not getattr(loss, "same_shape", True):
        rng = np.random.default_rng(0)
        wide = rng.normal(size=(BATCH, 4, 4, 6))
        assert 0 < loss(wide, wide[:, ::2, ::2, :3]) < np.inf
        return
    y_true, y_pred = (tf.zeros(shape) for shape in shapes)
    for evaluate in (loss, loss.call):
        with pytest.raises(ValueError, match="y_true.shape=.*y_pred.shape="):
            evaluate(y_true, y_pred)


def test_configuration_round_trip(loss):
    inner = loss.loss if isinstance(loss, OnTensors | OfSignals) else loss
    config = {
        **inner.get_config(),
        "name": "mine",
        "reduction": "sum",
        "dtype": "float64",
    }
    changed = type(inner).from_config(config)
    saved = keras.saving.serialize_keras_object(changed)
    assert saved["registered_name"] == f"tfkd>{type(inner).__name__}"
    restored = keras.saving.deserialize_keras_object(saved)
    assert restored.get_config() == changed.get_config() == config
    if inner is not loss:
        restored, changed = loss.like(restored), loss.like(changed)
    np.testing.assert_array_equal(
        restored(*fit(inner, signals())), changed(*fit(inner, signals()))
    )
