"""Times optimal transport beside other libraries' and beside its relaxation.

First, loss and gradient between batches of squared Euclidean costs in float32:
tfkd's default, POT's `emd2` (in PyTorch where it is installed, else in NumPy
and its value alone, which is less work), geomloss and ott-jax where they are
installed, each with its error relative to the exact cost. Second, the training
step of the methods ipot and remd, resnet32x4 to resnet8x4. Third, transport
between neurons (64 examples), with its memory beyond the inputs on Linux,
beside POT's `emd`, whose time is of the costs and the plan alone. All times
are medians over the rounds, and those of the fastest rounds.
"""

import importlib.util

import common
import keras
import numpy as np
import ot
import tensorflow as tf

import tfkd
from benchmarks import memory, timing
from tfkd.losses import NeuronTransport, OptimalTransport

SMOKE = {
    "rounds": 2,
    "sizes": [8],
    "dimensions": 16,
    "batch_size": 4,
    "width": 0.0625,
    "teacher": "resnet8x4",
    "neurons": 16,
}
METHODS = ("remd", "ipot")
NEURON_EXAMPLES = 64
POT_TARGET = 0.5
ACCURATE = 1e-3  # the largest error of those that are compared by time
METHODS_TARGET = 1.03
NEURON_TARGET = 3.0
MEMORY_TARGET = 200.0  # MiB
# POT stops with a warning where its own number of steps is too small.
_PATIENT = {"numItermax": 10_000_000}
_SMALL = 8  # neurons at which memory is that of the process

_SOLVER_HEADER = (
    *("n", "by", "ms", "fastest", "to POT", "fastest to POT"),
    *("target", "relative error", "within 1e-3"),
)
_METHODS_HEADER = (
    *("method", "ms per step", "fastest", "to remd", "fastest to remd"),
    "target",
)
_NEURON_HEADER = (
    *("neurons by", "ms", "fastest", "POT takes", "target"),
    *("MiB", "MiB target"),
)


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add("--rounds", type=common.integer(1), default=10, help="timed steps")
    add(
        "--sizes",
        type=common.integer(1),
        nargs="+",
        default=[64, 128, 256, 512, 1024],
        metavar="N",
        help="examples of a batch, of the first table",
    )
    add(
        "--dimensions",
        type=common.integer(1),
        default=256,
        help="of an example, of the first table",
    )
    add(
        "--batch-size",
        type=common.integer(2),
        default=64,
        help="images of the second table",
    )
    add(
        "--width",
        type=common.positive_number,
        default=1.0,
        help="of both networks of the second table",
    )
    add(
        "--teacher",
        default="resnet32x4",
        help="network of the second table",
    )
    add(
        "--torch-threads",
        type=common.integer(1),
        default=1,
        help="of PyTorch, whose threads wait for each other on a busy machine",
    )
    add(
        "--neurons",
        type=common.integer(_SMALL + 1),
        default=2048,
        help="of each layer of the third table",
    )


def run(options):
    """Prints the three tables."""
    steps, exact = {}, {}
    for size in options.sizes:
        teacher, student = features(size, options.dimensions)
        exact[size] = exact_cost(teacher, student)
        peers = solver_steps(teacher, student, options.torch_threads)
        steps |= {(size, name): step for name, step in peers.items()}
    errors = {
        (size, name): relative_error(step()[0], exact[size])
        for (size, name), step in steps.items()
    }
    seconds = timing.times(steps, options.rounds)
    common.say(f"Loss and gradient, {options.dimensions} dimensions\n")
    common.say(solver_table(seconds, errors) + "\n")

    steps = {
        method: step_of(
            method, options.batch_size, options.width, options.teacher
        )
        for method in METHODS
    }
    seconds = timing.times(steps, options.rounds)
    common.say(f"Training step, batch {options.batch_size}\n")
    common.say(methods_table(seconds) + "\n")

    seconds = timing.times(neuron_steps(options.neurons), options.rounds)
    peaks = {}
    if memory.STATUS.exists():
        for name in ("graph", "XLA"):
            low, high = (
                memory.peak(neurons_alone, name, count)
                for count in (_SMALL, options.neurons)
            )
            peaks[name] = high - low - _input_bytes(options.neurons)
    common.say(f"{options.neurons} neurons beside {options.neurons}\n")
    common.say(neuron_table(seconds, peaks))


