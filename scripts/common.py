"""What the scripts share: arguments, training, measuring, reporting."""

import argparse
import contextlib
import csv
import difflib
import hashlib
import itertools
import json
import math
import os
import pathlib
import platform
import re
import signal
import sys
import time
from typing import NamedTuple

# A process that a script starts finds what the script has set below.
_QUIET = "3"
_USER_WANTS_LOGS = (
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _QUIET) != _QUIET
)


@contextlib.contextmanager
def quiet():
    """Drops what is written to stderr; exceptions still come through.

    TensorFlow tells at import that it found no GPU, before any log level
    applies. With another `TF_CPP_MIN_LOG_LEVEL` than 3 in the environment
    nothing is dropped.
    """
    if _USER_WANTS_LOGS:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


with quiet():
    import keras
    import numpy as np
    import resuming
    import strategies
    import tensorflow as tf
    from matplotlib.figure import Figure
    from protocols import ALL, PROTOCOLS

    import tfkd
    from tfkd import data, models
    from tfkd.artefacts.tensorflow_models import load_keras
    from tfkd.callbacks import Checkpoints, DivergedError, StopOnDivergence
    from tfkd.export import replacing
    from tfkd.records import unpack
    from tfkd.trace import outline

if not _USER_WANTS_LOGS:
    # Each student is traced anew, which TensorFlow takes for a mistake.
    tf.get_logger().setLevel("ERROR")

SAVED_MODELS = pathlib.Path(__file__).resolve().parents[1] / "saved_models"

EXPORT_FORMATS = ("keras", "saved_model", "tflite")
CHECKED_FORMATS = ("saved_model", "tflite")
CHECKED_IMAGES = 128
TIMING_BATCH = 128
TIMING_SECONDS = 1.0
# By how much the sum of int8 outputs of a softmax differs from 1.
_SUM_TOLERANCE = 0.02
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Recipe(NamedTuple):
    """How a network is built and trained by its labels alone."""

    network: str
    width: float
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    protocol: str = "short"


RECIPE = Recipe("vgg9", 0.25, 12, 64, 5e-3, 0)


# === Arguments ===


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def __init__(self, description, **kwargs):
        super().__init__(
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message):
        """Ends the script with one line on stderr."""
        line = " ".join(str(message).split())
        self.exit(2, f"{self.prog}: error: {line}\n")

    def parse(self, argv, smoke):
        """Parses arguments; --protocol and --smoke change the defaults.

        Args:
            argv: List of strings, or None for the command line.
            smoke: Dict of the defaults under --smoke.

        Returns:
            An `argparse.Namespace`.
        """
        self.add_argument(
            "--smoke",
            action="store_true",
            help="a tiny run of everything; changes the defaults to "
            + ", ".join(
                f"{key.replace('_', '-')} {str(value).strip('[]')}"
                for key, value in smoke.items()
            ),
        )
        options = self.parse_args(argv)
        if "protocol" in options:
            defaults = ALL[options.protocol].options
            known = defaults.keys() & vars(options)
            self.set_defaults(**{name: defaults[name] for name in known})
        if options.smoke:
            self.set_defaults(**smoke)
        return self.parse_args(argv)

    @contextlib.contextmanager
    def checking(self, option):
        """Errors about bad input in the body end the script with one line.

        Args:
            option: The option that is to blame.
        """
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.error(f"argument {option}: {error}")
        except (
            MemoryError,
            OverflowError,
            tf.errors.ResourceExhaustedError,
        ) as error:
            self.error(f"argument {option}: too large: {error}")

    @contextlib.contextmanager
    def opening(self, option, context):
        """`context`, with `checking` around its beginning alone.

        Args:
            option: The option that is to blame if it cannot be entered.
            context: A context manager.

        Yields:
            What `context` yields.
        """
        with contextlib.ExitStack() as stack:
            with self.checking(option):
                opened = stack.enter_context(context)
            yield opened


