"""The names of the papers' methods, and the matches that they stand for.

The only such table: each method is one function below, whose arguments are
its published settings, under a line that describes it.
"""

import difflib
import inspect
import re
from typing import NamedTuple

import keras

from tfkd import losses
from tfkd.arguments import check_count
from tfkd.matches import (
    L2,
    L2SP,
    AttentionJacobianMatch,
    ContrastiveMatch,
    FactorMatch,
    JacobianMatch,
    Match,
    ParaphraserMatch,
    VariationalMatch,
)
from tfkd.matches.match import as_pairs
from tfkd.matches.projectors import (
    batch_normalization,
    default_dtype,
    fitted_convolution,
)
from tfkd.trace import layer_names, outline

# Width of the space that penultimate features of different width share.
_COMMON_WIDTH = 128


class Stage(NamedTuple):
    """What is trained before the main stage, accepted wherever `matches` is.

    Attributes:
        name: Of the method's part that it belongs to.
        matches: List of its matches, with their weights.
        label_weight: Weight of the label loss.
        epochs: Published number of passes over the training data.
    """

    name: str
    matches: list
    label_weight: float
    epochs: int


class Method(NamedTuple):
    """A method of the papers, accepted wherever `matches` is.

    Attributes:
        name: Its name, "ipot+kd" say.
        matches: List of its matches, with their weights.
        label_weight: Weight of the label loss.
        stages: Tuple of the `Stage`s before it, each to be fitted by a
            Distiller of its own, of the same student.
    """

    name: str
    matches: list
    label_weight: float
    stages: tuple = ()


class Description(NamedTuple):
    """What a method is, in words.

    Attributes:
        name: As of `build`.
        paper: Authors and year, "" if there is none.
        matches: What it compares and how.
        weight: Its published weight, and that of labels where it is not 1.
        needs: What it needs beside images and a teacher: "labels",
            "indices", "a stage before", "a source head" or "its own start"
            (of a Transferer), several with commas, "" for nothing. The label
            loss is not meant, which every method has.
    """

    name: str
    paper: str
    matches: str
    weight: str
    needs: str


def describe(name):
    """What a method is: paper, what it matches, weight and needs.

    Args:
        name: One of `NAMES`.

    Returns:
        A `Description`.

    Raises:
        ValueError: If the name is unknown.

    Example:

    >>> tfkd.methods.describe("kd").paper
    'Hinton et al. 2015'
    """
    _check_part(name)
    return _DESCRIPTIONS[name]


