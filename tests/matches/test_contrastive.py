"""ContrastiveMatch: its values, its banks, its draws, what it refuses."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import central_difference, contrastive, mean_score, unit
from signals import between, bind, identity

import tfkd
from tfkd.matches.contrastive import OtherClasses

# Twelve examples of three classes: eight of others for each.
LABELS = np.arange(12) % 3
OTHERS = [np.flatnonzero(label != LABELS) for label in range(3)]
BATCH = np.array([7, 2, 3, 11])


def _signals(widths=(5, 6)):
    """Student's and teacher's features of the batch, `[4, width]`."""
    rng = np.random.default_rng(0)
    floatx = keras.config.floatx()
    return tuple(rng.normal(size=(4, w)).astype(floatx) for w in widths)


def _match(widths=(5, 6), **options):
    """All others are drawn, so values do not depend on the draw."""
    match = tfkd.ContrastiveMatch(
        LABELS, **{"dimensions": 3, "negatives": 8, **options}
    )
    return match, between(match, widths[:1], widths[1:])


def _train(value, student, teacher, index=BATCH, **kwargs):
    return value(
        student,
        teacher,
        labels=tf.constant(LABELS[index]),
        index=tf.constant(index),
        training=True,
        **kwargs,
    )


def _embedded(layer, signal):
    """Normalised embeddings in float64."""
    kernel, bias = (np.float64(w) for w in layer.get_weights())
    return np.array([unit(row) for row in np.float64(signal) @ kernel + bias])


def _expected(match, student, teacher, banks, constants=None):
    """Values `[batch]` of the formula, and the two constants Z."""
    z = (
        _embedded(match.student_embedding, student),
        _embedded(match.teacher_embedding, teacher),
    )
    others = [OTHERS[LABELS[number]] for number in BATCH]
    shared = (BATCH, others)
    temperature = match.temperature
    if constants is None:
        constants = [
            12 * mean_score(z[i], banks[1 - i], *shared, temperature)
            for i in (0, 1)
        ]
    values = sum(
        contrastive(z[i], banks[1 - i], *shared, constants[i], 12, temperature)
        for i in (0, 1)
    )
    return values, constants


def _banks(match):
    return match.student_bank.numpy(), match.teacher_bank.numpy()


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((5, 6), {}),
        ((1, 1), {"dimensions": 2}),
        ((7, 32), {"dimensions": 128}),
        ((32, 7), {"temperature": 0.5}),
    ],
)
def test_is_its_formula(widths, options):
    student, teacher = _signals(widths)
    match, value = _match(widths, **options)
    banks = _banks(match)
    expected, constants = _expected(match, student, teacher, banks)
    actual = _train(value, student, teacher)
    np.testing.assert_allclose(actual, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        match.log_constants, np.log(constants), rtol=1e-5
    )


def test_a_low_temperature_stays_in_range():
    """Scores up to exp(1000), which no float holds, by their logarithms.

    With s those of the scores over Z, Z of their mean times 12, and c = 8/12
    + 1e-7, the terms are `log(1 + c exp(-s))` of the own place and `log(1 +
    exp(s) / c) + log(c 12/8)` of the others.
    """
    student, teacher = _signals()
    match, value = _match(temperature=1e-3)
    z = [
        _embedded(match.student_embedding, student),
        _embedded(match.teacher_embedding, teacher),
    ]
    c = 8 / 12 + 1e-7
    rows = np.array([[n, *OTHERS[LABELS[n]]] for n in BATCH])
    expected = 0.0
    for i, bank in enumerate(_banks(match)[::-1]):
        s = np.einsum("bd,bkd->bk", z[i], np.float64(bank)[rows]) / 1e-3
        s -= np.logaddexp.reduce(s.ravel()) - np.log(s.size) + np.log(12 * c)
        others = np.logaddexp(0, s[:, 1:]) + np.log(c * 12 / 8)
        expected += np.mean(np.logaddexp(0, -s[:, 0]) + others.sum(axis=1))
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        actual = _train(value, variable, teacher)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert np.all(np.isfinite(tape.gradient(actual, variable)))


def test_the_constants_stay_those_of_the_first_batch():
    student, teacher = _signals()
    match, value = _match()
    _train(value, student, teacher)
    first, banks = match.log_constants.numpy(), _banks(match)
    student = student[::-1].copy()
    expected, _ = _expected(match, student, teacher, banks, np.exp(first))
    actual = _train(value, student, teacher)
    np.testing.assert_allclose(actual, expected.mean(), rtol=1e-5)
    np.testing.assert_array_equal(match.log_constants, first)


def test_the_banks_follow_the_embeddings():
    """Rows of the batch become n(0.8 row + 0.2 z), the others stay."""
    student, teacher = _signals()
    match, value = _match(momentum=0.8)
    before = _banks(match)
    for bank in before:
        np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-6)
    assert np.abs(before[0] - before[1]).min() > 0.0
    embedded = (
        _embedded(match.student_embedding, student),
        _embedded(match.teacher_embedding, teacher),
    )
    _train(value, student, teacher)
    for bank, old, z in zip(_banks(match), before, embedded, strict=True):
        expected = old.copy()
        for row, number in zip(z, BATCH, strict=True):
            expected[number] = unit(0.8 * old[number] + 0.2 * row)
        np.testing.assert_allclose(bank, expected, rtol=1e-5, atol=1e-7)


def test_evaluation_compares_with_the_other_embedding_and_changes_nothing():
    """The other network's embedding stands in the example's own place."""
    student, teacher = _signals()
    match, value = _match()
    _train(value, student, teacher)
    state = [v.numpy() for v in match.variables]
    seed = match._seeds.state.numpy()
    labels = tf.constant(LABELS[BATCH])
    actual = value(student, teacher, labels=labels)
    banks = [bank.copy() for bank in _banks(match)]
    banks[0][BATCH] = _embedded(match.student_embedding, student)
    banks[1][BATCH] = _embedded(match.teacher_embedding, teacher)
    expected = 0.0
    for i in range(4):
        # An example's own row is in no draw of its own.
        constants = np.exp(match.log_constants)
        one, _ = _expected(
            match, student, teacher, _one_row(match, banks, i), constants
        )
        expected += one[i] / 4
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for before, after in zip(state, match.variables, strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(match._seeds.state, seed)


def _one_row(match, banks, i):
    """The match's banks with one row of others."""
    changed = [bank.copy() for bank in _banks(match)]
    for bank, other in zip(changed, banks, strict=True):
        bank[BATCH[i]] = other[BATCH[i]]
    return changed


