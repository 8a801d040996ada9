"""Each form against its formula, from TensorFlow's own Jacobians, in float64.

The student has BatchNormalization. `_rows` are the Jacobians that each kind
of statistics promises, computed without tfkd.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import jacobian, run, run_each
from reference import unit

import tfkd

_STATISTICS = ("moving", "frozen", "batch")


@pytest.fixture
def networks(float64, make_network):
    student = make_network(2, seed=1, name="student")
    return student, make_network(3, seed=2, name="teacher")


@pytest.fixture
def batch(images):
    return images[0][:5], images[1][:5]


def _frozen(model, x):
    """A copy whose moving statistics are those of this batch."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for layer in twin.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = keras.Model(twin.input, layer.input)
            inputs = before(x, training=False).numpy()
            layer.moving_mean.assign(inputs.mean(axis=(0, 1, 2)))
            layer.moving_variance.assign(inputs.var(axis=(0, 1, 2)))
    return twin


def _rows(model, x, statistics="moving", scalars=None, scale=None):
    """Outputs [batch, k], and rows [batch, k, inputs] of their Jacobian.

    Args:
        model: A network.
        x: A batch.
        statistics: For "batch", the derivative of each output's sum over
            the batch, as the others are in inference mode.
        scalars: Function of the outputs to differentiate, or None.
        scale: Constants [batch, k] that multiply the scalars.
    """
    scalars = scalars or (lambda outputs: outputs)
    scale = np.ones(3) if scale is None else scale
    if statistics == "frozen":
        model = _frozen(model, x)
    training = statistics == "batch"
    outputs = model(x, training=training).numpy()
    if not training:
        return outputs, jacobian(lambda x: scale * scalars(model(x)), x)
    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        values = scale * scalars(model(x, training=True))
        sums = [tf.reduce_sum(values[:, i]) for i in range(3)]
    rows = [tape.gradient(total, x) for total in sums]
    return outputs, np.stack(rows, axis=1).reshape(len(x), 3, -1)


def _label_rows(model, x, labels, **kwargs):
    """Row [batch, 1, inputs] of the sum of the examples' own outputs."""
    chosen = np.eye(3)[labels]
    scale = chosen * kwargs.pop("scale", np.ones(3))
    rows = _rows(model, x, scale=scale, **kwargs)[1]
    return rows.sum(axis=1, keepdims=True)


class Recorded(keras.losses.Loss):
    """Keeps what a match hands to its loss."""

    def call(self, y_true, y_pred):
        self.handed = y_true.numpy(), y_pred.numpy()
        return tf.reduce_sum(tf.square(y_true - y_pred), axis=[1, 2])


@pytest.mark.parametrize("given", [*_STATISTICS, None])
def test_rows_are_those_of_batch_jacobians(networks, batch, given):
    """Example by example, output by output, of both networks."""
    student, teacher = networks
    x, labels = batch
    statistics = given or "frozen"
    whole = [_rows(student, x, statistics)[1], _rows(teacher, x)[1]]
    for of, chosen in (
        ("label", labels),
        ("top", np.argmax(teacher(x), axis=-1)),
        ("all", None),
    ):
        loss = Recorded()
        match = tfkd.JacobianMatch(loss, of=of, batch_statistics=given)
        run(match, student, teacher, x, labels)
        ours, theirs = whole
        if of != "all":
            ours = _label_rows(student, x, chosen, statistics=statistics)
            theirs = theirs[np.arange(5), chosen][:, None]
        assert np.std(ours) > 1e-4
        for handed, rows in zip(loss.handed, (theirs, ours), strict=True):
            np.testing.assert_allclose(
                handed, rows, rtol=1e-9, atol=1e-14, err_msg=of
            )


def _squared_error(theirs, ours):
    return np.sum((theirs - ours) ** 2, axis=(1, 2))


def _normalized(theirs, ours):
    pairs = zip(theirs, ours, strict=True)
    return np.array([np.sum((unit(t) - unit(s)) ** 2) for t, s in pairs])


def _completed(theirs, ours):
    return 0.5 * np.sum((theirs - ours) ** 2, axis=(1, 2))


def _printed(theirs, ours):
    return -np.sum(theirs * ours, axis=(1, 2))


