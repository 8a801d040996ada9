"""The teacher's side, kept: the same numbers, without the teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.caching import _packed

LABEL_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MATCHES = {
    "outputs": lambda: tfkd.Match(tfkd.losses.SoftTargets(4.0)),
    "layers": lambda: tfkd.Match("mse", at=["conv1", "features"]),
    "label": lambda: tfkd.JacobianMatch(of="label"),
    "top": lambda: tfkd.JacobianMatch(of="top"),
    "all": lambda: tfkd.JacobianMatch(of="all"),
    "part": lambda: tfkd.JacobianMatch(fraction=0.5),
    "log": lambda: tfkd.JacobianMatch(tfkd.losses.JacobianCrossEntropy(2.0)),
    "attention": lambda: tfkd.AttentionJacobianMatch("conv1", window=3),
}


class Guarded(keras.Model):
    """A network that fails when it runs after it was told not to."""

    def __init__(self, network):
        super().__init__(name="guarded")
        self.network = network
        self.may_run = True

    def call(self, inputs, training=None):
        assert self.may_run, "The teacher ran."
        return self.network(inputs, training=training)


@pytest.fixture
def networks(make_network, images):
    student = make_network(4, seed=1, name="student")
    teacher = Guarded(make_network(4, seed=2, name="teacher"))
    teacher(images[0])
    return student, teacher


@pytest.fixture
def examples():
    """Twenty images and their labels."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 8, 8, 2)).astype("float32")
    return x, rng.integers(0, 3, size=20)


@pytest.fixture
def indexed(examples):
    """The examples in batches of eight, in a new order in each pass."""
    x, y = examples

    def batch(i):
        return tf.gather(x, i), {"label": tf.gather(y, i), "index": 7 * i}

    return tf.data.Dataset.range(20).shuffle(20).batch(8).map(batch)


@pytest.fixture
def keep(networks, tmp_path):
    """`with_teacher` of the fixtures' teacher, in a folder of the test."""

    def keep(dataset, matches, teacher=networks[1]):
        return tfkd.caching.with_teacher(
            dataset,
            teacher=teacher,
            matches=matches,
            cache_dir=tmp_path,
            verbose=0,
        )

    return keep


def _distiller(networks, matches, **kwargs):
    student, teacher = networks
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    distiller.compile("sgd", LABEL_LOSS, **kwargs)
    return distiller


@pytest.mark.parametrize("name", MATCHES)
def test_what_is_kept_gives_the_same_values(name, networks, indexed, keep):
    matches = [MATCHES[name]()]
    distiller = _distiller(networks, matches)
    for x, y in keep(indexed, matches):
        bare = {"label": y["label"], "index": y["index"]}
        computed = distiller.test_on_batch(x, bare, return_dict=True)
        given = distiller.test_on_batch(x, y, return_dict=True)
        term = matches[0].name
        assert given[term] == pytest.approx(computed[term], rel=1e-3)
        assert given["label_loss"] == computed["label_loss"]
        assert computed[term] > 1e-6


def test_the_teacher_does_not_run_for_what_is_kept(networks, indexed, keep):
    matches = [make() for make in MATCHES.values()]
    distiller = _distiller(networks, matches)
    keep(indexed, matches)
    networks[1].may_run = False
    kept = keep(indexed, matches)
    assert len(kept) == 3
    distiller.fit(kept, validation_data=kept, epochs=2, verbose=0)


def test_the_teacher_runs_for_the_rest(networks, indexed, keep):
    kept = keep(indexed, [MATCHES["label"]()])
    noisy = [MATCHES["label"](), tfkd.InputNoiseMatch(0.1)]
    distiller = _distiller(networks, noisy)
    distiller.fit(kept, verbose=0)
    other = _distiller(networks, [MATCHES["top"]()])
    networks[1].may_run = False
    with pytest.raises(AssertionError, match="The teacher ran"):
        other.fit(kept, verbose=0)