class _HelpFormatter(argparse.HelpFormatter):
    """Shows each default that says something."""

    def _get_help_string(self, action):
        default = action.default
        if default is None or isinstance(default, bool):
            return action.help
        if isinstance(default, list):
            default = " ".join(map(str, default))
        if default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: {default})"


def integer(low, high=math.inf):
    """An argument type: an integer from `low` to `high`."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        limits = f">= {low}" if high == math.inf else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(
            f"expected an integer {limits}, not {text!r}"
        )

    return parse


def positive_number(text):
    """An argument type: a finite number > 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"expected a finite number > 0, not {text!r}"
    )


def count_or_all(text):
    """An argument type: an integer >= 1, or "all", which becomes None."""
    return None if text == "all" else integer(1)(text)


def keras_file(text):
    """An argument type: the path of a .keras file."""
    if not text.endswith(".keras"):
        raise argparse.ArgumentTypeError(
            f"expected a file that ends in .keras, not {text!r}"
        )
    return text


def add_training_arguments(parser, *, epochs, batch_size):
    """Adds the options that all scripts of training have.

    Args:
        parser: A `Parser`.
        epochs: Default of --epochs.
        batch_size: Default of --batch-size.
    """
    add = parser.add_argument
    add("--dataset", default="digits", help=f"one of {', '.join(data.NAMES)}")
    add(
        "--epochs",
        type=integer(1),
        default=epochs,
        metavar="N",
        help="passes over the training images",
    )
    add(
        "--batch-size",
        type=integer(1),
        default=batch_size,
        metavar="N",
        help="images per step",
    )
    add(
        "--learning-rate",
        type=positive_number,
        metavar="RATE",
        help="at the start (default: that of the protocol: "
        + "; ".join(
            f"{name} {protocol.learning_rate:g}, for a ShuffleNet "
            f"{protocol.shufflenet_rate:g}"
            for name, protocol in PROTOCOLS.items()
        )
        + ")",
    )
    add(
        "--protocol",
        choices=list(PROTOCOLS),
        default="short",
        help="how to train, which changes other defaults. "
        + " ".join(
            f"{name}: {protocol.description}."
            for name, protocol in PROTOCOLS.items()
        ),
    )


def add_reading_arguments(parser):
    """Adds the options that say how images are read.

    Args:
        parser: A `Parser`.
    """
    add = parser.add_argument
    add(
        "--data-dir",
        metavar="FOLDER",
        help="where TensorFlow Datasets keeps its data (default: "
        "TFDS_DATA_DIR in the environment, else ~/tensorflow_datasets)",
    )
    add(
        "--download",
        action="store_true",
        help="let TensorFlow Datasets download and prepare what is missing",
    )
    add(
        "--image-size",
        type=integer(1),
        metavar="PIXELS",
        help="side of the crops of photographs, whose shorter edge is "
        "brought to 256/224 of it (default: 224)",
    )
    add(
        "--skip-corrupt",
        action="store_true",
        help="leave out photographs that cannot be decoded, and count them",
    )


def reading(options):
    """What `tfkd.data.load` is to be given of `add_reading_arguments`.

    Args:
        options: An `argparse.Namespace`.

    Returns:
        A dict, without what was not given.
    """
    names = ("data_dir", "download", "image_size", "skip_corrupt")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value}


def add_output_arguments(parser, *, metavar, default, kind=str):
    """Adds --output, --overwrite and --resume.

    Args:
        parser: A `Parser`.
        metavar: What --output is.
        default: Its default, in words; the value is None.
        kind: Its type.
    """
    parser.add_argument(
        "--output",
        type=kind,
        metavar=metavar,
        help=f"what to write (default: {default})",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier run wrote there, when the new is ready",
    )
    resuming.add_argument(parser)


def refuse_repeated(parser, option, values):
    """Ends the script if a list of an option names a value twice."""
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        parser.error(f"argument {option}: {sorted(repeated)} given twice")


# === Training and measuring ===


class Score(NamedTuple):
    """Accuracy in [0, 1] and mean cross-entropy in nats."""

    accuracy: float
    loss: float