_CROSS_ENTROPY = tfkd.losses.JacobianCrossEntropy
_LOSSES = {
    "squared": (tfkd.losses.SquaredError, _squared_error, None),
    "normalized": (tfkd.losses.NormalizedSquaredError, _normalized, None),
    "completed": (_CROSS_ENTROPY, _completed, 1.0),
    "completed, warm": (lambda: _CROSS_ENTROPY(2.5), _completed, 2.5),
    "printed": (lambda: _CROSS_ENTROPY(printed=True), _printed, 1.0),
    "printed, warm": (
        lambda: _CROSS_ENTROPY(2.5, printed=True),
        _printed,
        2.5,
    ),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_matches_are_their_formulas(networks, batch, name):
    """Value by example; half of five examples are the first three."""
    student, teacher = networks
    x, labels = batch
    make, formula, temperature = _LOSSES[name]
    logits, kwargs = teacher(x).numpy(), {}
    if temperature is not None:
        kwargs = {
            "scalars": lambda y: tf.nn.log_softmax(y / temperature),
            "scale": np.sqrt(tf.nn.softmax(logits / temperature)),
        }
    rows = [_rows(model, x, **kwargs)[1] for model in (teacher, student)]
    for of, chosen in (
        ("label", labels[:, None]),
        ("top", np.argmax(logits, axis=-1)[:, None]),
        ("all", np.tile(np.arange(3), (5, 1))),
    ):
        expected = formula(*(r[np.arange(5)[:, None], chosen] for r in rows))
        match = tfkd.JacobianMatch(make(), of=of, batch_statistics="moving")
        values = run_each(match, student, teacher, x, labels)
        np.testing.assert_allclose(values, expected, rtol=1e-9)
        match = tfkd.JacobianMatch(make(), of=of, fraction=0.5)
        value = run(match, student, teacher, x, labels)
        np.testing.assert_allclose(value, expected[:3].mean(), rtol=1e-9)


@pytest.mark.parametrize("statistics", _STATISTICS)
def test_the_cross_entropy_form_with_other_statistics(
    networks, batch, statistics
):
    """The student's rows change with them, the teacher's do not."""
    student, teacher = networks
    x, _ = batch
    kwargs = {
        "scalars": tf.nn.log_softmax,
        "scale": np.sqrt(tf.nn.softmax(teacher(x))),
    }
    theirs = _rows(teacher, x, **kwargs)[1]
    ours = _rows(student, x, statistics, **kwargs)[1]
    match = tfkd.JacobianMatch(
        _CROSS_ENTROPY(), of="all", batch_statistics=statistics
    )
    values = run_each(match, student, teacher, x)
    np.testing.assert_allclose(values, _completed(theirs, ours), rtol=1e-9)


@pytest.mark.parametrize("statistics", _STATISTICS)
def test_penalties_are_their_formulas(networks, batch, statistics):
    """With the outputs of the pass that is differentiated."""
    student, _ = networks
    x, labels = batch
    outputs, rows = _rows(student, x, statistics)
    p = tf.nn.softmax(outputs).numpy()
    if statistics == "batch":
        scaled = _rows(student, x, statistics, tf.nn.log_softmax, np.sqrt(p))
        cross_entropy = 0.5 * np.sum(scaled[1] ** 2, axis=(1, 2))
    else:  # half the variance of the rows under p
        mean = np.einsum("bk,bkd->bd", p, rows)
        cross_entropy = 0.5 * np.sum(p * np.sum(rows**2, axis=-1), axis=-1)
        cross_entropy -= 0.5 * np.sum(mean**2, axis=-1)

    def of(chosen, scalars=None):
        picked = _label_rows(
            student, x, chosen, statistics=statistics, scalars=scalars
        )
        return np.sum(picked**2, axis=(1, 2))

    for kwargs, expected in (
        ({}, of(labels)),
        ({"of": "top"}, of(np.argmax(outputs, axis=-1))),
        ({"of": "all"}, np.sum(rows**2, axis=(1, 2))),
        ({"form": "cross_entropy"}, cross_entropy),
        ({"form": "printed_cross_entropy"}, of(labels, tf.nn.log_softmax)),
    ):
        match = tfkd.JacobianPenalty(batch_statistics=statistics, **kwargs)
        values = run_each(match, student, None, x, labels)
        np.testing.assert_allclose(values, expected, 1e-9, err_msg=str(kwargs))
        if statistics == "moving":
            match = tfkd.JacobianPenalty(fraction=0.5, **kwargs)
            value = run(match, student, None, x, labels)
            np.testing.assert_allclose(value, expected[:3].mean(), rtol=1e-9)


# === Attention ===


def _to_size(maps, size):
    """Each axis averaged where it divides, else interpolated at centers."""
    for axis, old in enumerate(maps.shape[1:], start=1):
        matrix = np.zeros([size, old])
        for i in range(size):
            if old % size == 0:
                step = old // size
                matrix[i, i * step : (i + 1) * step] = 1 / step
            else:
                center = (i + 0.5) * old / size - 0.5
                low = int(center)
                matrix[i, low] = 1 - (center - low)
                matrix[i, low + 1] = center - low
        rule = "bij,ni->bnj" if axis == 1 else "bij,nj->bin"
        maps = tf.einsum(rule, maps, tf.constant(matrix))
    return maps


def _pooled(model, layer, size, window):
    """Function of x that returns the windows' means, [batch, windows]."""
    inner = keras.Model(model.inputs[0], model.get_layer(layer).output)
    starts = range(size - window + 1)

    def windows(x):
        maps = tf.reduce_sum(inner(x, training=False) ** 2, axis=-1)
        maps = _to_size(maps, size)
        means = [
            tf.reduce_mean(maps[:, i : i + window, j : j + window], [1, 2])
            for i in starts
            for j in starts
        ]
        return tf.stack(means, axis=-1)

    return windows


def _attention(student, teacher, at, x, size, window):
    """Equation 10 at the teacher's strongest window, `[batch]`."""
    theirs = _pooled(teacher, at[1], size, window)
    ours = _pooled(student, at[0], size, window)
    place = np.argmax(theirs(x), axis=-1)
    rows = [
        jacobian(lambda x, fn=fn: _at(fn(x), place), x) for fn in (theirs, ours)
    ]
    return _normalized(*rows)


def _at(windows, place):
    """One window of each example, [batch, 1]."""
    return tf.gather(windows, place[:, None], axis=1, batch_dims=1)


def test_attention_windows(networks, batch):
    """A map of 8: its third, fifth and seventh round to 3, 2 and 1."""
    x, _ = batch
    sizes = {"full": 8, 3: 3, 5: 2, 7: 1, None: 1}
    for window, entries in sizes.items():
        match = tfkd.AttentionJacobianMatch(
            "act1", window=window, batch_statistics="moving"
        )
        expected = _attention(*networks, ("act1", "act1"), x, 8, entries)
        values = run_each(match, *networks, x)
        np.testing.assert_allclose(values, expected, 1e-8, err_msg=str(window))


def test_attention_depths(networks, batch):
    """Maps of two sizes are averaged to the smaller."""
    x, _ = batch
    for *at, size in (
        ("stage1", "act1", 4),
        ("act1", "stage1", 4),
        ("act2", "stage1", 4),
        ("stage2", "act2", 2),
    ):
        match = tfkd.AttentionJacobianMatch(
            [tuple(at)], window=2, batch_statistics="moving"
        )
        expected = _attention(*networks, at, x, size, size // 2)
        values = run_each(match, *networks, x)
        np.testing.assert_allclose(values, expected, 1e-8, err_msg=str(at))


def test_attention_maps_that_do_not_divide(networks, batch):
    """8 and 5 meet at 5, by interpolation that is differentiated exactly."""
    student, _ = networks
    x, _ = batch
    teacher = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(3, 4, activation="tanh", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    match = tfkd.AttentionJacobianMatch(
        ("act1", "conv"), window=2, batch_statistics="moving"
    )
    expected = _attention(student, teacher, ("act1", "conv"), x, 5, 2)
    values = run_each(match, student, teacher, x)
    np.testing.assert_allclose(values, expected, rtol=1e-8)


@pytest.mark.parametrize("given", [*_STATISTICS, None])
def test_attention_with_other_statistics(networks, batch, given):
    """The student's gradient of its pooled maps' sum over the batch."""
    student, teacher = networks
    statistics = given or "frozen"
    x = tf.constant(batch[0])
    theirs = _pooled(teacher, "stage1", 4, 2)
    place = np.argmax(theirs(x), axis=-1)
    their_rows = jacobian(lambda x: _at(theirs(x), place), x)
    model = _frozen(student, x) if statistics == "frozen" else student
    inner = keras.Model(model.input, model.get_layer("stage1").output)
    with tf.GradientTape() as tape:
        tape.watch(x)
        maps = tf.reduce_sum(
            inner(x, training=statistics == "batch") ** 2, axis=-1
        )
        means = tf.nn.avg_pool2d(maps[..., None], 2, 1, "VALID")
        total = tf.reduce_sum(_at(tf.reshape(means, [5, -1]), place))
    our_rows = tape.gradient(total, x).numpy().reshape(5, -1)
    match = tfkd.AttentionJacobianMatch(
        "stage1", window=2, batch_statistics=given
    )
    values = run_each(match, student, teacher, x)
    np.testing.assert_allclose(
        values, _normalized(their_rows, our_rows), rtol=1e-8
    )