# === Solvers ===


def features(size, dimensions):
    """The teacher's and the student's, `[size, dimensions]` each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, size, dimensions)).astype("float32")


def exact_cost(teacher, student):
    """Least mean squared distance of a matching, in float64."""
    cost = ot.dist(np.float64(teacher), np.float64(student))
    return float(ot.emd2([], [], cost, **_PATIENT))


def relative_error(value, exact):
    """|value - exact| as a share of the exact cost."""
    return abs(float(value) - exact) / exact


def solver_steps(teacher, student, torch_threads=1):
    """Name -> function that returns value and gradient; POT's first.

    Args:
        teacher: `[n, dimensions]`, float32.
        student: As the teacher's.
        torch_threads: Of PyTorch.

    Returns:
        A dict; the gradient is None where there is none.
    """
    has_torch = importlib.util.find_spec("torch")
    if has_torch:
        import torch

        torch.set_num_threads(torch_threads)
        steps = {"POT, PyTorch": _pot_in_torch(teacher, student)}
    else:
        steps = {"POT, NumPy, value alone": _pot(teacher, student)}
    loss = OptimalTransport("squared_euclidean")
    steps["tfkd, graph"] = timing.gradient_step(loss, teacher, student)
    steps["tfkd, XLA"] = timing.gradient_step(
        loss, teacher, student, jit_compile=True
    )
    if has_torch and importlib.util.find_spec("geomloss"):
        # The second takes smaller steps towards the same regularization.
        steps["geomloss"] = _geomloss(teacher, student)
        steps["geomloss, scaling 0.9"] = _geomloss(
            teacher, student, scaling=0.9
        )
    if importlib.util.find_spec("ott"):
        steps["ott-jax"] = _ott(teacher, student)
        steps["ott-jax, epsilon 1"] = _ott(teacher, student, epsilon=1.0)
    return steps


def _pot(teacher, student):
    def evaluate():
        return ot.emd2([], [], ot.dist(teacher, student), **_PATIENT), None

    return evaluate


def _in_torch(function, teacher, student):
    """Value and gradient of a function of the student's and the teacher's."""
    import torch

    teacher, student = torch.tensor(teacher), torch.tensor(student)
    student.requires_grad_()

    def evaluate():
        value = function(student, teacher)
        gradient = torch.autograd.grad(value, student)[0]
        return value.detach().numpy(), gradient.numpy()

    return evaluate


def _pot_in_torch(teacher, student):
    return _in_torch(
        lambda x, y: ot.emd2([], [], ot.dist(x, y), **_PATIENT),
        teacher,
        student,
    )


def _geomloss(teacher, student, **settings):
    import geomloss

    loss = geomloss.SamplesLoss(
        "sinkhorn", p=2, debias=False, backend="tensorized", **settings
    )
    # Its cost is half the squared distance.
    return _in_torch(lambda x, y: 2 * loss(x, y), teacher, student)


def _ott(teacher, student, epsilon=None):
    import jax
    from ott.geometry import pointcloud
    from ott.solvers import linear

    def distance(student, teacher):
        geometry = pointcloud.PointCloud(student, teacher, epsilon=epsilon)
        result = linear.solve(geometry, max_iterations=20_000)
        # The entropy has a part in the gradient, by the envelope theorem, but
        # none in the cost.
        return result.reg_ot_cost, result.primal_cost

    evaluate = jax.jit(jax.value_and_grad(distance, has_aux=True))
    teacher, student = jax.numpy.asarray(teacher), jax.numpy.asarray(student)

    def step():
        (_, value), gradient = evaluate(student, teacher)
        return np.asarray(value), np.asarray(gradient)

    return step


def solver_table(seconds, errors):
    """The first table.

    Args:
        seconds: (n, solver) -> `[rounds]`, seconds; POT's comes first of its
            n.
        errors: (n, solver) -> relative error.

    Returns:
        A string. Of those of one n within `ACCURATE`, "fastest" marks the
        one of the least median.
    """
    medians = {key: np.median(values) for key, values in seconds.items()}
    best, first = {}, {}
    for (size, name), median in medians.items():
        first.setdefault(size, name)
        accurate = errors[size, name] <= ACCURATE
        if accurate and median < medians.get((size, best.get(size)), np.inf):
            best[size] = name
    rows = []
    for (size, name), values in seconds.items():
        peer = seconds[size, first[size]]
        target = f"{POT_TARGET:g}" if name == "tfkd, XLA" else ""
        verdict = "yes" if errors[size, name] <= ACCURATE else "no"
        if best.get(size) == name:
            verdict = "yes, fastest"
        rows.append(
            [
                *(str(size), name, *_milliseconds(values)),
                *(*_ratios(values, peer), target),
                *(f"{errors[size, name]:.1e}", verdict),
            ]
        )
    return common.markdown_table(_SOLVER_HEADER, rows)


def _milliseconds(values):
    return [f"{1000 * f(values):.1f}" for f in (np.median, np.min)]


def _ratios(values, others):
    return [f"{f(values) / f(others):.2f}" for f in (np.median, np.min)]


# === Methods ===


def step_of(method, batch_size, width, teacher="resnet32x4"):
    """A function that runs one training step of a method.

    Args:
        method: A name of `tfkd.methods`.
        batch_size: Images.
        width: Of both networks.
        teacher: Its network.

    Returns:
        A function without arguments that returns the loss.
    """
    keras.utils.set_random_seed(0)
    networks = {
        role: tfkd.models.build(
            name, num_classes=100, input_shape=(32, 32, 3), width=width
        )
        for role, name in (("student", "resnet8x4"), ("teacher", teacher))
    }
    distiller = tfkd.Distiller(
        **networks, matches=tfkd.methods.build(method, **networks)
    )
    distiller.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    images = tf.random.normal([batch_size, 32, 32, 3])
    labels = tf.random.uniform([batch_size], 0, 100, tf.int32)
    train = tf.function(distiller.train_step, jit_compile=False)
    return lambda: float(train((images, labels))["loss"])


def methods_table(seconds):
    """The second table.

    Args:
        seconds: Method -> `[rounds]`, seconds.

    Returns:
        A string.
    """
    rows = []
    for method, values in seconds.items():
        target = f"{METHODS_TARGET:g}" if method == "ipot" else ""
        ratios = _ratios(values, seconds["remd"])
        rows.append([method, *_milliseconds(values), *ratios, target])
    return common.markdown_table(_METHODS_HEADER, rows)


# === Neurons ===


def neuron_steps(neurons):
    """Name -> function that computes transport between neurons; POT's first."""
    teacher, student = features(NEURON_EXAMPLES, neurons)

    def formula():
        cost = ot.dist(student.T, teacher.T, "euclidean")
        cost /= np.sqrt(NEURON_EXAMPLES)
        return np.sum(ot.emd([], [], cost, **_PATIENT) * cost), None

    return {
        "POT, NumPy, value alone": formula,
        "graph": _neuron_step("graph", teacher, student),
        "XLA": _neuron_step("XLA", teacher, student),
    }