def best_epoch(rows):
    """The epoch of the highest validation accuracy, the first of several.

    Args:
        rows: As `fit` returns them.

    Returns:
        Its dict.
    """
    validated = [row for row in rows if "validation_accuracy" in row]
    return max(validated, key=lambda row: row["validation_accuracy"])


def evaluate(model, dataset):
    """The `Score` of a model that returns logits.

    Args:
        model: A Keras model.
        dataset: A `tf.data.Dataset` of pairs `(x, y)` that keeps its order;
            y may be a record.

    Returns:
        A `Score`.

    Raises:
        DivergedError: If a logit is not finite.
    """
    logits = strategies.predict(model, dataset)
    labels = np.concatenate([unpack(y).label for _, y in dataset])
    return score(logits, labels, model.name)


def score(logits, labels, name):
    """The `Score` of logits.

    Args:
        logits: Array `[images, classes]`.
        labels: Integers `[images]`.
        name: Of the network.

    Returns:
        A `Score`.

    Raises:
        DivergedError: If a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.all(np.isfinite(logits)):
        raise DivergedError(
            f"network '{name}' returns numbers that are not finite."
        )
    losses = -log_softmax(logits)[np.arange(len(labels)), labels]
    accuracy = np.mean(logits.argmax(axis=-1) == labels)
    return Score(float(accuracy), float(losses.mean()))


def log_softmax(logits):
    """Logarithms of the probabilities that logits stand for.

    Args:
        logits: `[images, classes]`, finite.

    Returns:
        Array of float64, `[images, classes]`.
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def are_probabilities(outputs):
    """Whether all outputs of a network look as a softmax makes them.

    Args:
        outputs: `[images, classes]`.

    Returns:
        A bool.
    """
    sums = outputs.sum(axis=-1)
    return bool(outputs.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE)


def fit(
    distiller,
    dataset,
    *,
    epochs,
    learning_rate,
    protocol="short",
    stage=False,
    progress=None,
    kept=None,
):
    """Trains a student by a protocol.

    Args:
        distiller: A `tfkd.Distiller` or `tfkd.Transferer`, not compiled.
        dataset: A `tfkd.data.Dataset`.
        epochs: Passes over its training images.
        learning_rate: At the start.
        protocol: A name in `protocols.ALL`.
        stage: Whether it is a stage before the main one.
        progress: Function of the dict of an epoch that was validated, called
            at its end, or None.
        kept: Folder of its checkpoints, to go on from; or None.

    Returns:
        A list with a dict for each epoch: epoch, learning_rate (at its end),
        the metrics of training, and in some epochs (the last among them)
        validation_accuracy and validation_loss.

    Raises:
        DivergedError: If the loss or a logit is not finite.
        OSError: If a checkpoint cannot be written.
    """
    protocol = ALL[protocol]
    steps = epochs * int(dataset.train.cardinality())
    distiller.compile(
        protocol.optimizer(learning_rate, steps, stage),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    if kept is None:
        checkpoints = None
        last = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: dataset.set_epoch(epoch)
        )
    else:
        checkpoints = last = Checkpoints(kept, data=dataset)
    stop = StopOnDivergence(checkpoints)
    recorder = _Recorder(
        dataset.validation,
        epochs,
        protocol.evaluations or epochs,
        progress,
        stop.advice,
    )
    distiller.fit(
        strategies.sharded(dataset.train),
        epochs=epochs,
        shuffle=False,  # tf.data shuffles.
        verbose=0,
        callbacks=[stop, recorder, last],
    )
    rows = recorder.rows if kept is None else checkpoints.history
    first = ("epoch", "learning_rate")
    return [{**{name: row[name] for name in first}, **row} for row in rows]