def build(name, *, student, teacher=None, **overrides):
    """The matches of a method, with its published weights.

    Args:
        name: One of `NAMES`, or a sum of some: "ipot+kd". In a sum each part
            keeps its weight and labels have weight 1; kd joins with weight 1
            instead of its own 0.9 beside labels at 0.1. Beside lwf, labels
            have its weight 10, and attention and jacobian are those that
            `NAMES` has as lwf+attention and lwf+jacobian.
        student: Built Keras model. Methods that compare features look for
            the layers that every network of `tfkd.models` has (stage1,
            stage2, ..., features); for others pass `at`.
        teacher: Likewise. None: the student is fine-tuned, and compared
            with its own start by `Transferer(reference="start")`. Of a list
            of teachers the first tells where, and the trainer checks that
            the others are alike there.
        **overrides: Settings of the parts, for instance `temperature=2.0`.
            One that several parts have is given by part:
            `kd={"weight": 0.5}`.

    Returns:
        A `Method`.

    Raises:
        ValueError: If a name or a setting is unknown or ambiguous, a layer
            is missing, or a teacher that the method needs.

    Example:

    >>> method = tfkd.methods.build("kd", student=student, teacher=teacher)
    >>> [match.weight for match in method.matches], method.label_weight
    ([0.9], 0.1)

    With stages before the main one:

    ```python
    method = tfkd.methods.build("ft", student=student, teacher=teacher)
    for stage in (*method.stages, method):
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=stage
        )
        distiller.compile("sgd", loss)
        distiller.fit(train, epochs=getattr(stage, "epochs", 240))
    ```

    For a Transferer:

    ```python
    transferer = tfkd.Transferer(
        student=student,
        reference="start",
        matches=tfkd.methods.build("neuron-ot", student=student),
    )
    transferer = tfkd.Transferer(
        student=other,
        teacher=teacher,
        source_head=True,
        matches=tfkd.methods.build(
            "lwf+attention", student=other, teacher=teacher
        ),
    )
    ```
    """
    if not isinstance(name, str):
        raise ValueError(
            "Invalid value for argument `name`. Expected one of "
            f"{NAMES} or a sum of some. Received: name={name!r}"
        )
    if isinstance(teacher, list | tuple) and teacher:
        teacher = teacher[0]
    for model, role in ((student, "student"), (teacher, "teacher")):
        missing = role == "teacher" and model is None
        if not missing and not isinstance(model, keras.Model):
            raise ValueError(
                f"Invalid value for argument `{role}`. Expected a built "
                f"Keras model. Received: {role}={model!r}"
            )
    parts = name.split("+")
    for part in parts:
        _check_part(part)
    if len(set(parts)) != len(parts):
        raise ValueError(f"Method '{name}' names a part twice.")
    entries = {part: _entry(part, parts) for part in parts}
    settings = _distribute(entries, overrides)
    terms = []
    for part, entry in entries.items():
        if teacher is None and entry not in _STARTS:
            raise ValueError(
                f"Method '{part}' compares with a teacher. Pass teacher=. "
                "Those that can do without are "
                f"{WITHOUT_TEACHER}."
            )
        options = settings[part]
        if part == "kd" and len(parts) > 1:
            options = {"weight": 1.0, **options}
        terms += _METHODS[entry](student, teacher, **options)
    alone = "lwf" if "lwf" in parts else name
    return Method(
        name,
        [term for term in terms if not isinstance(term, Stage)],
        _LABEL_WEIGHTS.get(alone, 1.0),
        tuple(term for term in terms if isinstance(term, Stage)),
    )


_METHODS = {}
_DESCRIPTIONS = {}
_LABEL_WEIGHTS = {}
_STARTS = set()


def _method(
    *,
    paper="",
    matches,
    weight="",
    needs="",
    label_weight=1.0,
    start=False,
    beside=None,
):
    """Enters a function `_name` into the tables of methods.

    Args:
        paper: As of `Description`.
        matches: As of `Description`.
        weight: As of `Description`, without that of labels.
        needs: As of `Description`.
        label_weight: Of the method by itself.
        start: Whether it can do without a teacher, `teacher` being None.
        beside: The method beside which it has this meaning, or None: then
            the function is `_BESIDE_NAME`.
    """

    def enter(function):
        name = function.__name__.removeprefix("_").replace("_", "-")
        if beside:
            name = f"{beside}+{name.removeprefix(beside + '-')}"
        words = weight
        if label_weight != 1.0:
            words += f", labels {label_weight:g}"
        if start:
            _STARTS.add(name)
        _METHODS[name] = function
        _LABEL_WEIGHTS[name] = label_weight
        _DESCRIPTIONS[name] = Description(name, paper, matches, words, needs)
        return function

    return enter


@_method(matches="nothing: labels alone", start=True)
def _ce(student, teacher):
    """Cross-entropy with the labels alone: the student without a teacher."""
    return []


@_method(
    paper="Hinton et al. 2015",
    matches="softened outputs, temperature 4",
    weight="0.9",
    label_weight=0.1,
)
def _kd(student, teacher, *, temperature=4.0, weight=0.9):
    """Softened class probabilities. Hinton et al. 2015."""
    loss = losses.SoftTargets(temperature=temperature)
    return [Match(loss, weight=weight, name="kd")]


@_method(
    paper="Srinivas & Fleuret 2018",
    matches="logits, squared error",
    weight="1",
)
def _activations(student, teacher, *, weight=1.0):
    """Squared error between logits. Srinivas & Fleuret 2018, section 6.1."""
    return [Match(losses.SquaredError(), weight=weight, name="activations")]


@_method(
    paper="Srinivas & Fleuret 2018",
    matches="Jacobian of the true class, squared error",
    weight="1",
    needs="labels",
)
def _jacobian(
    student, teacher, *, of="label", batch_statistics=None, weight=1.0
):
    """Jacobians of the outputs. Srinivas & Fleuret 2018, proposition 1."""
    match = JacobianMatch(
        of=of,
        batch_statistics=batch_statistics,
        weight=weight,
        name="jacobian",
    )
    return [match]