def test_weights_weigh_examples():
    student, teacher = _signals()
    match, value = _match()
    expected, _ = _expected(match, student, teacher, _banks(match))
    weights = np.array([3.0, 0.0, 1.0, 0.5])
    actual = _train(value, student, teacher, sample_weight=tf.constant(weights))
    np.testing.assert_allclose(actual, np.mean(weights * expected), rtol=1e-5)


def test_gradients(float64):
    student, teacher = _signals()
    match, value = _match()
    student = tf.Variable(student)
    states = [v for v in match.variables if not v.trainable]
    start = [v.numpy() for v in states]

    def fresh():
        """The value of the first step."""
        for variable, state in zip(states, start, strict=True):
            variable.assign(state)
        return _train(value, student, teacher)

    with tf.GradientTape() as tape:
        loss = fresh()
    assert loss.dtype == "float64"
    # The constants carry no gradient: they are held at those of this batch.
    start[[v.path for v in states].index(match.log_constants.path)] = (
        match.log_constants.numpy()
    )
    variables = [student, *(v.value for v in match.trainable_variables)]
    assert len(variables) == 5
    for variable, gradient in zip(
        variables, tape.gradient(loss, variables), strict=True
    ):
        point = variable.numpy()

        def moved(x, variable=variable):
            variable.assign(x)
            return float(fresh())

        expected = central_difference(moved, point)
        variable.assign(point)
        assert np.linalg.norm(expected) > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


# === The draw ===


def _draw(labels, classes, count, seed=0):
    others = OtherClasses(np.array(labels))
    classes = tf.constant(classes, tf.int32)
    return others.draw(classes, count, tf.constant([seed, 0])).numpy()


