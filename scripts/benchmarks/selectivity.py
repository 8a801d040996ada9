"""Memory and time of NeuronSelectivity at all stages of two networks.

What the method nst computes besides the networks: the loss at each common
stage, their sum and its gradient with respect to the student's maps. Memory
is the most that a step has alive at a time beyond its inputs, the maps of both
networks; the gradient, as large as the student's maps, is in it. It is
measured in a fresh process whose allocators return what is freed, less the
same for one image, on Linux. Times are medians over the rounds, and those of
the fastest rounds.
"""

import common
import numpy as np
import tensorflow as tf

import tfkd
from benchmarks import memory, timing
from tfkd.trace import outline

SMOKE = {
    "rounds": 2,
    "batch_size": 4,
    "student": "resnet8",
    "teacher": "resnet14",
}
MODES = ("graph", "XLA")
TARGET = 100.0  # MiB
_HEADER = ("by", "ms", "fastest", "MiB", "target", "inputs, MiB")


def add_arguments(parser):
    """Adds the table's options."""
    add = parser.add_argument
    add("--rounds", type=common.integer(1), default=10, help="timed steps")
    add("--batch-size", type=common.integer(2), default=64, help="images")
    for role, name in (("student", "resnet8x4"), ("teacher", "resnet32x4")):
        add(f"--{role}", choices=tfkd.models.NAMES, default=name)


def run(options):
    """Prints the table."""
    shapes = shapes_of(options.student, options.teacher)
    steps = {mode: step_of(mode, shapes, options.batch_size) for mode in MODES}
    seconds = timing.times(steps, options.rounds)
    peaks = {}
    if memory.STATUS.exists():
        for mode in MODES:
            low, high = (
                memory.added(step_alone, mode, shapes, size)
                for size in (1, options.batch_size)
            )
            peaks[mode] = high - low
    common.say(
        f"{options.student} beside {options.teacher}, batch "
        f"{options.batch_size}, maps {shapes}\n"
    )
    common.say(
        table_of(seconds, peaks, input_bytes(shapes, options.batch_size))
    )


def shapes_of(student, teacher):
    """Shapes of the maps that nst compares, (height, width, channels).

    Args:
        student, teacher: Names of `tfkd.models`.

    Returns:
        List of (student's, teacher's).
    """
    networks = {
        role: tfkd.models.build(name, num_classes=100, input_shape=(32, 32, 3))
        for role, name in (("student", student), ("teacher", teacher))
    }
    (match,) = tfkd.methods.build("nst", **networks).matches
    ours = outline(networks["student"], match.student_layers).signals
    theirs = outline(networks["teacher"], match.teacher_layers).signals
    return [(ours[s].shape[1:], theirs[t].shape[1:]) for s, t in match.pairs]


def step_of(mode, shapes, batch_size):
    """A function that computes the sum of all stages and its gradient.

    Args:
        mode: "graph" or "XLA".
        shapes: As `shapes_of` returns.
        batch_size: Images.

    Returns:
        A function without arguments.
    """
    loss = tfkd.losses.NeuronSelectivity()
    rng = np.random.default_rng(0)
    students, teachers = (
        [
            tf.constant(rng.random((batch_size, *shape), np.float32))
            for shape in maps
        ]
        for maps in zip(*shapes, strict=True)
    )

    @tf.function(autograph=False, jit_compile=mode == "XLA")
    def evaluate(teachers, students):
        with tf.GradientTape() as tape:
            tape.watch(students)
            value = tf.add_n(list(map(loss, teachers, students)))
        return value, tape.gradient(value, students)

    def step():
        value, gradients = evaluate(teachers, students)
        return value.numpy(), [float(g[0, 0, 0, 0]) for g in gradients]

    return step


def step_alone(mode, shapes, batch_size):
    """As `step_of`, in a process where nothing else ran."""
    timing.limit_threads()
    return step_of(mode, shapes, batch_size)


def input_bytes(shapes, batch_size):
    """Of the maps of both networks, in float32."""
    entries = sum(int(np.prod(shape)) for pair in shapes for shape in pair)
    return 4 * batch_size * entries


def table_of(seconds, peaks, inputs):
    """The table.

    Args:
        seconds: Mode -> `[rounds]`, seconds.
        peaks: Mode -> memory beyond the inputs in bytes, where it is known.
        inputs: Bytes of the inputs.

    Returns:
        A string.
    """
    rows = []
    for mode, values in seconds.items():
        row = [mode, *(f"{1000 * f(values):.1f}" for f in (np.median, np.min))]
        known = mode in peaks
        row.append(f"{peaks[mode] / 2**20:.0f}" if known else "")
        row.append(f"{TARGET:g}" if known else "")
        rows.append([*row, f"{inputs / 2**20:.0f}"])
    return common.markdown_table(_HEADER, rows)
