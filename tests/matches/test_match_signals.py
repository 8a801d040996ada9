"""What a Match hands a loss: dicts, lists of places, all replicas' batches."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd import losses
from tfkd.trace import Trace, outline


@keras.saving.register_keras_serializable("tests")
class Recorder(losses.DistributionLoss):
    """Keeps what it is given."""

    signals = ("features", "outputs", "labels")

    def distance(self, y_true, y_pred, masses):
        self.seen = y_true, y_pred, masses
        return tf.reduce_sum(y_pred["features"])


def _networks(make_network):
    return [
        make_network(4, seed=seed, name=name, normalization=None)
        for seed, name in enumerate(("student", "teacher"))
    ]


def _value(match, student, teacher, images, labels, **kwargs):
    match.bind(
        student=outline(student, match.student_layers),
        teacher=outline(teacher, match.teacher_layers),
    )
    labels = None if labels is None else tf.constant(labels)
    observed = match.observe(
        Trace(teacher, images, layers=match.teacher_layers, labels=labels)
    )
    trace = Trace(student, images, layers=match.student_layers, labels=labels)
    return match.value(trace, observed, **kwargs)


def test_a_loss_of_several_signals_gets_dicts(make_network, images):
    x, labels = images
    student, teacher = _networks(make_network)
    loss = Recorder()
    match = tfkd.Match(loss, at=("stage2", "stage2"))
    assert match.needs_labels
    _value(match, student, teacher, x, labels[:, None])
    y_true, y_pred, masses = loss.seen
    np.testing.assert_allclose(y_true["outputs"], teacher(x), rtol=1e-5)
    np.testing.assert_allclose(y_pred["outputs"], student(x), rtol=1e-5)
    np.testing.assert_array_equal(y_true["labels"], labels)
    np.testing.assert_array_equal(y_pred["labels"], labels)
    assert y_true["features"].shape == (8, 2, 2, 8)
    np.testing.assert_allclose(masses, np.full(8, 1 / 8))


def test_a_projector_acts_on_the_features_alone(make_network, images):
    x, labels = images
    student, teacher = make_network(2, name="student"), make_network(4)
    loss = Recorder()
    match = tfkd.Match(loss, at="features", projector="dense")
    _value(match, student, teacher, x, labels)
    assert loss.seen[1]["features"].shape == (8, 8)
    assert loss.seen[1]["outputs"].shape == (8, 3)


@pytest.mark.parametrize("one_hot", [False, True])
def test_class_conditional_trains_and_is_saved(
    make_network, images, tmp_path, one_hot
):
    """Sparse or one-hot labels give the same loss; the file gives it too."""
    x, labels = images
    y = np.eye(3, dtype="float32")[labels] if one_hot else labels
    student, teacher = _networks(make_network)
    inner = losses.OptimalTransport("squared_euclidean")
    matches = [
        tfkd.Match(losses.ClassConditional(inner), at="features", name="cw2"),
        tfkd.Match(losses.JointTransport(2.0), at="features", name="jw2"),
        tfkd.Match(
            losses.OptimalTransport(), at=["stage1", "stage2"], name="ot"
        ),
        tfkd.Match(
            losses.NeuronTransport(), at="stage2", across_replicas=False
        ),
    ]
    assert matches[0].how == (
        "ClassConditional(OptimalTransport(cost=squared_euclidean, "
        "solver=ipot))"
    )
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    distiller.compile("sgd", None)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    features = [
        tfkd.trace.Trace(net, x, layers=["features"])["features"]
        for net in (teacher, student)
    ]
    sides = [{"features": f, "labels": labels} for f in features]
    np.testing.assert_allclose(
        logs["cw2"], losses.ClassConditional(inner)(*sides), rtol=1e-5
    )
    distiller.save(tmp_path / "trainer.keras")
    loaded = tfkd.Distiller.load(tmp_path / "trainer.keras", teacher=teacher)
    again = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert set(again) == set(logs)
    for key, value in logs.items():
        np.testing.assert_allclose(again[key], value, rtol=1e-6)
    config = loaded.matches[3].get_config()
    assert config["across_replicas"] is False
    before = [v.numpy() for v in student.trainable_variables]
    distiller.train_on_batch(x, y)
    for variable, value in zip(
        student.trainable_variables, before, strict=True
    ):
        assert np.any(variable.numpy() != value)


def test_labels_that_are_missing_are_asked_for(make_network, images):
    student, teacher = _networks(make_network)
    loss = losses.ClassConditional(losses.OptimalTransport())
    match = tfkd.Match(loss, at="features")
    with pytest.raises(ValueError, match=r"needs one tensor of labels"):
        _value(match, student, teacher, images[0], None)
    with pytest.raises(ValueError, match=r"labels.shape=\(8, 7\)"):
        _value(match, student, teacher, images[0], np.zeros([8, 7]))


def test_labels_out_of_range_are_refused(make_network, images):
    student, teacher = _networks(make_network)
    loss = losses.ClassConditional(losses.OptimalTransport())
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=[tfkd.Match(loss, at="features")],
    )
    distiller.compile("sgd", None)
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        distiller.fit(images[0], np.arange(8) % 4, verbose=0)


def test_outputs_must_be_logits_of_the_same_classes(make_network):
    student, teacher = _networks(make_network)
    softmax = keras.Model(
        student.inputs,
        [keras.layers.Softmax()(student.outputs[0])],
        name="squashed",
    )
    match = tfkd.Match(losses.JointTransport(), at="features")
    with pytest.raises(ValueError, match="needs logits, but 'squashed'"):
        tfkd.Distiller(student=softmax, teacher=teacher, matches=[match])
    match = tfkd.Match(losses.JointTransport(), at="features")
    other = make_network(4, classes=5, name="other")
    with pytest.raises(ValueError, match="has 3 classes and.*'other' 5"):
        match.bind(
            student=outline(student, ["features"]),
            teacher=outline(other, ["features"]),
        )


def test_places_give_their_sum(make_network, images):
    """Also with weights, and with maps and vectors in one match."""
    x, labels = images
    student, teacher = _networks(make_network)
    places = ["stage1", "stage2", "features"]
    weights = tf.constant([1.0, 2.0, 0.0, 1.0, 3.0, 1.0, 1.0, 0.5])
    for loss in (losses.OptimalTransport(), losses.RelaxedEarthMover()):
        values = [
            _value(
                tfkd.Match(loss, at=at),
                student,
                teacher,
                x,
                labels,
                sample_weight=weights,
            )
            for at in (places, *places)
        ]
        np.testing.assert_allclose(values[0], sum(values[1:]), rtol=1e-5)


def test_joint_hands_the_lists_of_all_places(make_network, images):
    def across(y_true, y_pred):
        """Product of the means of two places, by example."""
        means = [
            [tf.reduce_mean(tf.reshape(z, [8, -1]), axis=1) for z in side]
            for side in (y_true, y_pred)
        ]
        return means[0][0] * means[0][1] - means[1][0] * means[1][1]

    x, labels = images
    student, teacher = _networks(make_network)
    match = tfkd.Match(across, at=["stage1", "stage2"], joint=True)
    weights = np.arange(8, dtype="float32")
    value = _value(
        match, student, teacher, x, labels, sample_weight=tf.constant(weights)
    )
    sides = [
        [
            np.reshape(Trace(net, x, layers=[at])[at], [8, -1]).mean(axis=1)
            for at in ("stage1", "stage2")
        ]
        for net in (teacher, student)
    ]
    each = sides[0][0] * sides[0][1] - sides[1][0] * sides[1][1]
    np.testing.assert_allclose(value, np.mean(weights * each), rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "settings", "argument"),
    [
        ("mse", {"across_replicas": True}, "across_replicas"),
        (losses.OptimalTransport(), {"across_replicas": 2}, "across_replicas"),
        (losses.OptimalTransport(), {"joint": True}, "joint"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(loss, settings, argument):
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        tfkd.Match(loss, **settings)


def test_unknown_signals_are_refused():
    class Odd(Recorder):
        signals = ("features", "weather")

    with pytest.raises(ValueError, match="signals=.*'weather'"):
        tfkd.Match(Odd())


def test_the_exact_solver_keeps_xla_off(make_network):
    student, teacher = _networks(make_network)
    loss = losses.OptimalTransport(solver="exact")
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=[tfkd.Match(loss, at="features")],
    )
    assert not distiller.supports_jit
    with pytest.raises(ValueError, match="does not run under XLA"):
        distiller.compile("sgd", None, jit_compile=True)
    distiller.compile("sgd", None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 8, 2))
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    features = [
        Trace(net, x, layers=["features"]) for net in (teacher, student)
    ]
    expected = loss(*(trace["features"] for trace in features))
    np.testing.assert_allclose(logs["optimal_transport"], expected, rtol=1e-5)


# Logical devices must be there before TensorFlow starts.
_REPLICAS = """
import keras
import numpy as np
import tensorflow as tf
import tfkd
from tfkd import losses

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
rng = np.random.default_rng(0)
x = rng.normal(size=(8, 6)).astype("float32")
labels = rng.integers(0, 3, size=8)
weights = rng.uniform(0.5, 1.5, size=8).astype("float32")
batches = tf.data.Dataset.from_tensors((x, labels, weights)).unbatch()
batches = batches.batch(8, drop_remainder=True)
def network(name):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "softplus", name="hidden"),
            keras.layers.Dense(8, name="features"),
            keras.layers.Dense(3),
        ],
        name=name,
    )