class _Recorder(keras.callbacks.Callback):
    """Collects metrics; validates the student alone, now and then.

    What it adds to the logs is in the checkpoints of a callback after it.
    """

    def __init__(self, validation, epochs, evaluations, progress, advice):
        super().__init__()
        self.rows = []
        self._validation = validation
        self._progress = progress
        self._advice = advice
        self._due = {
            math.ceil(epochs * i / evaluations)
            for i in range(1, evaluations + 1)
        }

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        rate = self.model.optimizer.learning_rate.numpy().item()
        logs["learning_rate"] = rate
        if epoch in self._due:
            try:
                score = evaluate(self.model.student, self._validation)
            except DivergedError as error:
                raise DivergedError(
                    f"{error} After epoch {epoch}. {self._advice()}"
                ) from None
            logs["validation_accuracy"] = score.accuracy
            logs["validation_loss"] = score.loss
        self.rows.append({"epoch": epoch, **logs})
        if epoch in self._due and self._progress:
            self._progress(self.rows[-1])


def load_data(name, *, protocol="short", **settings):
    """A dataset as a protocol wants it.

    Args:
        name: As of `tfkd.data.load`.
        protocol: A name in `protocols.ALL`.
        **settings: As of `tfkd.data.load`.

    Returns:
        A `tfkd.data.Dataset`.
    """
    return data.load(name, **settings, **ALL[protocol].data)


def build(recipe, dataset):
    """The untrained network of a `Recipe` for a `tfkd.data.Dataset`."""
    keras.utils.set_random_seed(recipe.seed)
    return models.build(
        recipe.network,
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        width=recipe.width,
    )


def train(network, dataset, recipe, progress=None, kept=None):
    """Trains what `build` returned; as `fit`."""
    keras.utils.set_random_seed(recipe.seed)
    return fit(
        tfkd.Distiller(student=network),
        dataset,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        protocol=recipe.protocol,
        progress=progress,
        kept=kept,
    )


def training_labels(dataset):
    """The class of each training image, in the order of their index.

    Args:
        dataset: A `tfkd.data.Dataset`, loaded with `index=True`.

    Returns:
        Integers `[images]`.
    """
    labels = np.zeros(dataset.num_train, np.int64)
    for _, y in dataset.train:
        record = unpack(y)
        labels[record.index.numpy()] = record.label
    return labels


def images_per_second(model, dataset):
    """Images per second that a model classifies, in batches.

    Args:
        model: A Keras model.
        dataset: A `tf.data.Dataset` of pairs `(x, y)`.

    Returns:
        A float, from the median time of a batch after warming up.
    """
    images, _ = next(iter(dataset.rebatch(TIMING_BATCH)))
    run = tf.function(lambda x: model(x, training=False))
    for _ in range(3):
        run(images)
    times = []
    while sum(times) < TIMING_SECONDS:
        start = time.perf_counter()
        run(images).numpy()
        times.append(time.perf_counter() - start)
    return len(images) / float(np.median(times))


def weight_bytes(model):
    """Bytes of all weights of a model."""
    return sum(weight.nbytes for weight in model.get_weights())


# === Teachers ===


