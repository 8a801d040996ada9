"""The papers' names, their matches and their published weights."""

import keras
import numpy as np
import pytest

import tfkd


@pytest.fixture
def vgg():
    """A VGG-4 student and a VGG-9 teacher, narrow."""
    build = tfkd.models.build
    shared = {"num_classes": 10, "input_shape": (32, 32, 1)}
    student = build("vgg4", width=0.125, **shared)
    return student, build("vgg9", width=0.25, **shared)


def _build(name, networks, **overrides):
    student, teacher = networks
    return tfkd.methods.build(
        name, student=student, teacher=teacher, **overrides
    )


def _summary(method):
    return [(match.name, match.weight) for match in method.matches]


@pytest.mark.parametrize(
    ("name", "matches", "label_weight"),
    [
        ("ce", [], 1.0),
        ("kd", [("kd", 0.9)], 0.1),
        ("activations", [("activations", 1.0)], 1.0),
        ("jacobian", [("jacobian", 1.0)], 1.0),
        (
            "activations+jacobian",
            [("activations", 1.0), ("jacobian", 1.0)],
            1.0,
        ),
        ("fitnet", [("fitnet", 100.0)], 1.0),
        ("ipot", [("ipot", 1.0)], 1.0),
        ("remd", [("remd", 1.0)], 1.0),
        ("gaussian-w2", [("gaussian_w2", 1e-4)], 1.0),
        ("gaussian-kl", [("gaussian_kl", 1e-4)], 1.0),
        ("mmd", [("mmd", 1.0)], 1.0),
        ("gaussian-w2+kd", [("gaussian_w2", 1e-4), ("kd", 1.0)], 1.0),
        ("ipot+kd", [("ipot", 1.0), ("kd", 1.0)], 1.0),
        ("remd+kd", [("remd", 1.0), ("kd", 1.0)], 1.0),
    ],
)
def test_published_weights(vgg, name, matches, label_weight):
    method = _build(name, vgg)
    assert method.name == name
    assert _summary(method) == matches
    assert method.label_weight == label_weight


@pytest.mark.parametrize("name", [*tfkd.methods.NAMES, "ipot+fitnet+kd"])
def test_every_method_trains(vgg, name):
    student, teacher = vgg
    method = _build(name, vgg)
    distiller = tfkd.Distiller(student=student, teacher=teacher, matches=method)
    assert distiller.label_weight == method.label_weight
    distiller.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 32, 32, 1)).astype("float32")
    before = [v.numpy() for v in distiller.trainable_variables]
    logs = distiller.train_on_batch(
        x, rng.integers(0, 10, size=6), return_dict=True
    )
    for match in method.matches:
        assert logs[match.name] > 0
    moved = [
        np.any(variable.numpy() != value)
        for variable, value in zip(
            distiller.trainable_variables, before, strict=True
        )
    ]
    assert all(moved)


def test_transport_compares_the_common_stages_and_the_features(vgg):
    """Stages 1 to 3 of VGG-4 meet those of VGG-9 at equal sizes.

    Widths 8, 16, 64 against 16, 32, 64: the teacher's first two maps are
    convolved to the student's; the third agrees. The features, 64 against
    128, meet in 128 dimensions.
    """
    (match,) = _build("ipot", vgg).matches
    places = ["stage1", "stage2", "stage3", "features"]
    assert [tuple(pair) for pair in match.pairs] == [(p, p) for p in places]
    student, teacher = vgg
    tfkd.Distiller(student=student, teacher=teacher, matches=[match])
    shapes = [
        None if layer is None else layer.kernel.shape
        for layer in match.teacher_projectors
    ]
    assert shapes == [(1, 1, 16, 8), (1, 1, 32, 16), None, (128, 128)]
    shapes = [
        None if layer is None else layer.kernel.shape
        for layer in match.student_projectors
    ]
    assert shapes == [None, None, None, (64, 128)]


def test_equal_widths_need_no_projector(vgg):
    student, _ = vgg
    twin = keras.models.clone_model(student)
    (match,) = _build("remd", (student, twin)).matches
    assert not any(match.student_projectors + match.teacher_projectors)


