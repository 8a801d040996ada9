"""The base of losses that compare distributions, and what all losses share."""

import keras
import tensorflow as tf

from tfkd.transport.costs import same_precision


class DistributionLoss(keras.losses.Loss):
    """Base of losses that compare two batches as distributions of examples.

    Such a loss has one value for the whole batch. `call` repeats it for each
    example, so that Keras' reduction, and its division by the number of
    replicas, hold for it as for any other loss.

    Sample weights are masses: with weights w, both batches put mass
    `w_i / sum w` on example i, and the value is multiplied by the mean
    weight. So an example of weight zero does not exist, one of weight two
    counts as two, and the value of a batch whose weights are all zero is
    zero. A Keras mask is not read: positions are part of an example, and
    `tfkd.Match` sets padded ones to zero on both sides.

    Subclasses implement `distance`. Those that also implement
    `conditional_distance` can be wrapped by `ClassConditional`.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Attributes:
        same_shape: Whether signals of different shapes are refused. A
            subclass that compares across widths sets it to False.
        signals: What a side of the loss consists of. ("features",), one
            tensor, by default. With several names of "features", "outputs"
            and "labels", either side is a dict of tensors with these keys,
            which `tfkd.Match` makes: the signal at its place, the network's
            outputs, the true labels. Labels come to `distance` as class
            numbers, `[batch]`, int64.

    Example:

    ```python
    @keras.saving.register_keras_serializable()
    class MeanFeature(tfkd.losses.DistributionLoss):
        def distance(self, y_true, y_pred, masses):
            difference = y_true - y_pred  # [batch, dim]
            mean = tf.linalg.matvec(difference, masses, transpose_a=True)
            return tf.reduce_sum(mean * mean)
    ```
    """

    same_shape = True
    signals = ("features",)

    def distance(self, y_true, y_pred, masses):
        """Distance between the teacher's and the student's distribution.

        Args:
            y_true: Teacher's signal, `[batch, ...]`, float32 or float64; a
                dict of these for several `signals`.
            y_pred: Student's signal, `[batch, ...]`, of the same type, and
                of the same shape if `same_shape`; a dict likewise.
            masses: Of the examples on either side, `[batch]`, non-negative
                with sum one, of the same type.

        Returns:
            Scalar tensor.
        """
        raise NotImplementedError

    def conditional_distance(self, y_true, y_pred, masses, labels):
        """Mean over classes of the distance between examples of one class.

        What `ClassConditional` computes. K classes are on both sides, in
        numbers that may differ. On either side, the examples of each of them
        have mass `1 / K` together; those of other classes have none. So
        `masses[0]` times K, over one class, is what `distance` would be
        given for the teacher's side of that class. Where no class is on both
        sides all masses are zero, and so shall be the value and its
        gradient. K is not known before there is data: an implementation
        masks by `labels[0][:, None] == labels[1][None, :]` rather than loop
        over classes.

        Args:
            y_true: As of `distance`.
            y_pred: As of `distance`.
            masses: Pair of the teacher's side's and the student's side's,
                `[batch]` each, non-negative, of the signals' type.
            labels: Pair of class numbers, `[batch]` each, int64.

        Returns:
            Scalar tensor.
        """
        raise NotImplementedError

    def call(self, y_true, y_pred, sample_weight=None):
        """The weighted value, repeated for each example.

        Args:
            y_true: Teacher's signal, `[batch, ...]`, or the dict of
                `signals`. In it, labels are class numbers `[batch]` or
                `[batch, 1]`, or one-hot `[batch, classes]`.
            y_pred: Student's signal, `[batch, ...]`, or a dict likewise.
            sample_weight: `[batch]`, `[batch, 1]` or None for ones;
                non-negative.

        Returns:
            Tensor `[batch]`.

        Raises:
            ValueError: If shapes do not fit.
        """
        value, weights = self._value(y_true, y_pred, sample_weight)
        return tf.fill(tf.shape(weights), value * tf.reduce_mean(weights))

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced value. Arguments and errors as of `call`."""
        with keras.name_scope(self.name):
            value, weights = self._value(
                self._in_dtype(y_true), self._in_dtype(y_pred), sample_weight
            )
            values = tf.fill(tf.shape(weights), value)
            reduce = Reduction(self.name, self.reduction, self.dtype)
            return reduce(values, values, sample_weight=weights)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}

    def _value(self, y_true, y_pred, sample_weight):
        """The unweighted value, a scalar, and the weights, `[batch]`."""
        y_true, y_pred = self._comparable(y_true, y_pred)
        signal = y_pred["features"] if self._takes_dicts else y_pred
        weights = _example_weights(sample_weight, signal)
        total = tf.reduce_sum(weights)
        # Weights of zero give equal masses, so that no subclass has to think
        # of an empty distribution; the mean weight makes the value zero.
        masses = tf.where(
            total > 0,
            tf.math.divide_no_nan(weights, total),
            1 / tf.cast(tf.size(weights), weights.dtype),
        )
        return self.distance(y_true, y_pred, masses), weights

    @property
    def _takes_dicts(self):
        return tuple(self.signals) != ("features",)

    def _in_dtype(self, side):
        """Tensors of one side in the loss's `dtype`, labels as they are."""
        if not self._takes_dicts:
            return keras.ops.convert_to_tensor(side, dtype=self.dtype)
        self._require_signals(side)
        return {
            key: value
            if key == "labels"
            else keras.ops.convert_to_tensor(value, dtype=self.dtype)
            for key, value in side.items()
        }

    def _comparable(self, y_true, y_pred):
        """Both sides as `distance` takes them."""
        if not self._takes_dicts:
            return comparable(y_true, y_pred, same_shape=self.same_shape)
        pairs = {}
        for side in (y_true, y_pred):
            self._require_signals(side)
        for key in self.signals:
            pair = y_true[key], y_pred[key]
            if key == "labels":
                pairs[key] = [class_numbers(labels) for labels in pair]
            else:
                same_shape = self.same_shape or key == "outputs"
                pairs[key] = comparable(*pair, same_shape=same_shape)
        return tuple(
            {key: pair[side] for key, pair in pairs.items()} for side in (0, 1)
        )

    def _require_signals(self, side):
        if not isinstance(side, dict) or not set(self.signals) <= set(side):
            received = list(side) if isinstance(side, dict) else type(side)
            raise ValueError(
                f"Loss '{self.name}' compares dicts with the keys "
                f"{self.signals}, as tfkd.Match makes them. "
                f"Received: {received}"
            )


