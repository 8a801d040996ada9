"""Times Jacobian matching against cross-entropy alone.

VGG-9 teacher, VGG-4 student, images of 32x32x3. The table gives medians over
the rounds, their ratios, the ratios of the fastest rounds, and the bound that
the convolutions' arithmetic sets. The student's Jacobian is by its moving
statistics, but for the last mode, which is tfkd's default: by those of the
batch as constants. Where PyTorch is installed, the same steps but that one run
in it, too. On Linux, last comes the peak memory at the largest batch, above
that at a batch of 2.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import common
import keras
import numpy as np
import tensorflow as tf

import tfkd
from benchmarks import memory, timing
from benchmarks.arithmetic import Costs, convolutions
from tfkd.matches import (
    AttentionJacobianMatch,
    JacobianMatch,
    JacobianPenalty,
)

SMOKE = {"rounds": 2, "batch_size": [4], "width": 0.0625}
NUM_CLASSES = 10
ATTENTION_LAYER = "stage2"
FRACTION = 0.25
SMALL_BATCH = 2  # at which memory is nearly all that does not grow with it

# The targets hold for width 1: those of time at the one batch, that of memory
# at the other.
TARGET_BATCH, MEMORY_BATCH = 32, 128
MEMORY_TARGET = 3.5
ATTENTION_TARGET = 1.0

_HEADER = ("mode", "ms", "to ce", "fastest", "bound", "target")
_TORCH_HEADER = ("PyTorch ms", "tfkd / PyTorch")
_MEMORY_HEADER = ("mode", "MB", "to ce", "target")


class Mode(NamedTuple):
    """One way to train the student.

    Attributes:
        matches: Function of the networks, by keyword, that returns what
            `tfkd.Distiller` takes as `matches`.
        cost: Function of `Costs` that returns multiply-adds per image.
        target: Function of the bound that returns the largest ratio to "ce"
            that is wanted, or None.
        given: Whether the teacher's side is given in advance.
        peer: Whether PyTorch does the same.
    """

    matches: Callable
    cost: Callable
    target: Callable = lambda bound: None
    given: bool = False
    peer: bool = True


def _method(name):
    return lambda **networks: tfkd.methods.build(name, **networks)


def _jacobian(batch_statistics="moving", **options):
    return lambda **networks: [
        JacobianMatch(batch_statistics=batch_statistics, **options)
    ]


def _attention(**networks):
    return [
        *tfkd.methods.build("activations", **networks).matches,
        AttentionJacobianMatch(ATTENTION_LAYER, batch_statistics="moving"),
    ]


def _at_most(limit):
    return lambda bound: limit


def _both_jacobians(costs):
    return costs.training + costs.teacher_jacobian() + costs.student_jacobian()


MODES = {
    "ce": Mode(_method("ce"), lambda c: c.training),
    "kd": Mode(_method("kd"), lambda c: c.training + c.teacher, _at_most(1.95)),
    "activations": Mode(
        _method("activations"), lambda c: c.training + c.teacher
    ),
    "label": Mode(_jacobian(of="label"), _both_jacobians, _at_most(4.4)),
    "top": Mode(_jacobian(of="top"), _both_jacobians, _at_most(4.4)),
    "projection": Mode(
        _jacobian(num_projections=1), _both_jacobians, _at_most(4.4)
    ),
    "label, teacher given": Mode(
        _jacobian(of="label"),
        lambda c: c.training + c.student_jacobian(),
        _at_most(2.6),
        given=True,
    ),
    "label, teacher given, a quarter": Mode(
        _jacobian(of="label", fraction=FRACTION),
        lambda c: c.training + FRACTION * c.student_jacobian(),
        _at_most(1.5),
        given=True,
    ),
    "norm penalty": Mode(
        lambda **networks: [JacobianPenalty(batch_statistics="moving")],
        lambda c: c.training + c.student_jacobian(),
        _at_most(2.6),
    ),
    "all outputs": Mode(
        _jacobian(of="all"),
        lambda c: (
            c.training
            + c.teacher_jacobian(NUM_CLASSES)
            + c.student_jacobian(NUM_CLASSES)
        ),
        lambda bound: 1.15 * bound,
    ),
    "activations, attention": Mode(
        _attention, lambda c: c.training + c.teacher + c.attention_jacobian
    ),
    "label, frozen": Mode(
        _jacobian(of="label", batch_statistics="frozen"),
        lambda c: (
            c.training
            + c.teacher_jacobian()
            + c.student_jacobian(own_pass=False)
        ),
        peer=False,
    ),
}


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add("--rounds", type=common.integer(1), default=10, help="timed steps")
    add(
        "--batch-size",
        type=common.integer(2),
        nargs="+",
        default=[32, 128],
        metavar="N",
        help="images; a table for each",
    )
    add(
        "--width",
        type=common.positive_number,
        default=1.0,
        help="of both networks; targets hold for 1",
    )


# === What is measured ===


def networks_of(width):
    """The student and the teacher, always with the same weights.

    Args:
        width: Of both.

    Returns:
        A dict with "student" and "teacher".
    """
    keras.utils.set_random_seed(0)
    return {
        role: tfkd.models.build(
            name,
            num_classes=NUM_CLASSES,
            input_shape=(32, 32, 3),
            width=width,
        )
        for role, name in (("student", "vgg4"), ("teacher", "vgg9"))
    }


def batch_of(size):
    """Random images `[size, 32, 32, 3]` and labels `[size]`, as arrays."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=[size, 32, 32, 3]).astype("float32")
    return images, rng.integers(0, NUM_CLASSES, size).astype("int32")