@_method(
    paper="Romero et al. 2015",
    matches="features of stage 2 through a regressor",
    weight="100",
)
def _fitnet(student, teacher, *, at="stage2", weight=100.0):
    """Features of one stage through a trained regressor on the student.

    Romero et al. 2015, with the weight of Tian et al. 2020. The regressor is
    a convolution that fits size and width, normalised and rectified like the
    teacher's feature.
    """
    pairs, dtype = as_pairs(at), default_dtype()
    regressors = [
        keras.Sequential(
            [
                fitted_convolution(ours, theirs, dtype=dtype),
                batch_normalization(dtype),
                keras.layers.ReLU(dtype=dtype),
            ]
        )
        for ours, theirs in _shapes(pairs, student, teacher)
    ]
    match = Match(
        "mse", at=pairs, projector=regressors, weight=weight, name="fitnet"
    )
    return [match]


@_method(
    paper="Lohit & Jones 2020",
    matches="all stages and the features, optimal transport",
    weight="1 each",
)
def _ipot(student, teacher, *, at=None, cost="cosine", beta=None, weight=1.0):
    """Optimal transport between all stages. Lohit & Jones 2020.

    Scale-free by default; `beta="paper"` for the solver's settings as
    printed there.
    """
    loss = losses.OptimalTransport(cost=cost, beta=beta)
    return [_transport(loss, "ipot", student, teacher, at, weight)]


