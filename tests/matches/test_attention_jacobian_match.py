"""Jacobians of attention maps against batch Jacobians, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.trace import Trace, outline


def _value(match, student, teacher, x):
    match.bind(
        student=outline(student, match.student_layers),
        teacher=outline(teacher, match.teacher_layers),
    )
    x = tf.constant(x)
    observed = match.observe(
        Trace(teacher, x, layers=match.teacher_layers, differentiable=True)
    )
    trace = Trace(student, x, layers=match.student_layers, differentiable=True)
    return float(match.value(trace, observed))


def _pooled(model, layer, x, size, window):
    """Pooled maps [batch, places] and their Jacobians, entry by entry."""
    inner = keras.Model(model.input, model.get_layer(layer).output)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        maps = tf.reduce_sum(inner(x, training=False) ** 2, axis=-1)
        step = maps.shape[1] // size
        maps = tf.reshape(maps, [-1, size, step, size, step])
        maps = tf.reduce_mean(maps, axis=[2, 4])
        places = [
            tf.reduce_mean(maps[:, i : i + window, j : j + window], axis=[1, 2])
            for i in range(size - window + 1)
            for j in range(size - window + 1)
        ]
        places = tf.stack(places, axis=-1)
    rows = tape.batch_jacobian(places, x).numpy()
    return places.numpy(), rows.reshape(*places.shape, -1)


def _expected(student, teacher, at, x, size, window):
    theirs, their_rows = _pooled(teacher, at[1], x, size, window)
    _, our_rows = _pooled(student, at[0], x, size, window)
    place = theirs.argmax(axis=-1)
    rows = [r[np.arange(len(x)), place] for r in (our_rows, their_rows)]
    units = [r / np.linalg.norm(r, axis=-1, keepdims=True) for r in rows]
    return np.mean(np.sum((units[0] - units[1]) ** 2, axis=-1))


@pytest.fixture
def networks(float64, make_network):
    student = make_network(seed=1, name="student")
    return student, make_network(6, seed=2, name="teacher")


@pytest.mark.parametrize(
    ("window", "entries"), [(None, 1), (3, 1), (2, 2), ("full", 4)]
)
def test_agrees_with_batch_jacobians(networks, images, window, entries):
    """A map of 4: a third of it rounds to 1, a half to 2."""
    match = tfkd.AttentionJacobianMatch("stage1", window=window)
    expected = _expected(*networks, ("stage1", "stage1"), images[0], 4, entries)
    actual = _value(match, *networks, images[0])
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_the_window_is_the_fifth_of_the_map_by_default():
    from tfkd.matches.attention import _window

    sizes = {1: 1, 4: 1, 7: 1, 8: 2, 32: 6, 56: 11}
    assert {size: _window(size, 5) for size in sizes} == sizes


def test_maps_of_two_sizes_meet_at_the_smaller(networks, images):
    at = ("act1", "stage1")  # 8 x 8 and 4 x 4
    match = tfkd.AttentionJacobianMatch(at, window=2)
    expected = _expected(*networks, at, images[0], 4, 2)
    actual = _value(match, *networks, images[0])
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_several_depths_are_summed(networks, images):
    at = ["stage1", ("act2", "act2")]
    parts = [
        _value(tfkd.AttentionJacobianMatch(place), *networks, images[0])
        for place in at
    ]
    whole = _value(tfkd.AttentionJacobianMatch(at), *networks, images[0])
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-12)


def test_trains_beside_other_matches(make_network, images):
    student = make_network(seed=1, name="student")
    teacher = make_network(6, seed=2, name="teacher")
    matches = [
        tfkd.AttentionJacobianMatch("stage1"),
        tfkd.Match(tfkd.losses.AttentionTransfer(), at="stage1"),
    ]
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    distiller.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = student.get_layer("conv1").kernel.numpy()
    logs = distiller.train_on_batch(*images, return_dict=True)
    assert 0 < logs["attention_jacobian_match"] < 4
    assert 0 < logs["attention_transfer"] < 2
    assert np.any(student.get_layer("conv1").kernel.numpy() != before)


def test_what_is_no_map_is_refused(networks):
    match = tfkd.AttentionJacobianMatch("features")
    with pytest.raises(ValueError, match="needs maps"):
        _value(match, *networks, np.ones([1, 8, 8, 2]))
    for window in (0, "half", 2.5, True):
        with pytest.raises(ValueError, match="`window`"):
            tfkd.AttentionJacobianMatch("stage1", window=window)


def test_configuration_round_trip():
    match = tfkd.AttentionJacobianMatch(
        [("a", "b"), "c"], window="full", batch_statistics="frozen", weight=2.0
    )
    config = keras.saving.serialize_keras_object(match)
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config
    assert [tuple(p) for p in again.pairs] == [("a", "b"), ("c", "c")]
