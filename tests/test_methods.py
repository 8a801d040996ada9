"""The papers' names, their matches and their published weights."""

import re

import keras
import numpy as np
import pytest

import tfkd

# Of the training examples.
LABELS = np.arange(10).repeat(3)


@pytest.fixture
def vgg():
    """A VGG-4 student and a VGG-9 teacher, narrow."""
    build = tfkd.models.build
    shared = {"num_classes": 10, "input_shape": (32, 32, 1)}
    student = build("vgg4", width=0.125, **shared)
    return student, build("vgg9", width=0.25, **shared)


def _twin(student):
    """A teacher of equal widths, of other weights."""
    return keras.models.clone_model(student)


def _build(name, networks, **overrides):
    student, teacher = networks
    if name == "fsp" and "at" not in overrides:
        teacher = _twin(student)
    if "crd" in name.split("+"):
        overrides = {"labels": LABELS, **overrides}
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
        ("w2", [("w2", 1e-4)], 1.0),
        ("cw2", [("cw2", 1e-4)], 1.0),
        ("jw2", [("jw2", 1e-4)], 1.0),
        ("neuron-ot", [("neuron-ot", 0.1)], 1.0),
        ("neuron-identity", [("neuron-identity", 0.1)], 1.0),
        ("neuron-uniform", [("neuron-uniform", 0.1)], 1.0),
        ("neuron-ot+kd", [("neuron-ot", 0.1), ("kd", 1.0)], 1.0),
        ("gaussian-w2", [("gaussian-w2", 1e-4)], 1.0),
        ("gaussian-cw2", [("gaussian-cw2", 1e-4)], 1.0),
        ("gaussian-kl", [("gaussian-kl", 1e-4)], 1.0),
        ("mmd", [("mmd", 1.0)], 1.0),
        ("gaussian-w2+kd", [("gaussian-w2", 1e-4), ("kd", 1.0)], 1.0),
        ("vid", [("vid", 1.0)], 1.0),
        ("ft", [("ft", 200.0)], 1.0),
        ("ab", [], 1.0),
        ("fsp", [], 1.0),
        ("crd", [("crd", 0.8)], 1.0),
        ("crd+kd", [("crd", 0.8), ("kd", 1.0)], 1.0),
        ("ipot+kd", [("ipot", 1.0), ("kd", 1.0)], 1.0),
        ("remd+kd", [("remd", 1.0), ("kd", 1.0)], 1.0),
        ("attention", [("attention", 1000.0)], 1.0),
        ("sp", [("sp", 3000.0)], 1.0),
        ("cc", [("cc", 0.02)], 1.0),
        ("rkd", [("rkd_distance", 25.0), ("rkd_angle", 50.0)], 1.0),
        ("pkt", [("pkt", 3e4)], 1.0),
        ("nst", [("nst", 50.0)], 1.0),
        ("dkd", [("dkd", 1.0)], 1.0),
        ("lskd", [("lskd", 9.0)], 0.1),
        ("dist", [("dist", 2.0)], 1.0),
        (
            "ipot+sp+kd",
            [("ipot", 1.0), ("sp", 3000.0), ("kd", 1.0)],
            1.0,
        ),
        ("lskd+sp", [("lskd", 9.0), ("sp", 3000.0)], 1.0),
        ("finetune", [], 1.0),
        ("l2", [("l2", 1.0)], 1.0),
        ("l2-sp", [("l2-sp", 1.0)], 1.0),
        ("lwf", [("lwf", 10.0)], 10.0),
        ("lwf+attention", [("lwf", 10.0), ("attention", 10.0)], 10.0),
        ("lwf+jacobian", [("lwf", 10.0), ("jacobian", 10.0)], 10.0),
        (
            "lwf+attention+jacobian",
            [("lwf", 10.0), ("attention", 10.0), ("jacobian", 10.0)],
            10.0,
        ),
        ("lwf+kd", [("lwf", 10.0), ("kd", 1.0)], 10.0),
    ],
)
def test_published_weights(vgg, name, matches, label_weight):
    method = _build(name, vgg)
    assert method.name == name
    assert _summary(method) == matches
    assert method.label_weight == label_weight