def load_teacher(path):
    """A network from a .keras file, without running any code in it.

    Args:
        path: The file.

    Returns:
        A `keras.Model`.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it holds no Keras model, or one that needs code.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file '{path}'.")
    return load_keras(path)


def kept_teacher(path):
    """As `load_teacher`, of a file that an earlier run wrote."""
    try:
        return load_teacher(path)
    except ValueError as error:
        raise ValueError(f"{error} Delete it to train it anew.") from error


def given_teacher(path):
    """The path of a network's file that an option gives.

    Args:
        path: A string that is no network's name.

    Returns:
        A `pathlib.Path`.

    Raises:
        ValueError: If it is more likely a misspelt network.
    """
    file = pathlib.Path(path)
    if file.suffix != ".keras" and not file.exists():
        nearest = difflib.get_close_matches(path, models.NAMES, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"expected one of {models.NAMES} or the path of a .keras file, "
            f"not {path!r}.{hint}"
        )
    return file


def train_teacher(parser, option, recipe, dataset, file, kept=None):
    """Trains a network by its labels and keeps it.

    Args:
        parser: A `Parser`.
        option: The option that asks for it, "--teacher" say.
        recipe: A `Recipe`.
        dataset: A `tfkd.data.Dataset`.
        file: Where to keep it.
        kept: Folder of all checkpoints of the run, or None.
    """
    if kept:
        resuming.sweep(file)
    writing = output_file(file, overwrite=True)
    with parser.opening(option, writing) as temporary:
        name = option.removeprefix("--")
        say(f"training the {name}, {recipe.epochs} epochs ...", end=" ")
        start = time.perf_counter()
        network = build(recipe, dataset)
        train(
            network,
            dataset,
            recipe,
            progress=dot,
            kept=kept and kept / name,
        )
        network.save(temporary)
        say(f" {time.perf_counter() - start:.0f} s")


def check_teacher(
    teacher, dataset, *, same_classes=True, logits=True, role="teacher"
):
    """Raises unless a network fits a dataset.

    Args:
        teacher: A Keras model.
        dataset: A `tfkd.data.Dataset`.
        same_classes: Whether it must know as many classes.
        logits: Whether it must return logits.
        role: What errors call it.

    Raises:
        ValueError: If it takes other images, knows another number of
            classes, or returns probabilities.
    """
    known = outline(teacher)
    inputs = keras.tree.flatten(known.inputs)
    images = tf.TensorShape([None, *dataset.input_shape])
    if len(inputs) != 1 or not inputs[0].shape.is_compatible_with(images):
        raise ValueError(
            f"{role} '{teacher.name}' takes inputs of shape "
            f"{[tuple(spec.shape) for spec in inputs]}, but '{dataset.name}' "
            f"has images of shape {dataset.input_shape}."
        )
    if not inputs[0].dtype.is_floating:
        raise ValueError(
            f"{role} '{teacher.name}' takes {inputs[0].dtype.name}, but "
            f"'{dataset.name}' has standardised images, which are no integers."
        )
    signals = known.signals[None]
    shape = getattr(signals, "shape", None)
    if same_classes and (
        shape is None or len(shape) != 2 or shape[1] != dataset.num_classes
    ):
        raise ValueError(
            f"{role} '{teacher.name}' returns {shape or 'several outputs'}, "
            f"but '{dataset.name}' has {dataset.num_classes} classes. "
            f"Expected outputs of shape (None, {dataset.num_classes})."
        )
    if logits and getattr(signals, "op", None) in ("Softmax", "Sigmoid"):
        raise ValueError(
            f"{role} '{teacher.name}' ends in {signals.op.lower()}, but "
            "logits are needed. Build it without the last activation."
        )


def teacher_path(recipe, dataset):
    """The file of the teacher that a recipe gives on a dataset.

    Two teachers share it only if all their settings, their data and the
    version of tfkd agree.

    Args:
        recipe: A `Recipe`.
        dataset: The `tfkd.data.Dataset` that it learns.

    Returns:
        A `pathlib.Path` in `SAVED_MODELS`.
    """
    settings = [
        tfkd.__version__,
        *recipe,
        dataset.name,
        dataset.num_train,
        dataset.class_names,
    ]
    settings += [dataset.input_shape, dataset.mean, dataset.std]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    return SAVED_MODELS / (
        f"teacher-{recipe.network}-{slug(dataset.name)}-width{recipe.width:g}"
        f"-epochs{recipe.epochs}-seed{recipe.seed}-{digest}.keras"
    )


def slug(dataset_name):
    """A dataset's name as a part of a file's name."""
    last = dataset_name.rstrip("/").replace(":", "/").split("/")[-1]
    return re.sub(r"[^A-Za-z0-9.]+", "-", last).strip("-.") or "data"


# === Writing ===


@contextlib.contextmanager
def run_folder(path, script, overwrite):
    """A folder under a temporary name, moved to `path` when it is complete.

    Args:
        path: Where it shall be at the end.
        script: Name of the script; its `config.json` must say the same.
        overwrite: Whether an earlier run of the script may be replaced.

    Yields:
        A `pathlib.Path` of an empty folder.

    Raises:
        OSError: If it cannot be made, or there is something at `path` that
            may not be replaced. If that came while the body ran, the folder
            is kept beside it, and the error says where.
    """
    with replacing(path) as folder:
        _refuse_to_replace(path, script, overwrite)
        folder.mkdir()
        yield folder
        try:
            _refuse_to_replace(path, script, overwrite)
        except FileExistsError as error:
            kept = _free_name(path)
            folder.rename(kept)
            raise FileExistsError(f"{error} This run is at '{kept}'.") from None


def _free_name(path):
    """A sibling of `path` that does not exist."""
    path = pathlib.Path(path)
    for number in itertools.count(2):
        sibling = path.with_name(f"{path.name}-{number}")
        if not sibling.exists():
            return sibling


@contextlib.contextmanager
def output_file(path, overwrite):
    """An empty file under a temporary name, moved to `path` in the end.

    Args:
        path: Where it shall be.
        overwrite: Whether a file there may be replaced.

    Yields:
        A `pathlib.Path` of the file, to be written.

    Raises:
        OSError: If it cannot be made, or there is something at `path` that
            may not be replaced.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder, not a file.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"'{path}' exists. Choose another file, or pass --overwrite to "
            "replace it."
        )
    with replacing(path) as file:
        file.touch()
        yield file