def test_without_replacement_every_subset_is_equally_likely():
    """Three of five others: 10 subsets, 300 of 3000 draws each.

    A count deviates by 16.4; the bound is five of it.
    """
    labels = [0, 1, 0, 2, 1, 1, 2]
    drawn = _draw(labels, [0] * 3000, 3)
    counts = collections.Counter(tuple(sorted(row)) for row in drawn)
    assert set(counts) == set(itertools.combinations([1, 3, 4, 5, 6], 3))
    assert all(abs(count - 300) < 82 for count in counts.values())


def test_with_replacement_every_pair_is_equally_likely():
    """Six of three others: any two draws are 9 pairs, 400 of 3600 each.

    A count deviates by 18.9; the bound is five of it.
    """
    labels = [0, 1, 0, 2, 0, 1, 0]
    drawn = _draw(labels, [0] * 3600, 6)
    for i, j in itertools.combinations(range(6), 2):
        counts = collections.Counter(zip(drawn[:, i], drawn[:, j], strict=True))
        assert set(counts) == set(itertools.product([1, 3, 5], repeat=2))
        assert all(abs(count - 400) < 94 for count in counts.values())


def test_each_class_repeats_only_if_it_must():
    """Class 0 has 2 others, classes 1 and 2 have 6, and 5, of no example, 7."""
    labels = [0, 1, 0, 2, 0, 0, 0]
    drawn = _draw(labels, [0, 1, 2, 5] * 50, 4)
    for row, label in zip(drawn, [0, 1, 2, 5] * 50, strict=True):
        assert all(labels[number] != label for number in row)
        assert (len(set(row)) == 4) == (label != 0)


def test_draws_differ_between_examples_and_steps():
    first = _draw(np.arange(100) % 2, [0] * 4, 10)
    assert len({tuple(row) for row in first}) == 4
    second = _draw(np.arange(100) % 2, [0] * 4, 10, seed=1)
    assert not np.any(np.all(first == second, axis=1))


def test_xla_draws_alike():
    """With replacement and without."""
    others = OtherClasses(np.arange(100) % 2 * (np.arange(100) < 90))
    classes, seed = tf.constant([0, 1, 1]), tf.constant([1, 2])
    for count in (40, 50):
        drawn = others.draw(classes, count, seed)
        compiled = tf.function(others.draw, jit_compile=True)
        np.testing.assert_array_equal(
            np.sort(compiled(classes, count, seed)), np.sort(drawn)
        )


# === In training ===


def _network(width, name, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    features = keras.layers.Dense(width, "tanh", name="features")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(features), name=name)


def _teacher():
    return _network(6, "teacher", seed=2)


def _data():
    """Eight inputs and their records: examples 1, 3, ..., of sixteen."""
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    index = np.arange(1, 16, 2)
    return x, {"label": _labels()[index], "index": index}


def _labels():
    return np.arange(16) % 3


def _distiller(**options):
    options = options or {"run_eagerly": True}  # no time for tracing
    match = tfkd.ContrastiveMatch(
        _labels(), dimensions=4, negatives=5, weight=0.8
    )
    student, teacher = _network(5, "student", seed=1), _teacher()
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=[match]
    )
    distiller.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return distiller