@pytest.mark.parametrize("name", tfkd.methods.NAMES)
def test_description_has_the_weights_of_the_matches(vgg, name):
    """The numbers in its words are those of what is built."""
    description = tfkd.methods.describe(name)
    assert description.name == name
    words = set(filter(None, description.needs.split(", ")))
    assert words <= {
        "labels",
        "indices",
        "a stage before",
        "a source head",
        "its own start",
    }
    method = _build(name, vgg)
    # Of a sum's name the last part is described.
    own = method.matches[name.count("+") :]
    weights = [match.weight for match in own]
    if name in ("l2", "l2-sp"):
        weights = [own[0].kernel, own[0].new]
    if name.startswith("neuron-"):
        student, _ = vgg
        start = tfkd.methods.build(name, student=student)
        weights += [match.weight for match in start.matches]
    if method.label_weight != 1.0:
        weights.append(method.label_weight)
    numbers = re.findall(r"\d+\.?\d*(?:e-\d+)?", description.weight)
    assert [float(number) for number in numbers] == weights
    needs = any(
        match.needs_labels
        or "labels" in getattr(getattr(match, "loss", None), "signals", ())
        for match in method.matches
    )
    assert needs == ("labels" in words)
    head = any(match.reads_outputs for match in method.matches)
    assert head >= ("a source head" in words)
    start = any(isinstance(match, tfkd.L2SP) for match in method.matches)
    assert start == ("its own start" in words)
    indices = any(match.needs_index for match in method.matches)
    assert indices == ("indices" in words)
    assert bool(method.stages) == ("a stage before" in words)


def test_only_methods_by_themselves_are_described():
    for name in ("ipot+kd", "ipott", None):
        with pytest.raises(ValueError, match=re.escape(f"method '{name}'")):
            tfkd.methods.describe(name)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("attention", [(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]),
        ("nst", [(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]),
        ("sp", [("stage3", "stage5")]),
        ("cc", [("features", "features")]),
        ("pkt", [("features", "features")]),
        ("lskd", [(None, None)]),
        ("dist", [(None, None)]),
        ("dkd", [(None, None)]),
    ],
)
def test_published_places(vgg, name, at):
    """VGG-4 has three stages, VGG-9 five."""
    (match,) = _build(name, vgg).matches
    assert match.pairs == at


def test_published_settings(vgg):
    def loss(name):
        return _build(name, vgg).matches[0].loss

    assert loss("attention").squared
    assert loss("lskd").temperature == 2.0
    assert loss("dist").temperature == 4.0
    decoupled = loss("dkd")
    assert decoupled.temperature == 4.0
    assert (decoupled.target_weight, decoupled.others_weight) == (1.0, 8.0)


def test_congruence_embeds_both_features_in_128_dimensions(vgg):
    (match,) = _build("cc", vgg).matches
    student, teacher = vgg
    tfkd.Distiller(student=student, teacher=teacher, matches=[match])
    for projectors, width in (
        (match.student_projectors, 64),
        (match.teacher_projectors, 128),
    ):
        (projector,) = projectors
        assert projector.kernel.shape == (width, 128)
        assert projector.activation is keras.activations.linear
        assert projector.trainable


@pytest.mark.parametrize(
    "name",
    [
        *(
            name
            for name in tfkd.methods.NAMES
            if tfkd.methods.describe(name).needs
            not in ("a source head", "its own start")
        ),
        "ipot+fitnet+kd",
        "ipot+sp+kd",
    ],
)
def test_every_method_of_one_task_trains(vgg, name):
    """All its stages, each everything that it has to train."""
    student, teacher = vgg
    if name == "neuron-identity":  # takes as many neurons in either
        teacher = tfkd.models.build(
            "vgg9", num_classes=10, input_shape=(32, 32, 1), width=0.125
        )
    if name == "fsp":
        teacher = _twin(student)
    method = _build(name, (student, teacher))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 32, 32, 1)).astype("float32")
    index = rng.permutation(30)[:6]
    y = {"label": LABELS[index], "index": index}
    for stage in (*method.stages, method):
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=stage
        )
        assert distiller.label_weight == stage.label_weight
        distiller.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        trained = distiller.trainable_variables
        if stage.label_weight == 0:
            out_of_reach = student.get_layer("logits")
            if not any(match.trains_student for match in stage.matches):
                out_of_reach = student
            ids = {id(v) for v in out_of_reach.variables}
            trained = [v for v in trained if id(v) not in ids]
        before = [v.numpy() for v in trained]
        logs = distiller.train_on_batch(x, y, return_dict=True)
        for match in stage.matches:
            assert logs[match.name] > 0
        moved = [
            np.any(variable.numpy() != value)
            for variable, value in zip(trained, before, strict=True)
        ]
        assert all(moved)