def _refuse_to_replace(path, script, overwrite):
    """Raises if something at `path` would be lost."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"'{path}' is a file, not a folder.")
    if not any(path.iterdir()):
        return
    try:
        written_by = json.loads((path / "config.json").read_text())["script"]
    except (OSError, ValueError, KeyError, TypeError):
        written_by = None
    if written_by != script:
        raise FileExistsError(
            f"'{path}' holds something else than a run of {script}.py, "
            "which is never replaced. Choose another folder."
        )
    if not overwrite:
        raise FileExistsError(
            f"'{path}' holds another run. Choose another folder, or pass "
            "--overwrite to replace it."
        )


def describe(dataset, protocol="short"):
    """A dataset in a line."""
    skipped = len(dataset.skipped)
    held_out = f"{dataset.num_validation} validation, "
    if validates_on_test(protocol):
        held_out = ""
    return (
        f"{dataset.name}: {dataset.num_train} training, {held_out}"
        f"{dataset.num_test} test images of shape {dataset.input_shape}"
        + (f"; {skipped} corrupt ones left out" if skipped else "")
    )


def validates_on_test(protocol):
    """Whether a protocol looks at the test images while it trains."""
    return ALL[protocol].data.get("validation_from") == "test"


def run(parser, body):
    """Runs a script's body, whose expected ends are one line each.

    Args:
        parser: The script's `Parser`, for its name.
        body: Function without arguments that returns the exit code.

    Returns:
        The body's exit code; 1 if a network diverged, the disk is full or
        another run took the output's place; 130 if it was interrupted.
    """
    try:
        return body()
    except KeyboardInterrupt:
        print(
            "\nInterrupted: nothing was written but checkpoints, of --resume.",
            file=sys.stderr,
        )
        return 130
    except (DivergedError, OSError) as error:
        print(f"\n{parser.prog}: error: {error}", file=sys.stderr)
        return 1


def start(main):
    """Ends the process with what `main` returns.

    A request to terminate is handled like Ctrl-C, so that no temporary folder
    stays behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def say(text, end="\n"):
    """Prints at once."""
    print(text, end=end, flush=True)


def dot(_):
    """Shows that training goes on."""
    say(".", end="")