def _dataset(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(4)


def test_every_way_to_run_gives_the_same_weights():
    data = _dataset(_data())
    ways = {"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True}
    networks = [_distiller(**way) for way in ways]
    for distiller in networks:
        distiller.fit(data, epochs=2, verbose=0)
    for other in networks[1:]:
        for one, two in zip(networks[0].weights, other.weights, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5)


def test_arrays_and_datasets_reach_the_banks():
    """After one epoch the odd rows have moved, the even ones have not."""
    x, y = _data()
    for data in ((x, y), (_dataset((x, y)),)):
        distiller = _distiller()
        (match,) = distiller.matches
        before = _banks(match)
        distiller.fit(*data, verbose=0)
        for bank, old in zip(_banks(match), before, strict=True):
            moved = np.any(bank != old, axis=1)
            np.testing.assert_array_equal(moved, np.arange(16) % 2 == 1)


def test_training_continues_from_a_file(tmp_path):
    x, y = _data()
    distiller = _distiller()
    distiller.train_on_batch(x, y)
    distiller.save(tmp_path / "distiller.keras")
    again = tfkd.Distiller.load(
        tmp_path / "distiller.keras",
        teacher=_teacher(),
    )
    (match,), (loaded,) = distiller.matches, again.matches
    assert np.all(np.isfinite(loaded.log_constants))
    for one, two in zip(match.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    for _ in range(2):
        one, two = (d.train_on_batch(x, y) for d in (distiller, again))
        np.testing.assert_allclose(one, two, rtol=1e-6)
    for one, two in zip(distiller.weights, again.weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-7)


def test_each_step_draws_anew():
    x, y = _data()
    distiller = _distiller()
    distiller.optimizer.learning_rate = 0.0
    (match,) = distiller.matches
    banks = _banks(match)
    values = []
    for _ in range(2):
        logs = distiller.train_on_batch(x, y, return_dict=True)
        match.student_bank.assign(banks[0])
        match.teacher_bank.assign(banks[1])
        distiller.reset_metrics()
        values.append(logs["contrastive_match"])
    assert values[0] != values[1]


def test_validation_data_need_no_index():
    x, y = _data()
    distiller = _distiller()
    history = distiller.fit(
        x, y, validation_data=(x[:3], y["label"][:3]), verbose=0
    ).history
    assert np.isfinite(history["val_contrastive_match"]).all()


def test_one_hot_labels_serve():
    x, y = _data()
    y = {**y, "label": np.eye(3, dtype="float32")[y["label"]]}
    distiller = _distiller()
    distiller.compile(
        "sgd", keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert np.isfinite(history["val_contrastive_match"]).all()


# === Errors ===


def test_a_missing_index_says_how_to_give_one():
    x, y = _data()
    y = y["label"]
    for data in ((x, y), (_dataset((x, y)),)):
        distiller = _distiller()
        with pytest.raises(
            ValueError,
            match=r"'contrastive_match' needs.*inde"
            r"x=True\) gives them",
        ):
            distiller.fit(*data, verbose=0)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_an_index_out_of_range_is_named(options):
    x, y = _data()
    y["index"][3] = 16
    distiller = _distiller(**options)
    with pytest.raises(ValueError, match="expected 0 to 15.*from 1 to 16"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="Indices out of range: expected 0 to 15",
    ):
        distiller.fit(_dataset((x, y)), verbose=0)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_labels_of_other_data_are_named(options):
    """Under XLA, too, which leaves assertions out of a step."""
    x, y = _data()
    distiller = _distiller(**options)
    y = {**y, "index": np.roll(y["index"], 1)}
    with pytest.raises(ValueError, match="differ from.*known: 15, 1, 0"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Labels of the data differ from"
    ):
        distiller.fit(_dataset((x, y)), verbose=0)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": [[0, 1]]},
        {"labels": [0, 0]},
        {"labels": [0, -1]},
        {"labels": [0.0, 1.0]},
        {"at": ["a", "b"]},
        {"dimensions": 0},
        {"negatives": 1.5},
        {"temperature": 0.0},
        {"momentum": 1.0},
        {"momentum": True},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options):
    (argument,) = options
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        tfkd.ContrastiveMatch(**{"labels": LABELS, **options})


def test_maps_are_refused():
    with pytest.raises(ValueError, match="Choose a layer behind the pooling"):
        bind(tfkd.ContrastiveMatch(LABELS), identity((4, 4, 2)), identity((3,)))


def test_configuration_round_trip():
    match = tfkd.ContrastiveMatch(
        LABELS,
        at=("a", "b"),
        dimensions=7,
        negatives=9,
        temperature=0.1,
        momentum=0.9,
        seed=3,
        weight=0.8,
        name="crd",
    )
    again = type(match).from_config(match.get_config())
    assert again.get_config() == match.get_config()
    assert match.how == (
        "9 negatives, temperature 0.1, banks 2 x 12 x 7 (0.0 MB)"
    )