def distiller_of(mode, networks):
    """The compiled distiller of a mode.

    Args:
        mode: A `Mode`.
        networks: As `networks_of` returns.

    Returns:
        A `tfkd.Distiller`.
    """
    matches = mode.matches(**networks)
    distiller = tfkd.Distiller(**networks, matches=matches)
    distiller.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return distiller


def step_of(mode, networks, batch_size):
    """A function that runs one training step of a mode.

    Args:
        mode: A `Mode`.
        networks: As `networks_of` returns.
        batch_size: Images.

    Returns:
        A function without arguments that returns the loss.
    """
    images, labels = map(tf.constant, batch_of(batch_size))
    distiller = distiller_of(mode, networks)
    if mode.given:
        labels = labels_with_teacher(
            distiller, networks["teacher"], images, labels
        )
    train = tf.function(distiller.train_step, jit_compile=False)
    return lambda: float(train((images, labels))["loss"])


def labels_with_teacher(distiller, teacher, images, labels):
    """Labels of one batch, with the teacher's side beside them.

    Args:
        distiller: As `distiller_of` returns.
        teacher: Its teacher.
        images: As `batch_of` returns, as a tensor.
        labels: As `batch_of` returns, as a tensor.

    Returns:
        A dict of tensors, as `tfkd.caching` makes it.
    """
    dataset = tf.data.Dataset.from_tensors((images, labels))
    with tempfile.TemporaryDirectory() as folder:
        kept = tfkd.caching.with_teacher(
            dataset,
            teacher=teacher,
            matches=distiller.matches,
            cache_dir=folder,
            verbose=0,
        )
        return next(iter(kept))[1]


def costs_of(student, teacher):
    """The `Costs` of two networks."""
    return Costs(
        student=convolutions(student),
        teacher=convolutions(teacher),
        student_part=convolutions(student, until=ATTENTION_LAYER),
        teacher_part=convolutions(teacher, until=ATTENTION_LAYER),
    )


def bounds_of(costs):
    """Mode -> its multiply-adds as a multiple of those of "ce"."""
    plain = MODES["ce"].cost(costs)
    return {name: mode.cost(costs) / plain for name, mode in MODES.items()}