def write_json(path, content):
    """Writes a dict as indented JSON."""
    text = json.dumps(content, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_history(path, rows):
    """Writes rows of several runs as CSV, with the columns of all.

    Args:
        path: A `pathlib.Path`.
        rows: List of dicts; a missing entry stays empty.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(header, rows):
    """A Markdown table whose columns also align as plain text.

    Args:
        header: Sequence of strings.
        rows: Sequences of strings, as long.

    Returns:
        A string; the first column is aligned left, the others right.
    """
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]

    def line(cells):
        aligned = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(
                zip(cells, widths, strict=True)
            )
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def exports_table(exports):
    """What `tfkd.export.export_student` wrote, as a Markdown table."""
    rows = [
        (
            artefact.path.name,
            kilobytes(artefact.bytes),
            f"{artefact.max_difference:.1e}",
            f"{percent(artefact.label_agreement)} %",
        )
        for artefact in exports.values()
    ]
    header = ("export", "size", "largest difference", "same label")
    return markdown_table(header, rows)


def summarize_exports(exports):
    """The same for a configuration file."""
    return {
        name: {**artefact._asdict(), "path": artefact.path.name}
        for name, artefact in exports.items()
    }


def check_exports(parser, exports, tolerance):
    """The exit code of a script that exports.

    Args:
        parser: The script's `Parser`, for its name.
        exports: What `tfkd.export.export_student` returned.
        tolerance: Largest difference of a logit.

    Returns:
        0 if the exports agree with their student; else 1, after an error.
    """
    for name in CHECKED_FORMATS:
        difference = exports[name].max_difference
        # The negation refuses NaN, too.
        if not difference <= tolerance:
            complain(
                parser,
                f"{exports[name].path} differs from its student by "
                f"{difference:g}, more than {tolerance:g}",
            )
            return 1
    return 0


def complain(parser, message):
    """Writes an error as a line on stderr; the script goes on.

    Args:
        parser: The script's `Parser`, for its name.
        message: A string.
    """
    print(f"{parser.prog}: error: {message}", file=sys.stderr)


def percent(value):
    """A share as a percentage with one digit."""
    return f"{100 * value:.1f}"


def mean_and_deviation(values):
    """Percentages "mean ± standard deviation", of shares.

    Args:
        values: Shares in [0, 1].

    Returns:
        A string; the deviation is the sample's and left out for one value.
    """
    if len(values) == 1:
        return percent(values[0])
    return f"{percent(np.mean(values))} ± {percent(np.std(values, ddof=1))}"


def kilobytes(size):
    """A size in bytes as kB."""
    return f"{size / 1000:,.0f} kB"


def draw_curves(
    path, *, title, curve_title, curves, scores, teacher_line, test_line
):
    """Draws accuracy over epochs and test accuracy per run.

    Args:
        path: File of the picture.
        title: What was done.
        curve_title: What the curves are.
        curves: Dict, method -> list of its runs, each a list of `(epoch,
            accuracy)` with the same epochs.
        scores: Dict, method -> list of the runs' test accuracies.
        teacher_line: The teacher's accuracy beside the curves.
        test_line: The teacher's test accuracy.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    colors = dict(zip(curves, itertools.cycle(COLORS)))
    for method, runs in curves.items():
        epochs, values = np.moveaxis(np.array(runs), -1, 0)  # [runs, points]
        left.plot(
            epochs[0],
            100 * values.mean(0),
            color=colors[method],
            label=method,
            marker="o",
            ms=3,
        )
        left.fill_between(
            epochs[0],
            100 * values.min(0),
            100 * values.max(0),
            color=colors[method],
            alpha=0.12,
            linewidth=0,
        )
    for row, (method, values) in enumerate(scores.items()):
        style = {"color": colors[method], "linestyle": ""}
        percentages = 100 * np.array(values)
        rows = np.full(len(values), row)
        right.plot(percentages, rows, marker="o", alpha=0.45, mew=0, **style)
        right.plot(percentages.mean(), row, marker="|", ms=22, mew=2.5, **style)
    line = {"color": "0.3", "linestyle": "--", "linewidth": 1}
    left.axhline(100 * teacher_line, label="teacher", **line)
    right.axvline(100 * test_line, **line)
    left.set(xlabel="epoch", ylabel="%")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_title(curve_title, loc="left")
    left.legend(loc="lower right", frameon=False)
    right.set_yticks(range(len(scores)), scores)
    right.set_ylim(len(scores) - 0.5, -0.5)
    right.set(xlabel="%")
    right.set_title("Test accuracy, each seed and mean", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=140)


def versions():
    """Names and versions of what the numbers depend on."""
    return {
        "tfkd": tfkd.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
