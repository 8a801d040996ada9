"""ContrastiveMatch: an example's two embeddings, against those of others."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfkd.arguments import check_count, check_positive
from tfkd.matches.base import gathered, own_rows, reduce_values
from tfkd.matches.jacobian import draw_bits, draw_seed
from tfkd.matches.match import PairedMatch, place_name, single_signal
from tfkd.matches.projectors import projected
from tfkd.precision import at_least_float32
from tfkd.transport.costs import unit_vectors

_EPSILON = 1e-7


@keras.saving.register_keras_serializable("tfkd")
class ContrastiveMatch(PairedMatch):
    """Tells apart pairs of one example from pairs of examples of two classes.

    Trained linear maps and a normalisation bring both networks' signals to
    embeddings z of one dimension. Two memory banks hold an embedding of each
    of the N training examples, one of the student's and one of the teacher's.
    The student's z is scored against the teacher's bank V at the example's
    own place and at K places drawn from the other classes, and the reverse:

    `p_j = exp(z . V_j / temperature) / Z`
    `- log(p_own / (p_own + K/N + 1e-7))
     - sum_j log((K/N) / (p_j + K/N + 1e-7))`

    The value is the mean over the batch of the sum of both. The constants Z,
    one for each bank, are N times the mean score of the first batch of
    training. After each step of training the banks' rows of the batch become
    `n(momentum V_i + (1 - momentum) z_i)`.

    The K places are drawn anew for each example in each step, uniformly:
    without replacement where the other classes have K examples, else with.

    In evaluation, whose examples are in no bank, the other network's
    embedding of the example stands in its own place; the draw is always the
    same, and nothing changes.

    Memory: the banks take `8 N dimensions` bytes in float32: 51 MB for 50,000
    examples and 128 dimensions. A step scores the batch against whole banks,
    which is cheaper than to gather K rows for each example, and so needs a
    few arrays `[batch, N]` more, of 13 MB each for a batch of 64. Each
    replica of a `tf.distribute.Strategy` has the banks, and keeps in them
    what all replicas embed.

    Training data must number their examples from 0 to N - 1: labels are
    records `{"label": y, "index": i}`, as `tfkd.data.load(..., index=True)`
    gives them.

    Args:
        labels: The class of each training example, in the order of the
            numbers, integers `[N]` >= 0 of two classes at least. They are
            part of the match's configuration.
        at: As of `Match`; one place that gives `[batch, features]`.
        dimensions: Of the embeddings.
        negatives: The number K.
        temperature: That scores are divided by. > 0.
        momentum: Share of the old row, in [0, 1).
        seed: Of the draws.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a signal is no
            vector; in a step of training, if the data have no index; in
            `fit`, if an index is out of range or the data's labels are not
            `labels` at their index. For a `tf.data.Dataset`
            InvalidArgumentError in the step.

    Example:

    >>> match = tfkd.ContrastiveMatch(np.arange(1000) % 10, negatives=64)
    >>> match.how
    '64 negatives, temperature 0.07, banks 2 x 1,000 x 128 (1.0 MB)'

    Reference: Tian et al. 2020, equations 6 to 19; banks after Wu et al. 2018.
    """

    needs_labels = True
    needs_index = True

    def __init__(
        self,
        labels,
        *,
        at="features",
        dimensions=128,
        negatives=16384,
        temperature=0.07,
        momentum=0.5,
        seed=0,
        weight=1.0,
        name=None,
    ):
        super().__init__(at, weight=weight, name=name)
        if len(self.pairs) != 1:
            raise ValueError(
                "Invalid value for argument `at`. Expected one place: the "
                f"banks hold one embedding of an example. Received: at={at!r}"
            )
        self.dimensions = check_count(dimensions, "dimensions")
        self.negatives = check_count(negatives, "negatives")
        self.temperature = check_positive(temperature, "temperature")
        self.momentum = _share(momentum)
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)
        self._classes = OtherClasses(_integers(labels))
        self.student_embedding = None
        self.teacher_embedding = None

    @property
    def example_labels(self):
        """As given: `fit` checks the data's by them."""
        return self._classes.labels

    @property
    def num_examples(self):
        """The number N of training examples."""
        return len(self.example_labels)

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; builds the embeddings and the banks."""
        ((ours, theirs),) = self.pairs
        source = _vector(student, ours)
        target = _vector(teacher, theirs)
        dtype = "float64" if source.dtype == "float64" else "float32"
        if self.student_embedding is None:
            self.student_embedding = keras.layers.Dense(
                self.dimensions, dtype=dtype, name="student_embedding"
            )
            self.teacher_embedding = keras.layers.Dense(
                self.dimensions, dtype=dtype, name="teacher_embedding"
            )
            self.student_bank = self._add_bank("student_bank", dtype)
            self.teacher_bank = self._add_bank("teacher_bank", dtype)
            self.log_constants = self.add_weight(
                shape=(2,),
                initializer=keras.initializers.Constant(-math.inf),
                trainable=False,
                dtype=dtype,
                name="log_constants",
            )
        projected(self.student_embedding, source)
        projected(self.teacher_embedding, target)
        super().bind(student=student, teacher=teacher)

    def _add_bank(self, name, dtype):
        """A bank of random directions."""
        return self.add_weight(
            shape=(self.num_examples, self.dimensions),
            initializer=_random_directions,
            trainable=False,
            dtype=dtype,
            name=name,
        )

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`; in training the banks learn the batch."""
        ours = unit_vectors(
            self.student_embedding(
                at_least_float32(student[self.pairs[0][0]]), training=training
            )
        )  # [batch, dimensions]
        theirs = unit_vectors(
            self.teacher_embedding(
                at_least_float32(observed["signals"][0]["signal"]),
                training=training,
            )
        )
        index = None
        if training:
            index = tf.cast(tf.reshape(student.index, [-1]), tf.int32)
            classes = tf.gather(
                tf.constant(self.example_labels, tf.int32), index
            )
        else:
            classes = _sparse(student.labels, self)
        # Replicas draw for all, so that each draws what one device would.
        drawn = self._classes.draw(
            gathered(classes),
            self.negatives,
            draw_seed(self._seeds, self.seed, training),
        )
        drawn = own_rows(drawn, tf.shape(classes)[0])  # [batch, negatives]
        values, constants = [], []
        for side, (z, bank, other) in enumerate(
            (
                (ours, self.teacher_bank, theirs),
                (theirs, self.student_bank, ours),
            )
        ):
            own = other if index is None else tf.gather(bank, index)
            scores = self._scores(z, bank, tf.stop_gradient(own), drawn)
            constant = self.log_constants[side]
            constant = tf.where(
                constant > -math.inf,
                constant,
                math.log(self.num_examples)
                + _log_mean(tf.stop_gradient(scores)),
            )
            constants.append(constant)
            values.append(self._estimation(scores - constant))
        if training:
            self.log_constants.assign(tf.stack(constants))
            # Each replica has banks of its own, and writes what all do.
            index, ours, theirs = gathered((index, ours, theirs))
            self._remember(self.student_bank, index, ours)
            self._remember(self.teacher_bank, index, theirs)
        return reduce_values(
            tf.add_n(values),
            reduction="sum_over_batch_size",
            sample_weight=sample_weight,
        )

    def _scores(self, z, bank, own, drawn):
        """Logarithms of the scores before division by Z.

        Args:
            z: Embeddings, `[batch, dimensions]`.
            bank: The other network's.
            own: What stands in the example's own place, as z.
            drawn: Other places, `[batch, negatives]`.

        Returns:
            `[batch, 1 + negatives]`, the own place first.
        """
        similarity = tf.matmul(z, bank, transpose_b=True)  # [batch, N]
        similarity = tf.concat(
            [
                tf.reduce_sum(z * own, axis=-1, keepdims=True),
                tf.gather(similarity, drawn, batch_dims=1),
            ],
            axis=-1,
        )
        return similarity / self.temperature

    def _estimation(self, scores):
        """Minus the log-likelihood that own and drawn are told apart.

        With `c = K/N + 1e-7` its terms are `log(1 + c/p)` for the own place
        and `log(1 + p/c) + log(c N/K)` for the drawn, which stay finite where
        a low temperature takes p out of the range of floats.
        """
        noise = self.negatives / self.num_examples
        scores -= math.log(noise + _EPSILON)  # log(p / c)
        return (
            tf.nn.softplus(-scores[:, 0])
            + tf.reduce_sum(tf.nn.softplus(scores[:, 1:]), axis=-1)
            + self.negatives * math.log1p(_EPSILON / noise)
        )

    def _remember(self, bank, index, z):
        """Moves the bank's rows of the batch towards its embeddings."""
        rows = self.momentum * tf.gather(bank, index)
        rows += (1.0 - self.momentum) * tf.stop_gradient(z)
        bank.value.scatter_update(tf.IndexedSlices(unit_vectors(rows), index))

    @property
    def how(self):
        """The settings, and what the banks take."""
        size = 2 * self.num_examples * self.dimensions * 4 / 1e6
        return (
            f"{self.negatives} negatives, temperature {self.temperature:g}, "
            f"banks 2 x {self.num_examples:,} x {self.dimensions} "
            f"({size:.1f} MB)"
        )

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "labels": self.example_labels.tolist(),
            "at": [list(self.pairs[0])],
            "dimensions": self.dimensions,
            "negatives": self.negatives,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "seed": self.seed,
        }


