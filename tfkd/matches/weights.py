"""L2SP and L2: how far the student's weights are from where they shall be."""

import keras
import tensorflow as tf

from tfkd.arguments import check_non_negative
from tfkd.matches.base import BaseMatch
from tfkd.precision import at_least_float32
from tfkd.trace import classifier, find_layer, layer_paths, own_kernels


class KernelMatch(BaseMatch):
    """What matches of kernels share: their strengths, and which are new.

    Args:
        kernel: Strength for the kernels that are not new. Finite and >= 0.
        new: Strength for those of new layers. Finite and >= 0.
        new_layers: List of names or paths of the new layers, whatever is
            inside them included; [] for none. None: the layer that makes the
            student's outputs, which `tfkd.models.with_head` made.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a layer is
            unknown.
    """

    observes_teacher = False
    averages_teachers = False

    def __init__(self, kernel, new, new_layers, *, weight, name):
        super().__init__(weight=weight, name=name)
        self.kernel = check_non_negative(kernel, "kernel")
        self.new = check_non_negative(new, "new")
        self.new_layers = _check_names(new_layers)
        self._terms = _Terms()

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; finds the kernels that train."""
        model = self._owners.models[0]()
        if self.new_layers is None:
            head = classifier(model)
            names = [] if head is None else [head]
        else:
            names = self.new_layers
        named = {
            id(variable)
            for name in names
            for layer in find_layer(model, name)._flatten_layers()
            for variable in own_kernels(layer)
        }
        starts = self._starts()
        self._terms = _Terms(names)
        for key, variable in _kernels(model).items():
            if not variable.trainable:
                continue
            if id(variable) in named or (starts and key not in starts):
                self._terms.new.append(variable)
            else:
                start = starts[key] if starts else None
                self._terms.moved.append((variable, start))
        super().bind(student=student, teacher=teacher)

    def _starts(self):
        """Key -> what the kernel shall be near; None: all of them near 0."""
        return None

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`, of the weights: the batch has no part."""
        terms = [
            self.kernel / 2 * _square(variable, start)
            for variable, start in self._terms.moved
        ]
        terms += [
            self.new / 2 * _square(variable, None)
            for variable in self._terms.new
        ]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.add_n(terms) / replicas if terms else tf.zeros([])

    @property
    def where(self):
        """The kernels, and which are new."""
        names = ", ".join(self._terms.names)
        return f"kernels, new: {names}" if names else "kernels"

    @property
    def how(self):
        """The strengths."""
        return f"{type(self).__name__}(kernel={self.kernel}, new={self.new})"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "kernel": self.kernel,
            "new": self.new,
            "new_layers": self.new_layers,
        }


@keras.saving.register_keras_serializable("tfkd")
class L2SP(KernelMatch):
    """Keeps the student's kernels near those it began with.

    Formula: `kernel / 2 |w - w0|^2 + new / 2 |w_new|^2`, summed over the
    entries of all kernels that train: w0 those of the reference, w_new those
    of new layers. Biases and the scales of normalisation are left alone.

    For `Transferer(reference="start")`, whose reference is the student as it
    was given. Where there is a teacher instead, w0 are its kernels of the
    same path and shape.

    Args:
        kernel: As of `KernelMatch`.
        new: As of `KernelMatch`.
        new_layers: As of `KernelMatch`. A kernel without counterpart in the
            reference is new, whatever is named here.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a layer is
            unknown, or no kernel has a counterpart.

    Example:

    >>> transferer = tfkd.Transferer(
    ...     student=student, reference="start", matches=[tfkd.L2SP()]
    ... )

    Reference: Li, Grandvalet & Davoine 2018, the L2-SP penalty.
    """

    def __init__(
        self, kernel=0.1, new=0.01, new_layers=None, *, weight=1.0, name=None
    ):
        name = name or "l2sp"
        super().__init__(kernel, new, new_layers, weight=weight, name=name)

    def _starts(self):
        """The reference's kernels."""
        student, reference = (owner() for owner in self._owners.models)
        starts = _kernels(reference)
        if not {*_kernels(student)} & {*starts}:
            raise ValueError(
                f"Match '{self.name}' compares kernels of the same layer and "
                f"shape, but student '{student.name}' and '{reference.name}' "
                "have none in common. To stay near the student's own start "
                'use tfkd.Transferer(student=..., reference="start").'
            )
        return starts


@keras.saving.register_keras_serializable("tfkd")
class L2(KernelMatch):
    """Keeps the student's kernels small: weight decay as a term of the loss.

    Formula: `kernel / 2 |w|^2 + new / 2 |w_new|^2`, of the same kernels as in
    `L2SP`, whose control it is. Needs neither a teacher nor a reference.

    Args:
        kernel: As of `KernelMatch`.
        new: As of `KernelMatch`.
        new_layers: As of `KernelMatch`.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a layer is
            unknown.
    """

    needs_teacher = False

    def __init__(
        self, kernel=0.01, new=0.01, new_layers=None, *, weight=1.0, name=None
    ):
        name = name or "l2"
        super().__init__(kernel, new, new_layers, weight=weight, name=name)


class _Terms:
    """Holds the networks' variables where Keras looks for none.

    Attributes:
        moved: List of (kernel, the kernel that it shall be near or None).
        new: List of kernels of new layers.
        names: List of the new layers' names.
    """

    def __init__(self, names=()):
        self.moved = []
        self.new = []
        self.names = list(names)


def _kernels(model):
    """(path of the layer, name, shape) -> kernel."""
    kernels, seen = {}, set()
    for path, layer in layer_paths(model):
        for variable in own_kernels(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                kernels[path, variable.name, tuple(variable.shape)] = variable
    return kernels


def _square(variable, start):
    """`|w - w0|^2` or, without a start, `|w|^2`; a scalar."""
    difference = at_least_float32(variable)
    if start is not None:
        difference -= at_least_float32(start)
    return tf.reduce_sum(tf.square(difference))


def _check_names(names):
    """A list of names, or None."""
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not all(
        isinstance(name, str) for name in names
    ):
        raise ValueError(
            "Invalid value for argument `new_layers`. Expected a list of "
            f"layers' names, or None. Received: new_layers={names!r}"
        )
    return list(names)