def train_alone(name, width, batch_size):
    """Some steps of a mode, in a process where nothing else ran.

    Args:
        name: A key of `MODES`.
        width: Of both networks.
        batch_size: Images.
    """
    timing.limit_threads()
    step = step_of(MODES[name], networks_of(width), batch_size)
    for _ in range(3):
        step()


# === The tables ===


def run(options):
    """Prints a table for each batch size, and one of memory."""
    costs = costs_of(**networks_of(options.width))
    for batch_size in options.batch_size:
        steps = {
            name: step_of(mode, networks_of(options.width), batch_size)
            for name, mode in MODES.items()
        }
        if importlib.util.find_spec("torch"):
            from benchmarks import pytorch

            steps |= {
                ("PyTorch", name): pytorch.step_of(
                    name, networks_of(options.width), *batch_of(batch_size)
                )
                for name, mode in MODES.items()
                if mode.peer
            }
        seconds = timing.times(steps, options.rounds)
        has_targets = batch_size == TARGET_BATCH and options.width == 1
        common.say(f"Batch {batch_size}\n")
        common.say(time_table(seconds, bounds_of(costs), has_targets) + "\n")
    if not memory.STATUS.exists():
        return
    batch_size = max(options.batch_size)
    peaks = {
        name: [
            memory.peak(train_alone, name, options.width, size)
            for size in (SMALL_BATCH, batch_size)
        ]
        for name in ("ce", "label")
    }
    common.say(f"Peak memory, batch {batch_size} above {SMALL_BATCH}\n")
    has_target = batch_size == MEMORY_BATCH and options.width == 1
    common.say(memory_table(peaks, has_target))


def time_table(seconds, bounds, has_targets):
    """The table of times.

    Args:
        seconds: Mode, or `("PyTorch", mode)`, -> `[rounds]`, seconds.
        bounds: As `bounds_of` returns.
        has_targets: Whether to show targets.

    Returns:
        A string.
    """
    medians = {name: np.median(values) for name, values in seconds.items()}
    fastest = {name: np.min(values) for name, values in seconds.items()}
    torch = any(("PyTorch", name) in seconds for name in MODES)
    rows = []
    for name, mode in MODES.items():
        target = mode.target(bounds[name])
        row = [name, f"{1000 * medians[name]:.1f}"]
        row += [f"{s[name] / s['ce']:.2f}" for s in (medians, fastest)]
        row += [f"{bounds[name]:.2f}", _target(target, has_targets)]
        peer = medians.get(("PyTorch", name))
        if peer:
            row += [f"{1000 * peer:.1f}", f"{medians[name] / peer:.2f}"]
        elif torch:
            row += ["", ""]
        rows.append(row)
    attention, activations = "activations, attention", "activations"
    row = ["attention alone", ""]
    row += [
        f"{(s[attention] - s[activations]) / s['ce']:.2f}"
        for s in (medians, fastest)
    ]
    row.append(f"{bounds[attention] - bounds[activations]:.2f}")
    row.append(_target(ATTENTION_TARGET, has_targets))
    rows.append(row + ["", ""] * torch)
    return common.markdown_table(_HEADER + _TORCH_HEADER * torch, rows)


def memory_table(peaks, has_target):
    """The table of memory.

    Args:
        peaks: Mode -> peaks of the small and the large batch, in bytes.
        has_target: Whether to show the target.

    Returns:
        A string.
    """
    above = {name: large - small for name, (small, large) in peaks.items()}
    targets = {"label": MEMORY_TARGET}
    rows = [
        (
            name,
            f"{size / 1e6:.0f}",
            f"{size / above['ce']:.2f}",
            _target(targets.get(name), has_target),
        )
        for name, size in above.items()
    ]
    return common.markdown_table(_MEMORY_HEADER, rows)


def _target(target, shown):
    return f"{target:.2f}" if shown and target is not None else ""