class OtherClasses:
    """Draws examples of other classes than one.

    Examples are put in order of their classes. Those of other classes than
    one are then a range, if the last is followed by the first.

    Args:
        labels: The class of each example, integers `[N]` >= 0.

    Attributes:
        labels: As given.
    """

    def __init__(self, labels):
        self.labels = labels
        members = np.bincount(labels)
        # One class more, without members, for classes never seen.
        self._ends = np.append(np.cumsum(members), len(labels))
        self._others = len(labels) - np.append(members, 0)
        self._order = np.argsort(labels, kind="stable")

    def draw(self, classes, count, seed):
        """Draws anew for each row, uniformly.

        Args:
            classes: One for each row, `[batch]`, int32; one that no example
                has will do.
            count: Examples for each row, an integer.
            seed: `[2]`, int32.

        Returns:
            Their numbers `[batch, count]`: no number twice in a row, unless
            the other classes have fewer than `count` examples.
        """
        kinds = tf.minimum(classes, len(self._others) - 1)
        scarce = self._others < count
        if np.all(scarce):
            return self._with_replacement(kinds, count, seed)
        if not np.any(scarce):
            return self._without_replacement(classes, count, seed)
        # Other numbers than those of any step.
        other_seed = tf.random.experimental.stateless_fold_in(seed, 1)
        return tf.where(
            tf.gather(tf.constant(scarce), kinds)[:, None],
            self._with_replacement(kinds, count, other_seed),
            self._without_replacement(classes, count, seed),
        )

    def _with_replacement(self, kinds, count, seed):
        others = tf.gather(tf.constant(self._others, tf.int64), kinds)
        ends = tf.gather(tf.constant(self._ends, tf.int64), kinds)
        bits = draw_bits([tf.shape(kinds)[0], count], seed)
        # With N others, one is preferred by less than N / 2^32.
        drawn = tf.cast(bits, tf.int64) % others[:, None]
        place = (ends[:, None] + drawn) % len(self.labels)
        return tf.gather(tf.constant(self._order, tf.int32), place)

    def _without_replacement(self, classes, count, seed):
        bits = draw_bits([tf.shape(classes)[0], len(self.labels)], seed)
        keys = tf.cast(tf.bitwise.right_shift(bits, 1), tf.int32)  # >= 0
        own = tf.constant(self.labels, tf.int32)[None, :] == classes[:, None]
        keys = tf.where(own, tf.constant(-1), keys)
        # The places of the largest of random keys are a random subset.
        return tf.math.top_k(keys, count, sorted=False).indices