def _one_step(transferer):
    """The logs of a step of training, and of the trained what moved."""
    transferer.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x = np.random.default_rng(0).normal(size=(6, 32, 32, 1)).astype("float32")
    before = [v.numpy() for v in transferer.trainable_variables]
    logs = transferer.train_on_batch(x, np.arange(6), return_dict=True)
    moved = [
        np.any(variable.numpy() != value)
        for variable, value in zip(
            transferer.trainable_variables, before, strict=True
        )
    ]
    return logs, moved


@pytest.mark.parametrize(
    "name",
    [
        "lwf",
        "lwf+attention",
        "lwf+jacobian",
        "lwf+attention+jacobian",
        "attention+lwf",
        "lwf+kd",
    ],
)
def test_methods_with_a_source_head_train(vgg, name):
    student, _ = vgg
    teacher = tfkd.models.build(
        "vgg9", num_classes=17, input_shape=(32, 32, 1), width=0.25
    )
    method = tfkd.methods.build(name, student=student, teacher=teacher)
    transferer = tfkd.Transferer(
        student=student, teacher=teacher, source_head=True, matches=method
    )
    logs, moved = _one_step(transferer)
    assert all(moved)
    assert all(logs[match.name] > 0 for match in method.matches)
    assert transferer.label_weight == 10.0


@pytest.mark.parametrize(
    "name",
    [
        "ce",
        "finetune",
        "l2",
        "l2-sp",
        "neuron-ot",
        "neuron-identity",
        "neuron-uniform",
        "neuron-ot+l2-sp",
    ],
)
def test_methods_from_the_own_start_train(vgg, name):
    student, _ = vgg
    method = tfkd.methods.build(name, student=student)
    transferer = tfkd.Transferer(
        student=student, reference="start", matches=method
    )
    logs, moved = _one_step(transferer)
    assert all(moved)
    assert all(logs[match.name] > 0 for match in method.matches)


def test_neurons_of_the_own_start_are_compared_at_one_stage_more(vgg):
    """The last but one of three; with a teacher at the features alone."""
    student, _ = vgg
    for name in ("neuron-ot", "neuron-identity", "neuron-uniform"):
        (match,) = tfkd.methods.build(name, student=student).matches
        assert (match.where, match.weight) == ("stage2, features", 0.01)
        (match,) = _build(name, vgg).matches
        assert (match.where, match.weight) == ("features", 0.1)
        (match,) = _build(name, vgg, at="stage1", weight=1.0).matches
        assert (match.where, match.weight) == ("stage1", 1.0)


@pytest.mark.parametrize("name", ["jacobian", "lwf+jacobian"])
def test_statistics_of_jacobians_can_be_chosen(vgg, name):
    for options, expected in (
        ({}, "frozen"),
        ({"batch_statistics": "moving"}, "moving"),
    ):
        match = _build(name, vgg, **options).matches[-1]
        assert match.name == "jacobian"
        assert match.batch_statistics == expected


def test_attention_beside_lwf_is_that_of_its_paper():
    """Equation 9 at all stages of equal maps, equation 10 at the first.

    Pools halve VGG-9's maps of 64 pixels to 32, 16, 8, 4, 2; ResNet-34 begins
    with a quarter, 16. So its first stage meets the second pool.
    """
    student = tfkd.models.build(
        "vgg9", num_classes=5, input_shape=(64, 64, 3), width=0.0625
    )
    teacher = tfkd.models.build(
        "resnet34", num_classes=7, input_shape=(64, 64, 3), width=0.0625
    )
    method = tfkd.methods.build(
        "lwf+attention+jacobian", student=student, teacher=teacher
    )
    _, attention, jacobian = method.matches
    first = ("stage2", "stage1")
    assert attention.pairs == [
        first,
        ("stage3", "stage2"),
        ("stage4", "stage3"),
        ("stage5", "stage4"),
    ]
    assert not attention.loss.squared
    assert jacobian.pairs == [first]
    assert isinstance(jacobian, tfkd.AttentionJacobianMatch)
    assert jacobian.window == 5
    assert jacobian.batch_statistics == "frozen"
    other = tfkd.methods.build(
        "lwf+attention",
        student=student,
        teacher=teacher,
        attention={"weight": 2.0, "at": "stage2"},
    )
    assert _summary(other) == [("lwf", 10.0), ("attention", 2.0)]


