"""What travels beside a label reaches its place, and labels stay labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.records import Record, unpack

LABEL_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_records_are_packed_and_unpacked():
    assert unpack({"label": 1, "index": 2}) == Record(1, 2)
    assert unpack({"label": 1, "index": 2, "teacher": {}}) == Record(1, 2, {})
    assert Record(1, 2).pack() == {"label": 1, "index": 2}
    assert Record(1).pack() == 1
    assert unpack(Record(1, 2)) == Record(1, 2)


@pytest.mark.parametrize(
    "labels", [3, None, {"label": 1}, {"label": 1, "other": 2}, [1, 2]]
)
def test_other_structures_are_labels(labels):
    assert unpack(labels) == Record(labels)


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_class_weights_are_those_of_bare_labels(
    kind, one_hot, make_network, images
):
    """Keras refuses class weights for labels that are dicts."""
    x, y = images
    loss = LABEL_LOSS
    if one_hot:
        y = np.eye(3, dtype="float32")[y]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    trained = []
    for labels in (y, {"label": y, "index": np.arange(8)}):
        student, teacher = make_network(4, seed=1), make_network(4, seed=2)
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=[tfkd.JacobianMatch()]
        )
        distiller.compile(
            keras.optimizers.SGD(0.1), loss, weighted_metrics=["accuracy"]
        )
        class_weight = {0: 0.5, 2: 3.0}
        if kind == "arrays":
            history = distiller.fit(
                x,
                labels,
                class_weight=class_weight,
                shuffle=False,
                batch_size=4,
                verbose=0,
            )
        else:
            data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
            history = distiller.fit(data, class_weight=class_weight, verbose=0)
        trained.append((student.get_weights(), history.history))
    for bare, record in zip(trained[0][0], trained[1][0], strict=True):
        np.testing.assert_allclose(record, bare, rtol=1e-5, atol=1e-6)
    assert trained[0][1].keys() == trained[1][1].keys()
    for name, values in trained[0][1].items():
        assert trained[1][1][name] == pytest.approx(values, rel=1e-5)


def test_class_weights_multiply_sample_weights(make_network, images):
    """Of records, both may be given; Keras takes one or the other."""
    x, y = images
    weights = np.linspace(0.5, 2.0, 8).astype("float32")
    record = {"label": y, "index": np.arange(8)}
    factors = weights * np.where(y == 2, 3.0, 1.0).astype("float32")
    losses = []
    for labels, sample_weight, class_weight in (
        (record, weights, {2: 3.0}),
        (y, factors, None),
    ):
        distiller = tfkd.Distiller(student=make_network(4, seed=1))
        distiller.compile("sgd", LABEL_LOSS)
        history = distiller.fit(
            x,
            labels,
            sample_weight=sample_weight,
            class_weight=class_weight,
            verbose=0,
        )
        losses.append(history.history["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_labels_of_records_are_checked(make_network, images):
    x, y = images
    distiller = tfkd.Distiller(
        student=make_network(4, seed=1),
        teacher=make_network(4, seed=2),
        matches=[tfkd.Match("mse")],
    )
    distiller.compile("sgd", LABEL_LOSS)
    wrong = {"label": y + 3, "index": np.arange(8)}
    with pytest.raises(ValueError, match="Labels out of range"):
        distiller.fit(x, wrong, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, wrong)).batch(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        distiller.fit(data, verbose=0)


def test_data_give_each_example_its_index():
    bare = tfkd.data.load("digits", batch_size=100, seed=3)
    images = np.concatenate([x for x, _ in bare.test])
    labels = np.concatenate([y for _, y in bare.test])
    data = tfkd.data.load("digits", batch_size=100, seed=3, index=True)
    for x, record in data.test:
        np.testing.assert_array_equal(x, images[record["index"]])
        np.testing.assert_array_equal(record["label"], labels[record["index"]])
    epochs = [
        np.concatenate([record["index"] for _, record in data.train])
        for _ in range(2)
    ]
    assert np.any(epochs[0] != epochs[1])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1259))