def _neuron_step(name, teacher, student):
    return timing.gradient_step(
        NeuronTransport(), teacher, student, name == "XLA"
    )


def neurons_alone(name, neurons):
    """Two steps, in a process where nothing else ran.

    Args:
        name: "graph" or "XLA".
        neurons: Of both layers.
    """
    timing.limit_threads()
    step = _neuron_step(name, *features(NEURON_EXAMPLES, neurons))
    for _ in range(2):
        step()


def _input_bytes(neurons):
    """Of both layers, as `features` and as tensors."""
    return 2 * 2 * 4 * NEURON_EXAMPLES * neurons


def neuron_table(seconds, peaks):
    """The third table.

    Args:
        seconds: Name -> `[rounds]`, seconds; POT's first.
        peaks: Name -> memory beyond the inputs in bytes, where it is known.

    Returns:
        A string.
    """
    peer = np.median(next(iter(seconds.values())))
    rows = []
    for number, (name, values) in enumerate(seconds.items()):
        row = [name, *_milliseconds(values)]
        if number:
            times = peer / np.median(values)
            row += [f"{times:.1f} times as long", f"{NEURON_TARGET:g}"]
        else:
            row += ["", ""]
        if name in peaks:
            row += [f"{peaks[name] / 2**20:.0f}", f"{MEMORY_TARGET:g}"]
        else:
            row += ["", ""]
        rows.append(row)
    return common.markdown_table(_NEURON_HEADER, rows)