def test_stages_of_no_equal_size_are_named(vgg):
    student, _ = vgg
    teacher = tfkd.models.build(
        "vgg4", num_classes=7, input_shape=(40, 40, 1), width=0.0625
    )
    with pytest.raises(ValueError, match=r"equal size.*\(20, 20\).*Say where"):
        tfkd.methods.build("lwf+jacobian", student=student, teacher=teacher)


def test_methods_that_need_a_teacher_say_so(vgg):
    student, _ = vgg
    with pytest.raises(ValueError, match="'kd' compares with a teacher.*'l2'"):
        tfkd.methods.build("l2+kd", student=student)


def test_the_strengths_of_kernels_are_settings(vgg):
    student, _ = vgg
    for name, kind in (("l2", tfkd.L2), ("l2-sp", tfkd.L2SP)):
        (match,) = tfkd.methods.build(
            name, student=student, weight=0.5, new=0.25, new_layers=["stage1"]
        ).matches
        assert isinstance(match, kind)
        assert (match.kernel, match.new, match.weight) == (0.5, 0.25, 1.0)
        assert match.new_layers == ["stage1"]


def test_ft_has_a_stage_for_its_paraphraser(vgg):
    """At the last maps; the fifth of VGG-9 has one position only."""
    method = _build("ft+kd", vgg, stage_epochs=7)
    ((name, (stage,), label_weight, epochs),) = method.stages
    assert (name, label_weight, epochs) == ("ft", 0.0, 7)
    factor, _ = method.matches
    assert stage.paraphraser is factor.paraphraser
    assert stage.teacher_layers == ["stage4"]
    assert factor.pairs == [("stage3", "stage4")]
    assert _build("ft", vgg).stages[0].epochs == 30
    assert _build("vid", vgg).stages == ()


def test_ab_is_a_stage_before_the_main_one(vgg):
    """3/1000 at the last of three stages, and half at each before."""
    method = _build("ab", vgg, stage_epochs=5)
    (stage,) = method.stages
    assert (stage.label_weight, stage.epochs) == (0.0, 5)
    assert _summary(stage) == [
        ("ab1", 0.00075),
        ("ab2", 0.0015),
        ("ab3", 0.003),
    ]
    places = [match.where for match in stage.matches]
    assert places == [f"stage{i}_preactivation" for i in (1, 2, 3)]
    for match in stage.matches:
        (connector,) = match.student_projectors
        kinds = [type(layer).__name__ for layer in connector.layers]
        assert kinds == ["Conv2D", "BatchNormalization"]


@pytest.mark.parametrize("name", ["ft", "ab", "fsp"])
def test_a_stage_has_an_epoch_at_least(vgg, name):
    with pytest.raises(ValueError, match="argument `stage_epochs`.*=0"):
        _build(name, vgg, stage_epochs=0)


def test_ab_has_no_weight_that_changes(vgg):
    with pytest.raises(ValueError, match="`weight`. Expected a number, which"):
        _build("ab", vgg, weight=lambda step: 1.0)


def test_fsp_is_a_stage_from_the_stem_through_the_stages(vgg):
    method = _build("fsp", vgg)
    ((_, (match,), label_weight, epochs),) = method.stages
    assert (match.weight, label_weight, epochs) == (1.0, 0.0, 30)
    assert match.where == "stem, stage1, stage2, stage3"
    assert match.joint


def test_fsp_refuses_widths_that_differ(vgg):
    with pytest.raises(ValueError, match="at 'stem' has 8 channels.*has 16"):
        _build("fsp", vgg, at=["stem", "stage1"])


def test_vid_predicts_the_common_stages(vgg):
    (match,) = _build("vid", vgg).matches
    places = ["stage1", "stage2", "stage3"]
    assert match.pairs == [(place, place) for place in places]