def _log_mean(logs):
    """`log(mean(exp(logs)))` over all entries `[batch, n]` of all replicas."""
    rows = gathered(tf.reduce_logsumexp(logs, axis=-1))
    count = tf.cast(tf.size(rows) * tf.shape(logs)[-1], logs.dtype)
    return tf.reduce_logsumexp(rows) - tf.math.log(count)


def _random_directions(shape, dtype=None):
    """Initial rows of a bank."""
    return unit_vectors(keras.initializers.RandomNormal()(shape, dtype))


def _is_sparse(labels):
    """Whether labels are one number an example."""
    return labels.shape.rank == 1 or labels.shape[-1] == 1


def _sparse(labels, match):
    """Classes `[batch]` from sparse or one-hot labels."""
    if not isinstance(labels, tf.Tensor):
        raise ValueError(
            f"Match '{match.name}' needs labels to draw examples of other "
            f"classes. Received: {labels}."
        )
    if _is_sparse(labels):
        return tf.cast(tf.reshape(labels, [-1]), tf.int32)
    return tf.argmax(labels, axis=-1, output_type=tf.int32)


def _integers(labels):
    """`labels` as an integer array `[N]` of two classes at least."""
    array = np.asarray(labels)
    if (
        array.ndim != 1
        or not np.issubdtype(array.dtype, np.integer)
        or len(np.unique(array)) < 2
        or array.min() < 0
    ):
        raise ValueError(
            "Invalid value for argument `labels`. Expected the class of each "
            "training example in the order of their index, integers >= 0 of "
            f"shape [examples], two classes at least. Received: {labels!r}"
        )
    return array.astype(np.int64)


def _share(momentum):
    if isinstance(momentum, bool) or not (
        isinstance(momentum, (int, float)) and 0 <= momentum < 1
    ):
        raise ValueError(
            "Invalid value for argument `momentum`. Expected a number in "
            f"[0, 1). Received: momentum={momentum!r}"
        )
    return float(momentum)


def _vector(outline, name):
    """The `Signal` of a layer that gives `[batch, features]`."""
    signal = single_signal(outline, name)
    if len(signal.shape) != 2 or signal.shape[-1] is None:
        raise ValueError(
            "ContrastiveMatch needs vectors [batch, features]. "
            f"'{outline.name}' at {place_name(name)} gives {signal.shape}. "
            "Choose a layer behind the pooling."
        )
    return signal
