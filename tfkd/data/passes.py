"""The order of training images: a function of a seed and of the epoch."""

import numpy as np
import tensorflow as tf

# The generator is named, for the default one depends on the device.
_GENERATOR = "philox"


class Passes:
    """Numbers the passes over a pipeline, to seed each by its number.

    Passes are counted from 0, unless `epoch` says which one it is.

    Args:
        seed: An integer in [0, 2**32).

    Attributes:
        epoch: The number of every pass from now on; None: each pass has the
            number after that of the pass before.
    """

    def __init__(self, seed):
        self.epoch = None
        self._seed = seed
        self._next = 0

    def restart(self):
        """Makes the pass that begins next number 0, unless `epoch` is set."""
        self._next = 0

    def _begin(self):
        """The key of the pass that begins now."""
        number = self._next if self.epoch is None else self.epoch
        self._next = number + 1
        return np.array([self._seed, number], np.int64)

    def over(self, one_pass):
        """A dataset that is made anew for each pass.

        Args:
            one_pass: Function of the key of a pass, int64 `[2]`, the seed
                and its number, that returns the `tf.data.Dataset` of it.

        Returns:
            A `tf.data.Dataset`, of unknown cardinality.
        """

        def key(_):
            # Python holds the number, which no strategy then copies.
            drawn = tf.numpy_function(self._begin, [], tf.int64)
            return tf.ensure_shape(drawn, [2])

        return tf.data.Dataset.range(1).map(key).flat_map(one_pass)


def fold(key, number):
    """A key for a part of what has one.

    Args:
        key: int64 `[2]`.
        number: Of the part, a scalar integer tensor.

    Returns:
        Tensor like `key`.
    """
    return tf.random.experimental.stateless_fold_in(key, number, alg=_GENERATOR)


def permutation(size, key):
    """The integers below `size` in an order by a key.

    Args:
        size: An integer.
        key: int64 `[2]`.

    Returns:
        int64 `[size]`.
    """
    return tf.random.experimental.stateless_shuffle(
        tf.range(size, dtype=tf.int64), key, alg=_GENERATOR
    )


def scalar_seed(key):
    """A key as the one seed that `tf.data.Dataset.shuffle` takes.

    To be called in the function of `Passes.over`. The order then depends on
    the key alone, not on TensorFlow's global seed.

    Args:
        key: int64 `[2]`.

    Returns:
        Scalar, int64.
    """
    tf.random.set_seed(1)  # Of the graph that is traced, and of no other.
    return tf.random.stateless_uniform(
        [], key, 0, 2**31 - 1, tf.int64, alg=_GENERATOR
    )
