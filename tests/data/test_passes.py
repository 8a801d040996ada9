"""Order and copies of training images, by seed and number of the epoch."""

import hashlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from prepared import photograph, prepare

import tfkd
from tfkd.data import passes, prepared


def digits(**kwargs):
    settings = {"batch_size": 32, "examples_per_class": 10, "seed": 3}
    return tfkd.data.load("digits", **{**settings, **kwargs})


def content(pipeline):
    """All that one pass gives, as bytes."""
    return b"".join(
        np.ascontiguousarray(array).tobytes()
        for batch in pipeline.as_numpy_iterator()
        for array in keras.tree.flatten(batch)
    )


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Name -> function that loads the dataset anew."""
    for part, number in (("train", 12), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(number):
                file = tmp_path / "pets" / part / name / f"{i:02}.jpg"
                file.write_bytes(photograph(20 * i))
    images = {
        split: [(photograph(4 * i), i % 3) for i in range(60)]
        for split in ("train", "test")
    }
    prepare("cars196", tmp_path, images)

    def photographs(name, **kwargs):
        settings = {"batch_size": 8, "image_size": 28, "seed": 3}
        return lambda: tfkd.data.load(name, **{**settings, **kwargs})

    cars = photographs("cars196", data_dir=tmp_path, augment=True)

    def streamed():
        # So few are shuffled at once that nothing is kept in memory.
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "BUFFER", 8)
            return cars()

    return {
        "plain": digits,
        "augmented": lambda: digits(augment=True),
        "classes": lambda: digits(classes=[7, 2], index=True),
        "folder": photographs(f"folder:{tmp_path / 'pets'}", augment=True),
        "prepared": cars,
        "streamed": streamed,
    }


@pytest.mark.parametrize(
    "name",
    ["plain", "augmented", "classes", "folder", "prepared", "streamed"],
)
def test_an_epoch_is_the_same_wherever_one_begins(sources, name):
    """Epochs 0, 1, 2 in turn; then 2 and 1 at once, under other seeds."""
    data = sources[name]()
    epochs = [content(data.train) for _ in range(3)]
    assert len(set(epochs)) == 3
    for global_seed, epoch in ((0, 2), (7, 1)):
        keras.utils.set_random_seed(global_seed)
        fresh = sources[name]()
        fresh.set_epoch(epoch)
        assert content(fresh.train) == epochs[epoch]
        assert content(fresh.train) == epochs[epoch]
        fresh.set_epoch(None)
        assert content(fresh.train) not in epochs[: epoch + 1]
        assert content(fresh.test) == content(data.test)


def test_counts_on_where_an_epoch_was_set():
    data, other = digits(), digits()
    data.set_epoch(5)
    content(data.train)
    data.set_epoch(None)
    other.set_epoch(6)
    assert content(data.train) == content(other.train)


def test_holds_for_what_was_made_of_it(tmp_path, make_network):
    data = digits(index=True)
    inputs = keras.Input((32, 32, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    kept = tfkd.caching.with_teacher(
        data.train,
        teacher=keras.Model(inputs, outputs),
        matches=[tfkd.Match("mse")],
        cache_dir=tmp_path,
        verbose=0,
    )
    numbers = kept.map(lambda x, y: y["index"])
    for epoch in (4, 1):
        data.set_epoch(epoch)
        fresh = digits(index=True)
        fresh.set_epoch(epoch)
        assert content(numbers) == content(
            fresh.train.map(lambda x, y: y["index"])
        )


def test_fit_gives_each_epoch_its_order():
    """Keras begins a second pass at the end of each, and never reads it."""
    seen = []

    def note(x):
        seen.append(x.tobytes())
        return x

    def noted(x, y):
        x = tf.ensure_shape(
            tf.numpy_function(note, [x], tf.float32), (None, 32, 32, 1)
        )
        return x, y

    data, alone = digits(batch_size=64), digits(batch_size=64)
    inputs = keras.Input((32, 32, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(data.train.map(noted), epochs=3, shuffle=False, verbose=0)
    assert seen == [
        x.tobytes()
        for _ in range(3)
        for x, _ in alone.train.as_numpy_iterator()
    ]


def test_a_fresh_process_goes_on_at_any_epoch():
    script = (
        "import hashlib, tfkd\n"
        "data = tfkd.data.load('digits', batch_size=32, seed=3,"
        " examples_per_class=10, augment=True)\n"
        "data.set_epoch(2)\n"
        "digest = hashlib.sha256()\n"
        "for x, y in data.train.as_numpy_iterator():\n"
        "    digest.update(x.tobytes() + y.tobytes())\n"
        "print(digest.hexdigest())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    data = digits(augment=True)
    for _ in range(2):
        content(data.train)
    assert printed.strip() == hashlib.sha256(content(data.train)).hexdigest()


def test_passes_begin_anew():
    data = digits(augment=True)
    first, second = content(data.train), content(data.train)
    data.passes.restart()
    assert content(data.train) == first != second
    assert content(data.train) == second


def test_an_order_never_changes():
    """Frozen: another order would change the results of every recipe."""
    key = tf.constant([3, 1], tf.int64)
    order = passes.permutation(8, key).numpy().tolist()
    assert order == [7, 3, 6, 0, 5, 4, 2, 1]
    part = passes.fold(key, tf.constant(2, tf.int64)).numpy().tolist()
    assert part == [-6676658365508583353, 2]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "1"])
def test_an_epoch_is_an_integer_from_0(epoch):
    with pytest.raises(ValueError, match="`epoch`"):
        digits().set_epoch(epoch)