def step(strategy, matched, places, across_replicas=None):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        matches = [
            tfkd.Match(
                loss, at=places, across_replicas=across_replicas, name=name
            )
            for name, loss in matched.items()
        ]
        distiller = tfkd.Distiller(
            student=network("student"),
            teacher=network("teacher"),
            matches=matches,
        )
        distiller.compile(keras.optimizers.SGD(0.01), None)
    logs = distiller.fit(batches, verbose=0).history
    return [
        *(value[0] for value in logs.values()),
        *(v.numpy().ravel() for v in distiller.trainable_variables),
    ]

def assert_equal(one, two):
    np.testing.assert_allclose(
        np.hstack(two), np.hstack(one), rtol=1e-6, atol=1e-6
    )

one = tf.distribute.get_strategy()
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
squared = losses.OptimalTransport("squared_euclidean")
every = {
    "class": losses.ClassConditional(squared),
    "joint": losses.JointTransport(1.0),
    "neuron": losses.NeuronTransport(),
    "sinkhorn": losses.SinkhornDivergence(),
}
assert_equal(step(one, every, "features"), step(two, every, "features"))
both = ["hidden", "features"]
summed = {"sum": losses.OptimalTransport(reduction="sum")}
expected = step(one, summed, both)
assert_equal(expected, step(two, summed, both))
apart = step(two, summed, both, across_replicas=False)
assert np.max(np.abs(np.hstack(apart) - np.hstack(expected))) > 1e-3
print("equal")
"""


def test_two_replicas_equal_one_device():
    """Values and weights after a step; apart, each its half, they differ."""
    done = subprocess.run(
        [sys.executable, "-c", _REPLICAS],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