def test_fitnet_regresses_with_convolution_norm_and_rectifier(vgg):
    (match,) = _build("fitnet", vgg).matches
    (regressor,) = match.student_projectors
    kinds = [type(layer).__name__ for layer in regressor.layers]
    assert kinds == ["Conv2D", "BatchNormalization", "ReLU"]
    assert match.where == "stage2"


def test_settings_reach_the_part_that_has_them(vgg):
    method = _build("ipot+kd", vgg, temperature=2.0, beta="paper")
    ipot, kd = method.matches
    assert kd.loss.temperature == 2.0
    assert ipot.loss.beta == "paper"
    method = _build("ipot+kd", vgg, kd={"weight": 0.5}, at="features")
    assert _summary(method) == [("ipot", 1.0), ("kd", 0.5)]
    (match,) = _build("kd", vgg, weight=0.3).matches
    assert match.weight == 0.3


def test_hyphens_are_underscores_in_keywords(vgg):
    method = _build("gaussian-w2+kd", vgg, gaussian_w2={"weight": 0.5})
    assert _summary(method) == [("gaussian_w2", 0.5), ("kd", 1.0)]
    with pytest.raises(ValueError, match="by part: gaussian_w2={...}"):
        _build("gaussian-w2+kd", vgg, weight=0.5)


def test_distributions_of_features_are_compared_in_the_teachers_space(vgg):
    """64 features of the student are projected to the teacher's 128.

    The teacher's are left alone, or projecting both to 0 would do.
    """
    student, teacher = vgg
    for name in ("gaussian-w2", "gaussian-kl", "mmd"):
        (match,) = _build(name, vgg).matches
        assert match.where == "features"
        tfkd.Distiller(student=student, teacher=teacher, matches=[match])
        (projector,) = match.student_projectors
        assert projector.kernel.shape == (64, 128)
        assert match.teacher_projectors == [None]
    twin = keras.models.clone_model(student)
    (match,) = _build("gaussian-w2", (student, twin)).matches
    assert match.student_projectors == [None]
    (match,) = _build("gaussian-w2", vgg, at="stage2").matches
    tfkd.Distiller(student=student, teacher=teacher, matches=[match])
    (projector,) = match.student_projectors
    assert projector.kernel.shape == (1, 1, 16, 32)


def test_gaussian_methods_are_summed_over_dimensions_as_printed(vgg):
    (match,) = _build("gaussian-kl", vgg, ridge=0.5).matches
    assert match.loss.ridge == 0.5
    assert not match.loss.per_dimension
    assert match.loss.direction == "student||teacher"
    (match,) = _build("gaussian-w2", vgg, covariance="diagonal").matches
    assert match.loss.covariance == "diagonal"
    (match,) = _build("mmd", vgg, kernel="energy").matches
    assert match.loss.kernel == "energy"


def test_unknown_and_ambiguous_settings_are_refused(vgg):
    with pytest.raises(ValueError, match="`weight` belongs to.*by part"):
        _build("ipot+kd", vgg, weight=0.5)
    with pytest.raises(ValueError, match="`heat` belongs to no part"):
        _build("kd", vgg, heat=3.0)
    with pytest.raises(ValueError, match="'kd' has no setting `heat`"):
        _build("kd", vgg, kd={"heat": 3.0})


def test_unknown_methods_are_refused_with_the_list(vgg):
    with pytest.raises(ValueError, match=r"'ipott'.*'remd'.*mean 'ipot'"):
        _build("ipott+kd", vgg)
    with pytest.raises(ValueError, match="twice"):
        _build("kd+kd", vgg)


def test_networks_without_the_named_stages_say_where_to_look(make_network):
    pair = (
        make_network(),
        keras.Sequential(
            [keras.Input((8, 8, 2)), keras.layers.Flatten(name="flat")]
        ),
    )
    with pytest.raises(ValueError, match="Say where to compare them"):
        _build("ipot", pair)