def test_crd_asks_for_the_labels_of_the_training_data(vgg):
    with pytest.raises(ValueError, match=r"'crd' draws.*labels=\[\.\.\.\]"):
        _build("crd", vgg, labels=None)
    (match,) = _build("crd", vgg, negatives=8, temperature=0.1).matches
    assert (match.negatives, match.temperature) == (8, 0.1)
    assert match.num_examples == 30
    (match,) = _build("crd", vgg).matches
    assert (match.negatives, match.dimensions) == (16384, 128)
    assert (match.temperature, match.momentum) == (0.07, 0.5)


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


@pytest.fixture
def wrapped(vgg):
    """The student, and the teacher inside a model that prepares its input."""
    student, base = vgg
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.Rescaling(2.0, offset=-1.0)(inputs)
    x = keras.layers.Resizing(32, 32)(x)
    teacher = keras.Model(inputs, base(x), name="prepared")
    student = tfkd.models.build(
        "vgg4", width=0.125, num_classes=10, input_shape=(16, 16, 1)
    )
    return student, teacher


def test_stages_are_found_inside_a_prepared_teacher(wrapped):
    """Every method that looks for them, in one training."""
    student, teacher = wrapped
    method = _build("ipot+remd+fitnet+jacobian", wrapped)
    places = ["stage1", "stage2", "stage3", "features"]
    for match in method.matches[:2]:
        assert list(match.pairs) == [(p, p) for p in places]
    distiller = tfkd.Distiller(student=student, teacher=teacher, matches=method)
    distiller.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype("float32")
    logs = distiller.train_on_batch(x, np.arange(4), return_dict=True)
    for match in method.matches:
        assert 0 < logs[match.name] < np.inf


def test_a_prepared_teacher_is_compared_with_by_value(wrapped):
    """The nested stage, of the resized and rescaled image."""
    student, teacher = wrapped
    base = teacher.layers[-1]
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype("float32")
    prepared = keras.layers.Resizing(32, 32)(2.0 * x - 1.0)
    stage = keras.Model(base.input, base.get_layer("features").output)
    theirs = stage(prepared, training=False).numpy()
    kernel = np.random.default_rng(1).normal(size=(64, 128)).astype("float32")
    ours = keras.Model(student.input, student.get_layer("features").output)
    expected = np.mean((ours(x, training=False) @ kernel - theirs) ** 2)
    projector = keras.layers.Dense(128, use_bias=False)
    match = tfkd.Match("mse", at="features", projector=projector, name="match")
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=[match]
    )
    (built,) = match.student_projectors
    built.set_weights([kernel])
    distiller.compile("sgd")
    values = distiller.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(values["match"], expected, rtol=1e-4)


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
    assert _summary(method) == [("gaussian-w2", 0.5), ("kd", 1.0)]
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


def test_distribution_methods_compare_the_features(vgg):
    """Widths 64 and 128 meet in the teacher's; neurons need not meet."""
    for name in ("w2", "cw2", "jw2"):
        (match,) = _build(name, vgg).matches
        assert match.where == "features"
        student, teacher = vgg
        tfkd.Distiller(student=student, teacher=teacher, matches=[match])
        (projector,) = match.student_projectors
        assert projector.kernel.shape == (64, 128)
        # The teacher's units stay: two projectors could both become small.
        assert match.teacher_projectors == [None]
    (match,) = _build("cw2", vgg).matches
    assert match.needs_labels
    assert match.loss.loss.cost == "squared_euclidean"
    method = _build("jw2", vgg, label_weight=3.0, weight=0.5)
    (match,) = method.matches
    assert (match.loss.weight, match.weight) == (3.0, 0.5)
    assert method.label_weight == 1.0
    (match,) = _build("neuron-ot", vgg, normalize=True).matches
    assert (match.loss.plan, match.loss.normalize) == ("optimal", True)
    assert not any(match.student_projectors + match.teacher_projectors)


def test_identity_of_neurons_needs_equal_widths(vgg):
    method = _build("neuron-identity", vgg)
    student, teacher = vgg
    with pytest.raises(ValueError, match="has shape.*To compare them pass"):
        tfkd.Distiller(student=student, teacher=teacher, matches=method)