def test_files_are_written_once_for_equal_observations(indexed, keep, tmp_path):
    keep(indexed, [MATCHES["outputs"]()])
    (data,) = tmp_path.iterdir()
    (first,) = data.iterdir()
    written = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    # The same logits, for another loss under another weight and name.
    keep(indexed, [tfkd.Match("mse", weight=3.0, name="activations")])
    assert list(data.iterdir()) == [first]
    assert written == {p: p.stat().st_mtime_ns for p in first.iterdir()}
    keep(indexed, [MATCHES["label"](), MATCHES["outputs"]()])
    assert len(list(data.iterdir())) == 2
    keep(indexed.map(lambda x, y: (2 * x, y)), [MATCHES["outputs"]()])
    assert len(list(tmp_path.iterdir())) == 2


def test_another_teacher_is_refused(networks, indexed, keep):
    matches = [MATCHES["outputs"]()]
    kept = keep(indexed, matches)
    distiller = _distiller(networks, matches)
    networks[1].network.get_layer("conv1").bias.assign_add(np.ones(4))
    with pytest.raises(ValueError, match="another teacher than 'guarded'"):
        distiller.fit(kept, verbose=0)
    distiller.fit(keep(indexed, matches), verbose=0)


def test_a_teacher_that_changed_since_the_last_fit_is_refused(
    networks, indexed, keep
):
    """The compiled step would run on: its data have the same structure."""
    matches = [MATCHES["outputs"]()]
    kept = keep(indexed, matches)
    distiller = _distiller(networks, matches)
    distiller.fit(kept, validation_data=kept, verbose=0)
    networks[1].network.get_layer("conv1").bias.assign_add(np.ones(4))
    with pytest.raises(ValueError, match="another teacher than 'guarded'"):
        distiller.fit(kept, verbose=0)
    with pytest.raises(ValueError, match="another teacher than 'guarded'"):
        distiller.evaluate(kept, verbose=0)


def test_freezing_a_teacher_does_not_make_it_another(
    make_network, networks, indexed, keep
):
    teacher = make_network(4, seed=2)
    matches = [MATCHES["outputs"]()]
    kept = keep(indexed, matches, teacher)
    teacher.trainable = False
    _distiller((networks[0], teacher), matches).fit(kept, verbose=0)


def test_masks_and_integers_are_kept(tmp_path):
    """Padding that a match leaves out is left out of what is kept, too."""

    def network(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(9, 4, mask_zero=True),
                keras.layers.Dense(4, name="hidden"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(3),
            ]
        )

    student, teacher = network(1), network(2)
    matches = [tfkd.Match("mse", at="hidden")]
    distiller = _distiller((student, teacher), matches)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (20, 5)) * (
        np.arange(5) < rng.integers(1, 6, (20, 1))
    )
    labels = rng.integers(0, 3, 20)
    dataset = tf.data.Dataset.from_tensor_slices(
        (tokens.astype("int32"), labels)
    ).batch(8)
    kept = tfkd.caching.with_teacher(
        dataset,
        teacher=teacher,
        matches=matches,
        cache_dir=tmp_path,
        verbose=0,
    )
    ((_, record),) = kept.take(1)
    (observed,) = record["teacher"].values()
    np.testing.assert_array_equal(
        observed["signals"][0]["mask"], tokens[:8] != 0
    )
    given = distiller.evaluate(kept, verbose=0, return_dict=True)
    computed = distiller.evaluate(dataset, verbose=0, return_dict=True)
    assert given["loss"] == pytest.approx(computed["loss"], rel=1e-3)