@_method(
    paper="Lohit & Jones 2020",
    matches="all stages and the features, relaxed earth mover's distance",
    weight="1 each",
)
def _remd(student, teacher, *, at=None, cost="cosine", weight=1.0):
    """Relaxed earth mover's distance between all stages, same paper."""
    loss = losses.RelaxedEarthMover(cost=cost)
    return [_transport(loss, "remd", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features, optimal transport of squared distances",
    weight="1e-4",
)
def _w2(student, teacher, *, at="features", weight=1e-4):
    """Squared Wasserstein distance between batches of features."""
    loss = losses.OptimalTransport("squared_euclidean")
    return [_to_teacher(loss, "w2", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features, optimal transport of squared distances class by class",
    weight="1e-4",
    needs="labels",
)
def _cw2(student, teacher, *, at="features", weight=1e-4):
    """The same, class by class."""
    loss = losses.ClassConditional(losses.OptimalTransport("squared_euclidean"))
    return [_to_teacher(loss, "cw2", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features and predictions, optimal transport of squared distances",
    weight="1e-4",
)
def _jw2(
    student,
    teacher,
    *,
    at="features",
    label_weight=None,
    label_distance="squared_euclidean",
    weight=1e-4,
):
    """The same, of features and predictions together."""
    loss = losses.JointTransport(label_weight, label_distance=label_distance)
    return [_to_teacher(loss, "jw2", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features as Gaussians, Wasserstein distance",
    weight="1e-4",
)
def _gaussian_w2(
    student, teacher, *, at="features", covariance="full", weight=1e-4
):
    """Wasserstein distance of features as Gaussians.

    Summed over dimensions, as printed.
    """
    loss = losses.GaussianWasserstein(covariance)
    return [_to_teacher(loss, "gaussian-w2", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features as Gaussians class by class, Wasserstein distance",
    weight="1e-4",
    needs="labels",
)
def _gaussian_cw2(
    student, teacher, *, at="features", covariance="full", weight=1e-4
):
    """The same, class by class."""
    loss = losses.ClassConditional(losses.GaussianWasserstein(covariance))
    return [_to_teacher(loss, "gaussian-cw2", student, teacher, at, weight)]


@_method(
    paper="Fernandes Montesuma 2025",
    matches="features as Gaussians, Kullback-Leibler divergence",
    weight="1e-4",
)
def _gaussian_kl(
    student,
    teacher,
    *,
    at="features",
    covariance="full",
    direction="student||teacher",
    ridge=0.1,
    weight=1e-4,
):
    """Divergence of features as Gaussians.

    Summed over dimensions, as printed.
    """
    loss = losses.GaussianKL(
        covariance, direction=direction, ridge=ridge, per_dimension=False
    )
    return [_to_teacher(loss, "gaussian-kl", student, teacher, at, weight)]


@_method(
    paper="Gretton et al. 2012",
    matches="features, maximum mean discrepancy",
    weight="1",
)
def _mmd(student, teacher, *, at="features", kernel="gaussian", weight=1.0):
    """Maximum mean discrepancy of features."""
    loss = losses.MaximumMeanDiscrepancy(kernel)
    return [_to_teacher(loss, "mmd", student, teacher, at, weight)]


@_method(
    paper="Li et al. 2020",
    matches="neurons of the features, optimal transport; from its own start "
    "also of the last stage but one",
    weight="0.1, from its own start 0.01",
    start=True,
)
def _neuron_ot(student, teacher, *, at=None, normalize=False, weight=None):
    """Each neuron against the one that does the same, equations 3 and 4.

    As printed, distances are sums over the batch. The weights are the middle
    of the ranges in which they select them: from 1e-3 to 10 for compression,
    from 1e-4 to 1 for transfer, where they add a layer, the 19th of 33
    blocks, which is in the third stage of four.
    """
    match = _neurons("optimal", student, teacher, at, normalize, weight)
    return [match]


@_method(
    paper="Li et al. 2020",
    matches="the same neurons, each to its own; equal widths",
    weight="0.1, from its own start 0.01",
    start=True,
)
def _neuron_identity(
    student, teacher, *, at=None, normalize=False, weight=None
):
    """Neuron i against neuron i, same paper."""
    match = _neurons("identity", student, teacher, at, normalize, weight)
    return [match]


@_method(
    paper="Li et al. 2020",
    matches="the same neurons, each to all",
    weight="0.1, from its own start 0.01",
    start=True,
)
def _neuron_uniform(student, teacher, *, at=None, normalize=False, weight=None):
    """All neurons against all, same paper."""
    match = _neurons("uniform", student, teacher, at, normalize, weight)
    return [match]


@_method(
    paper="Zagoruyko & Komodakis 2017",
    matches="attention maps of all stages, mean squared difference",
    weight="1000 each",
)
def _attention(student, teacher, *, at=None, weight=1000.0):
    """Normalised attention maps, in the form of the common benchmark."""
    at = _common_stages(student, teacher) if at is None else at
    loss = losses.AttentionTransfer(squared=True)
    return [Match(loss, at=at, weight=weight, name="attention")]


@_method(
    paper="Tung & Mori 2019",
    matches="similarities between examples at the last stage",
    weight="3000",
)
def _sp(student, teacher, *, at=None, weight=3000.0):
    """Similarities at each network's last map, of any width and size."""
    at = _last_stages(student, teacher) if at is None else at
    loss = losses.SimilarityPreserving()
    return [Match(loss, at=at, weight=weight, name="sp")]


@_method(
    paper="Peng et al. 2019",
    matches="errors of neighbours in the batch, of trained embeddings of "
    "the features",
    weight="0.02",
)
def _cc(student, teacher, *, at="features", width=128, weight=0.02):
    """Embeddings of both features by trained linear layers."""
    pairs = as_pairs(at)
    match = Match(
        losses.CorrelationCongruence(),
        at=pairs,
        projector=_embeddings(len(pairs), width),
        teacher_projector=_embeddings(len(pairs), width),
        weight=weight,
        name="cc",
    )
    return [match]


@_method(
    paper="Park et al. 2019",
    matches="distances and angles between the features of examples",
    weight="25 and 50",
)
def _rkd(
    student,
    teacher,
    *,
    at="features",
    distance_weight=25.0,
    angle_weight=50.0,
):
    """Relations between examples, by pairs and by triplets."""
    return [
        Match(
            losses.RelationalDistance(),
            at=at,
            weight=distance_weight,
            name="rkd_distance",
        ),
        Match(
            losses.RelationalAngle(),
            at=at,
            weight=angle_weight,
            name="rkd_angle",
        ),
    ]


@_method(
    paper="Passalis & Tefas 2018",
    matches="probabilities of neighbours, of the features",
    weight="30000",
)
def _pkt(student, teacher, *, at="features", weight=3e4):
    """Which examples are near to which, as probabilities."""
    loss = losses.ProbabilisticTransfer()
    return [Match(loss, at=at, weight=weight, name="pkt")]


@_method(
    paper="Huang & Wang 2017",
    matches="channels of all stages, maximum mean discrepancy",
    weight="50 each",
)
def _nst(student, teacher, *, at=None, weight=50.0):
    """Where channels are active, with the squared polynomial kernel."""
    at = _common_stages(student, teacher) if at is None else at
    loss = losses.NeuronSelectivity()
    return [Match(loss, at=at, weight=weight, name="nst")]


@_method(
    paper="Zhao et al. 2022",
    matches="softened outputs, the true class apart (1) from the others (8), "
    "temperature 4",
    weight="1",
    needs="labels",
)
def _dkd(
    student,
    teacher,
    *,
    temperature=4.0,
    target_weight=1.0,
    others_weight=8.0,
    weight=1.0,
):
    """Decoupled distillation, with the settings for CIFAR-100.

    The paper lets the weight grow from 0 over the first 20 epochs: pass a
    function of the step as `weight` for that.
    """
    loss = losses.DecoupledTargets(
        temperature, target_weight=target_weight, others_weight=others_weight
    )
    return [Match(loss, weight=weight, name="dkd")]


@_method(
    paper="Sun et al. 2024",
    matches="softened outputs of standardised logits, temperature 2",
    weight="9",
    label_weight=0.1,
)
def _lskd(student, teacher, *, temperature=2.0, weight=9.0):
    """Logit standardisation before plain distillation.

    The weights, of labels too, are those of their table 4 for CIFAR-100.
    """
    loss = losses.StandardizedTargets(temperature)
    return [Match(loss, weight=weight, name="lskd")]


@_method(
    paper="Huang et al. 2022",
    matches="correlation of softened outputs within examples and classes, "
    "temperature 4",
    weight="2",
)
def _dist(student, teacher, *, temperature=4.0, weight=2.0):
    """Pearson correlations, with the settings of the authors' code.

    Those are for CIFAR-100: weight 2 beside labels of weight 1, both kinds
    of correlation alike, times T^2. For ImageNet it has temperature 1.
    """
    loss = losses.CorrelationTargets(temperature)
    return [Match(loss, weight=weight, name="dist")]


@_method(
    paper="Ahn et al. 2019",
    matches="all stages, predicted as Gaussians of trained variances",
    weight="1",
)
def _vid(student, teacher, *, at=None, weight=1.0):
    """The teacher's maps, predicted from the student's."""
    at = _common_stages(student, teacher) if at is None else at
    return [VariationalMatch(at, weight=weight, name="vid")]


@_method(
    paper="Kim et al. 2018",
    matches="factors of the last map, of the teacher's paraphraser",
    weight="200",
    needs="a stage before",
)
def _ft(student, teacher, *, at=None, stage_epochs=30, weight=200.0):
    """Factors of the last map, after a stage for the paraphraser.

    The last map of more than one position: with one, all factors are equal.
    """
    if at is None:
        at = (_last_map(student), _last_map(teacher))
    factor = FactorMatch(at, weight=weight, name="ft")
    paraphraser = ParaphraserMatch(at, paraphraser=factor.paraphraser)
    return [
        Stage(
            "ft", [paraphraser], 0.0, check_count(stage_epochs, "stage_epochs")
        ),
        factor,
    ]


@_method(
    paper="Tian et al. 2020",
    matches="embeddings of the features against those of other classes",
    weight="0.8",
    needs="labels, indices",
)
def _crd(
    student,
    teacher,
    *,
    labels=None,
    at="features",
    negatives=16384,
    temperature=0.07,
    weight=0.8,
):
    """Embeddings and memory banks of the features.

    `labels` are the classes of all training examples.
    """
    if labels is None:
        raise ValueError(
            "Method 'crd' draws examples of other classes, so it needs the "
            "class of each training example, in the order of the data's "
            "index: labels=[...], integers [examples]."
        )
    match = ContrastiveMatch(
        labels,
        at=at,
        negatives=negatives,
        temperature=temperature,
        weight=weight,
        name="crd",
    )
    return [match]


@_method(
    paper="Heo et al. 2019",
    matches="signs of the stages' pre-activations, in the stage before; then "
    "nothing",
    needs="a stage before",
)
def _ab(student, teacher, *, at=None, stage_epochs=30, weight=3e-3):
    """Activation boundaries, through a connector on the student.

    `weight`, a number, is that of the last stage; each stage before has half
    of the next one's.
    """
    if callable(weight):
        raise ValueError(
            "Invalid value for argument `weight`. Expected a number, which "
            f"method 'ab' halves for each stage. Received: weight={weight}"
        )
    if at is None:
        stages = _common_stages(student, teacher)
        at = [f"{stage}_preactivation" for stage in stages]
    pairs, dtype = as_pairs(at), default_dtype()
    shapes = _shapes(pairs, student, teacher)
    matches = [
        Match(
            losses.ActivationBoundary(),
            at=pair,
            projector=keras.Sequential(
                [
                    fitted_convolution(ours, theirs, dtype=dtype),
                    batch_normalization(dtype),
                ]
            ),
            weight=weight * 0.5 ** (len(pairs) - number),
            name=f"ab{number}",
        )
        for number, (pair, (ours, theirs)) in enumerate(
            zip(pairs, shapes, strict=True), start=1
        )
    ]
    return [
        Stage("ab", matches, 0.0, check_count(stage_epochs, "stage_epochs"))
    ]


@_method(
    paper="Yim et al. 2017",
    matches="products of adjacent maps of equal widths, in the stage before; "
    "then nothing",
    needs="a stage before",
)
def _fsp(student, teacher, *, at=None, stage_epochs=30, weight=1.0):
    """Flow of the solution, from the stem through all stages."""
    if at is None:
        at = ["stem", *_common_stages(student, teacher)]
    pairs = as_pairs(at)
    for pair, shapes in zip(
        pairs, _shapes(pairs, student, teacher), strict=True
    ):
        widths = [shape[-1] for shape in shapes]
        if widths[0] != widths[1]:
            raise ValueError(
                "Method 'fsp' compares maps of equal widths, but student "
                f"'{student.name}' at '{pair[0]}' has {widths[0]} channels, "
                f"teacher '{teacher.name}' at '{pair[1]}' has {widths[1]}. "
                "Choose another student, or layers of equal widths: at=[...]."
            )
    match = Match(
        losses.SolutionFlow(), at=pairs, joint=True, weight=weight, name="fsp"
    )
    return [
        Stage("fsp", [match], 0.0, check_count(stage_epochs, "stage_epochs"))
    ]


@_method(
    matches="nothing: labels alone, of a student that is trained already",
    start=True,
)
def _finetune(student, teacher):
    """Cross-entropy with the target labels alone."""
    return []


@_method(
    matches="kernels, squared",
    weight="0.01, new layers 0.01",
    start=True,
)
def _l2(student, teacher, *, weight=0.01, new=0.01, new_layers=None):
    """Weight decay as a term of the loss, the control of L2-SP.

    `weight` is that of the kernels that are not new; the default is the
    middle of the range from 1e-4 to 1 in which Li et al. 2020 select it.
    """
    return [L2(weight, new, new_layers, name="l2")]


@_method(
    paper="Li, Grandvalet & Davoine 2018",
    matches="kernels, squared distance from the start",
    weight="0.1, new layers 0.01",
    needs="its own start",
    start=True,
)
def _l2_sp(student, teacher, *, weight=0.1, new=0.01, new_layers=None):
    """The distance of kernels from the start; `weight` is theirs."""
    return [L2SP(weight, new, new_layers, name="l2-sp")]


@_method(
    paper="Li & Hoiem 2016",
    matches="source head and the teacher's logits, squared error",
    weight="10",
    needs="a source head",
    label_weight=10.0,
)
def _lwf(student, teacher, *, weight=10.0):
    """Squared error of logits, with the weights of Srinivas & Fleuret 2018."""
    return [Match(losses.SquaredError(), weight=weight, name="lwf")]


@_method(
    paper="Srinivas & Fleuret 2018",
    matches="the same; attention maps of all stages of equal size, distance "
    "of directions",
    weight="10 each",
    needs="a source head",
    label_weight=10.0,
    beside="lwf",
)
def _lwf_attention(student, teacher, *, at=None, weight=10.0):
    """Attention maps in the form of equation 9."""
    at = _stages_of_equal_size(student, teacher) if at is None else at
    loss = losses.AttentionTransfer()
    return [Match(loss, at=at, weight=weight, name="attention")]


@_method(
    paper="Srinivas & Fleuret 2018",
    matches="the same; Jacobian of the attention map at the first such stage",
    weight="10",
    needs="a source head",
    label_weight=10.0,
    beside="lwf",
)
def _lwf_jacobian(
    student,
    teacher,
    *,
    at=None,
    window=5,
    batch_statistics=None,
    weight=10.0,
):
    """Jacobians of the shallowest attention maps, equation 10."""
    at = _stages_of_equal_size(student, teacher)[:1] if at is None else at
    match = AttentionJacobianMatch(
        at,
        window=window,
        batch_statistics=batch_statistics,
        weight=weight,
        name="jacobian",
    )
    return [match]


NAMES = tuple(_METHODS)

# Those that `build` takes without a teacher.
WITHOUT_TEACHER = tuple(name for name in NAMES if name in _STARTS)


def _entry(part, parts):
    """The name in the tables of a part of a sum."""
    beside = f"lwf+{part}"
    return beside if "lwf" in parts and beside in _METHODS else part


def _check_part(name):
    """Raises unless it is the name of one method."""
    if name not in NAMES:
        nearest = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(
            f"Unknown method '{name}'. Expected one of {NAMES}, or a sum "
            f'such as "ipot+kd".{hint}'
        )


def _distribute(entries, overrides):
    """Part -> its own overrides; `entries` are part -> name in the tables."""
    parts = list(entries)
    options = {part: _options(entry) for part, entry in entries.items()}
    settings = {part: {} for part in parts}
    for key, value in overrides.items():
        part = key.replace("_", "-")  # a keyword has no hyphen
        if part in settings:
            if not isinstance(value, dict):
                raise ValueError(
                    f"Invalid value for argument `{key}`. Expected a dict of "
                    f"settings of '{key}'. Received: {key}={value!r}"
                )
            settings[part].update(value)
            continue
        owners = [part for part in parts if key in options[part]]
        if len(owners) != 1:
            raise ValueError(
                f"Setting `{key}` belongs to {owners or 'no part'} of "
                f"'{'+'.join(parts)}', whose settings are {options}. "
                + (
                    f"Give it by part: {owners[0].replace('-', '_')}={{...}}."
                    if owners
                    else ""
                )
            )
        settings[owners[0]][key] = value
    for part in parts:
        for key in settings[part]:
            if key not in options[part]:
                raise ValueError(
                    f"Method '{part}' has no setting `{key}`. Expected one "
                    f"of {options[part]}."
                )
    return settings


def _options(entry):
    signature = inspect.signature(_METHODS[entry])
    return [
        p.name
        for p in signature.parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


def _transport(loss, name, student, teacher, at, weight):
    """One match over all stages and the penultimate features.

    Where shapes differ, the teacher's map goes through a convolution to the
    student's shape, and both penultimate vectors to a common width.
    """
    pairs = as_pairs(_all_stages(student, teacher) if at is None else at)
    ours, theirs = [], []
    for source, target in _shapes(pairs, student, teacher):
        if source == target:
            ours.append(None)
            theirs.append(None)
        elif len(source) == len(target) == 2:
            ours.append(
                keras.layers.Dense(_COMMON_WIDTH, dtype=default_dtype())
            )
            theirs.append(
                keras.layers.Dense(_COMMON_WIDTH, dtype=default_dtype())
            )
        else:
            ours.append(None)
            theirs.append("conv")
    return Match(
        loss,
        at=pairs,
        projector=ours,
        teacher_projector=theirs,
        weight=weight,
        name=name,
    )


def _to_teacher(loss, name, student, teacher, at, weight):
    """One match of batches' distributions, in the teacher's units.

    Where widths differ, the student's signal goes through a trained layer.
    The teacher's does not: both could be made small then.
    """
    pairs = as_pairs(at)
    projectors = []
    for source, target in _shapes(pairs, student, teacher):
        kind = "dense" if len(source) == 2 else "conv"
        projectors.append(None if source == target else kind)
    return Match(loss, at=pairs, projector=projectors, weight=weight, name=name)


def _neurons(plan, student, teacher, at, normalize, weight):
    """A match of neurons, with a teacher or with the student's start."""
    name = "neuron-ot" if plan == "optimal" else f"neuron-{plan}"
    if at is None:
        at = "features"
        if teacher is None:
            *stages, features = _all_stages(student, student)
            at = [stages[-2:][0], features]
    if weight is None:
        weight = 0.01 if teacher is None else 0.1
    loss = losses.NeuronTransport(plan, normalize=normalize)
    return Match(loss, at=at, weight=weight, name=name)


def _embeddings(count, width):
    """Trained linear layers."""
    return [
        keras.layers.Dense(width, dtype=default_dtype()) for _ in range(count)
    ]


def _all_stages(student, teacher):
    """Names of the stages and features that both networks have."""
    stages = _common_stages(student, teacher)
    if "features" not in _common_names(student, teacher):
        raise _nowhere(student, teacher)
    return [*stages, "features"]


def _common_stages(student, teacher):
    """Names of the stages that both networks have."""
    stages = _stages(_common_names(student, teacher))
    if not stages:
        raise _nowhere(student, teacher)
    return stages


def _last_stages(student, teacher):
    """The last stage of either network, as a pair."""
    ours, theirs = (_stages(layer_names(m)) for m in (student, teacher))
    if not ours or not theirs:
        raise _nowhere(student, teacher)
    return (ours[-1], theirs[-1])


def _stages_of_equal_size(student, teacher):
    """Pairs of stages whose maps have the same size, shallowest first.

    Of several stages of one size the last counts; a map of one position
    draws attention nowhere else, and is left out.
    """
    ours, theirs = (_sizes_of_stages(model) for model in (student, teacher))
    pairs = [(ours[size], theirs[size]) for size in ours if size in theirs]
    if not pairs:
        raise ValueError(
            f"Student '{student.name}' and teacher '{teacher.name}' have no "
            "layers named stage1, stage2, ... whose maps are of equal size: "
            f"{ours} and {theirs}. Say where to compare them: "
            'at=[("student layer", "teacher layer"), ...].'
        )
    return pairs


def _sizes_of_stages(model):
    """(height, width) -> the last stage of that size, if it is known."""
    stages = _stages(layer_names(model))
    signals = outline(model, stages).signals
    sizes = {}
    for stage in stages:
        size = signals[stage].shape[1:-1]
        if len(size) == 2 and None not in size and size != (1, 1):
            sizes[size] = stage
    return sizes


def _common_names(student, teacher):
    return {*layer_names(student)} & {*layer_names(teacher)}


def _last_map(model):
    """The last stage of more than one position."""
    stages = _stages(layer_names(model))
    signals = outline(model, stages).signals
    maps = [name for name in stages if set(signals[name].shape[1:-1]) != {1}]
    if not maps:
        raise ValueError(
            f"'{model.name}' has no layer named stage1, stage2, ... with more "
            "than one position. Say where to compare: "
            'at=("student layer", "teacher layer").'
        )
    return maps[-1]


def _stages(names):
    """Those named stage1, stage2, ..., in order."""
    return sorted(
        (name for name in names if re.fullmatch(r"stage\d+", name)),
        key=lambda name: int(name.removeprefix("stage")),
    )


def _nowhere(student, teacher):
    if student is teacher:
        return ValueError(
            f"Student '{student.name}' has no layers named stage1, stage2, "
            "..., features. Say where to compare it with its start: "
            'at=["layer", ...].'
        )
    return ValueError(
        f"Student '{student.name}' and teacher '{teacher.name}' have no "
        "common layers named stage1, stage2, ..., features. Say where to "
        'compare them: at=[("student layer", "teacher layer"), ...].'
    )


def _shapes(pairs, student, teacher):
    """Shapes of the student's and the teacher's signal of each pair."""
    ours = outline(student, [s for s, _ in pairs if s is not None])
    theirs = outline(teacher, [t for _, t in pairs if t is not None])
    return [(ours.signals[s].shape, theirs.signals[t].shape) for s, t in pairs]