class Reduction(keras.losses.Loss):
    """A loss whose values are its predictions: nothing but the reduction."""

    def call(self, y_true, y_pred):
        """The predictions."""
        return y_pred


def comparable(y_true, y_pred, *, same_shape=True):
    """Both signals in one type, float32 at least.

    Args:
        y_true: Teacher's signal.
        y_pred: Student's signal.
        same_shape: Whether to refuse shapes that differ, which TensorFlow
            would broadcast.

    Returns:
        The two tensors.

    Raises:
        ValueError: If the shapes are known to differ.
    """
    y_true, y_pred = same_precision(y_true, y_pred)
    if same_shape and not y_true.shape.is_compatible_with(y_pred.shape):
        raise ValueError(
            "Expected `y_true` and `y_pred` to have the same shape. "
            f"Received: y_true.shape={y_true.shape}, "
            f"y_pred.shape={y_pred.shape}"
        )
    return y_true, y_pred


def same_class(one, other, dtype):
    """1 where two examples are of one class, else 0, `[n, m]`."""
    return tf.cast(one[:, None] == other[None, :], dtype)


def class_numbers(labels):
    """Sparse or one-hot labels as class numbers.

    Args:
        labels: `[batch]` or `[batch, 1]` of numbers, or `[batch, classes]`,
            whose largest entry is the class.

    Returns:
        int64 tensor `[batch]`.

    Raises:
        ValueError: If labels have another rank.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank not in (1, 2):
        raise ValueError(
            "Expected labels [batch], [batch, 1] or one-hot [batch, classes]. "
            f"Received: labels.shape={labels.shape}"
        )
    if labels.shape.rank == 2 and labels.shape[-1] != 1:
        return tf.argmax(labels, axis=-1)
    return tf.cast(tf.reshape(labels, [-1]), tf.int64)


def count_examples(masses):
    """Number of examples that have a mass, a scalar of the masses' type."""
    return tf.reduce_sum(tf.cast(masses > 0, masses.dtype))


def flatten(signal):
    """`[batch, ...]` as `[batch, features]`; `[batch]` as `[batch, 1]`."""
    signal = tf.convert_to_tensor(signal)
    # TensorFlow infers no size where the batch's is unknown as well.
    features = signal.shape[1:].num_elements()
    if features is None:
        features = -1
    return tf.reshape(signal, [tf.shape(signal)[0], features])


def _example_weights(sample_weight, signal):
    """Weights as `[batch]` in the type of `signal`, or ones for None."""
    if sample_weight is None:
        return tf.ones(tf.shape(signal)[:1], signal.dtype)
    weights = tf.cast(sample_weight, signal.dtype)
    batch = signal.shape[:1]
    if not any(
        weights.shape.is_compatible_with(shape)
        for shape in (batch, batch.concatenate(1))
    ):
        raise ValueError(
            "Invalid value for argument `sample_weight`. Expected weights of "
            f"examples, of shape {batch} or {batch.concatenate(1)}. "
            f"Received: sample_weight.shape={weights.shape}"
        )
    return tf.reshape(weights, [-1])