def test_equal_bytes_of_another_shape_are_other_data(tmp_path, examples):
    x, y = examples
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [
            keras.Input((None, None, 2)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(3),
        ]
    )
    for shape in ((8, 8), (4, 16)):
        images = x.reshape(20, *shape, 2)
        kept = tfkd.caching.with_teacher(
            tf.data.Dataset.from_tensor_slices((images, y)).batch(20),
            teacher=teacher,
            matches=[MATCHES["outputs"]()],
            cache_dir=tmp_path,
            verbose=0,
        )
        ((_, record),) = kept
        (observed,) = record["teacher"].values()
        np.testing.assert_allclose(
            observed["signals"][0]["signal"],
            teacher(images),
            rtol=5e-4,
            atol=1e-6,
        )


def test_examples_are_known_by_position(networks, examples, keep):
    """A dataset without indices, whose result is shuffled and weighted."""
    x, y = examples
    weights = np.arange(20, dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(6)
    kept = keep(dataset, [MATCHES["outputs"]()])
    assert len(kept) == 4
    logits = networks[1](x).numpy()
    for images, record, weight in kept.unbatch().shuffle(20).batch(7):
        index = record["index"].numpy()
        np.testing.assert_array_equal(images, x[index])
        np.testing.assert_array_equal(record["label"], y[index])
        np.testing.assert_array_equal(weight, weights[index])
        (signals,) = record["teacher"].values()
        np.testing.assert_allclose(
            signals["signals"][0]["signal"], logits[index], rtol=5e-4, atol=1e-6
        )


def test_two_rounds_of_keeping_add_up(networks, indexed, keep):
    matches = [MATCHES["outputs"](), MATCHES["label"]()]
    kept = keep(keep(indexed, matches[:1]), matches[1:])
    distiller = _distiller(networks, matches)
    networks[1].may_run = False
    distiller.fit(kept, verbose=0)


def test_values_are_kept_to_float16_at_any_scale():
    rng = np.random.default_rng(0)
    scales = np.float32(10.0) ** np.arange(-35, 36, 5, dtype="float32")
    values = rng.normal(size=(len(scales), 50)).astype("float32")
    values *= scales[:, None] * 10.0 ** -rng.uniform(0, 12, values.shape)
    values[3] = 0.0
    packed, scale = _packed(values)
    assert packed.dtype == np.float16
    error = np.abs(packed.astype("float64") * scale - values)
    bound = np.maximum(
        np.abs(values) * 2.0**-11,
        np.abs(values).max(axis=1, keepdims=True) * 2.0**-39,
    )
    assert np.all(error <= bound)
    assert np.all(np.log2(scale) % 1 == 0)


def test_float64_stays_float64(float64, make_network, examples, tmp_path):
    x, y = examples
    student, teacher = make_network(4, seed=1), make_network(4, seed=2)
    matches = [tfkd.JacobianMatch()]
    distiller = _distiller((student, teacher), matches)
    dataset = tf.data.Dataset.from_tensor_slices((x.astype("float64"), y))
    kept = tfkd.caching.with_teacher(
        dataset.batch(10),
        teacher=teacher,
        matches=matches,
        cache_dir=tmp_path,
        verbose=0,
    )
    logs = distiller.evaluate(kept, verbose=0, return_dict=True)
    exact = distiller.evaluate(dataset.batch(10), verbose=0, return_dict=True)
    assert logs["jacobian_match"] == pytest.approx(
        exact["jacobian_match"], rel=1e-3
    )


# === Refusals ===


def test_a_shuffled_dataset_without_indices_is_refused(examples, keep):
    dataset = tf.data.Dataset.from_tensor_slices(examples).shuffle(20).batch(8)
    with pytest.raises(ValueError, match="another order on a second pass"):
        keep(dataset, [MATCHES["outputs"]()])


@pytest.mark.parametrize("with_index", [True, False])
def test_augmented_data_are_refused(with_index, examples, indexed, keep):
    dataset = tf.data.Dataset.from_tensor_slices(examples).batch(8)
    dataset = indexed if with_index else dataset
    generator = tf.random.Generator.from_seed(0)
    augmented = dataset.map(lambda x, y: (x + generator.normal(tf.shape(x)), y))
    with pytest.raises(ValueError, match="it is augmented"):
        keep(augmented, [MATCHES["outputs"]()])


def test_an_index_that_repeats_is_refused(indexed, keep):
    with pytest.raises(ValueError, match="appears twice"):
        keep(indexed.repeat(2), [MATCHES["outputs"]()])


def test_endless_and_empty_datasets_are_refused(indexed, keep):
    with pytest.raises(ValueError, match="never ends"):
        keep(indexed.repeat(), [MATCHES["outputs"]()])
    with pytest.raises(ValueError, match="is empty"):
        keep(indexed.take(0), [MATCHES["outputs"]()])


def test_what_is_no_dataset_is_refused(examples, keep):
    with pytest.raises(ValueError, match="`dataset`"):
        keep(examples, [MATCHES["outputs"]()])
    with pytest.raises(ValueError, match=r"batches \(x, y\)"):
        keep(
            tf.data.Dataset.from_tensor_slices(examples[0]).batch(2),
            [MATCHES["outputs"]()],
        )


@pytest.mark.parametrize(
    "match",
    [
        lambda: tfkd.InputNoiseMatch(0.1),
        lambda: tfkd.JacobianMatch(num_projections=1),
        lambda: tfkd.JacobianMatch(num_projections=1, directions="input"),
    ],
)
def test_random_observations_are_refused(match, indexed, keep):
    with pytest.raises(ValueError, match="draws anew in each step"):
        keep(indexed, [match()])


def test_matches_without_an_observation_are_refused(indexed, keep):
    with pytest.raises(ValueError, match="No match observes a teacher"):
        keep(indexed, [tfkd.JacobianPenalty()])
    with pytest.raises(ValueError, match="list of matches"):
        keep(indexed, ["jacobian"])
    with pytest.raises(ValueError, match="Construct the Distiller first"):
        keep(indexed, [MATCHES["attention"]()])


@pytest.mark.parametrize("first", [1, 4])
def test_observations_of_changing_shape_are_refused(first, networks, tmp_path):
    teacher = keras.Sequential(
        [
            keras.Input((None, 2)),
            keras.layers.Conv1D(4, 1, name="hidden"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )
    lengths = tf.data.Dataset.from_tensor_slices([first, 5 - first])
    dataset = lengths.map(
        lambda n: (tf.ones([2, n, 2]), tf.zeros([2], tf.int32))
    )
    with pytest.raises(ValueError, match="another shape in each batch"):
        tfkd.caching.with_teacher(
            dataset,
            teacher=teacher,
            matches=[tfkd.Match("mse", at="hidden")],
            cache_dir=tmp_path,
            verbose=0,
        )


def test_what_is_no_teacher_or_list_of_matches_is_refused(indexed, keep):
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    for teacher in (None, "teacher", unbuilt):
        with pytest.raises(ValueError, match="Expected a built Keras model"):
            keep(indexed, [MATCHES["outputs"]()], teacher)
    with pytest.raises(ValueError, match="Expected a list of matches"):
        keep(indexed, MATCHES["outputs"]())


def test_a_teacher_of_nan_is_refused_and_leaves_nothing(
    networks, indexed, keep, tmp_path
):
    networks[1].network.get_layer("conv1").bias.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match="NaN or infinity"):
        keep(indexed, [MATCHES["outputs"]()])
    (data,) = tmp_path.iterdir()
    assert list(data.iterdir()) == []


def test_an_example_that_was_not_there_fails(examples, keep):
    """A dataset that changes after it was kept."""
    x, y = examples
    first = tf.Variable(0, dtype=tf.int64)

    def batch(i):
        i = i + first
        return tf.gather(x, i), {"label": tf.gather(y, i), "index": i}

    kept = keep(
        tf.data.Dataset.range(10).batch(5).map(batch), [MATCHES["outputs"]()]
    )
    first.assign(5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="example 10"):
        list(kept)
