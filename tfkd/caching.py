"""The teacher's side of given matches, computed once and kept on disk."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.matches.base import BaseMatch
from tfkd.records import unpack
from tfkd.teachers import as_teachers, trace_of

# Of the files' layout and of what is observed; a new one hides old files.
_VERSION = 1
_DIGEST_BYTES = 16


def with_teacher(dataset, *, teacher, matches, cache_dir=None, verbose=1):
    """The dataset, with what matches observe of a teacher beside its labels.

    The first call runs the teacher once over the data and writes what each
    match would have observed (logits, features, Jacobians) to disk. Later
    calls with the same teacher, data and matches only read. A
    `tfkd.Distiller` that is given the result runs no teacher for these
    matches. Values are kept in float16 with a power of two for each example,
    so each is off by at most 2^-11 of itself, or 2^-39 of the example's
    largest.

    An example is known by its index where labels are records
    (`tfkd.data.load(..., index=True)`); the dataset may then be shuffled.
    Else it is known by its position, so the order must be the same in each
    pass: shuffle the result instead. Augmented data are refused, since an
    input's Jacobian is not that of its flipped or cropped copy.

    The data are read once to recognise them, and once more to run the
    teacher. Files are read by memory mapping, at the pace of training.

    Args:
        dataset: A finite `tf.data.Dataset` of batches `(x, y)` or `(x, y,
            sample_weight)`, y a label or a record.
        teacher: The built Keras model that the Distiller is given, or the
            list of several; of these the mean is kept.
        matches: List of matches, or a `tfkd.methods.Method`. Those that need
            no teacher are passed over. `AttentionJacobianMatch` must be a
            Distiller's already.
        cache_dir: Folder of the files; None: tfkd in the user's cache
            folder. Nothing is ever deleted there. Weights and configuration
            tell teachers apart, but not the code of a subclassed model.
        verbose: 0: silent; 1: a progress bar while the teacher runs.

    Returns:
        A `tf.data.Dataset` of the same batches, of known cardinality, whose
        y is `{"label": ..., "index": ..., "teacher": ...}`.

    Raises:
        ValueError: If the dataset is infinite, empty, without labels, or
            gives other examples on a second pass; if the teacher is not
            built; if an index repeats; if a match draws what it observes at
            random; or if an observation is not finite or its shape is not
            that of the first batch.

    Example:

    ```python
    data = tfkd.data.load("digits", batch_size=64, index=True)
    matches = [tfkd.JacobianMatch()]
    train = tfkd.caching.with_teacher(
        data.train, teacher=teacher, matches=matches
    )
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    ```
    """
    _require_dataset(dataset)
    teachers = _built(teacher)
    matches = _observing(matches)
    seen = _read(dataset)
    folder = _folder(cache_dir) / _hexadecimal(seen.digest)
    teacher_key = teachers_key(teachers)
    kept = {
        f"{teacher_key}-{observation_key(match, len(teachers))}": match
        for match in matches
    }
    missing = {
        key: match for key, match in kept.items() if not (folder / key).is_dir()
    }
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _observe(dataset, seen, teachers, missing, folder, verbose)
    return _joined(dataset, seen, {key: _Kept(folder / key) for key in kept})


def teachers_key(teachers):
    """Short text that tells teachers apart, as `network_key`.

    Args:
        teachers: List of built Keras models, in any order.

    Returns:
        A string of hexadecimal digits.
    """
    keys = sorted(network_key(teacher) for teacher in teachers)
    if len(keys) == 1:
        return keys[0]
    return _hexadecimal(hashlib.sha256("".join(keys).encode()).digest())


def network_key(model):
    """Short text that tells networks apart by weights and configuration.

    Args:
        model: A built Keras model.

    Returns:
        A string of hexadecimal digits.
    """
    digest = hashlib.sha256()
    try:
        config = {**model.get_config(), "name": None}
    except NotImplementedError:
        config = type(model).__qualname__
    config = _without_trainable(config)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return _hexadecimal(digest.digest())


def _without_trainable(config):
    """A configuration without what freezing a network changes."""
    if isinstance(config, dict):
        return {
            key: _without_trainable(value)
            for key, value in config.items()
            if key != "trainable"
        }
    if isinstance(config, list | tuple):
        return [_without_trainable(value) for value in config]
    return config


def observation_key(match, count=1):
    """Short text that tells apart what matches observe, or None.

    Args:
        match: A match.
        count: Number of teachers.

    Returns:
        A string of hexadecimal digits; None where the match draws what it
        observes at random.
    """
    observation = match.observation()
    if observation is None:
        return None
    parts = [_VERSION, observation]
    loss = getattr(match, "loss", None)
    if count > 1 and hasattr(loss, "ensemble"):
        parts.append([type(loss).__qualname__, loss.get_config()])
    text = json.dumps(parts, default=str)
    return _hexadecimal(hashlib.sha256(text.encode()).digest())


class _Pass(NamedTuple):
    """What one pass over a dataset found.

    Attributes:
        indices: Of the examples, ascending, int64 `[examples]`.
        digests: Of the examples in that order, bytes `[examples, 16]`.
        digest: Of all.
        num_batches: Number of batches.
        is_indexed: Whether labels are records with an index.
    """

    indices: np.ndarray
    digests: np.ndarray
    digest: bytes
    num_batches: int
    is_indexed: bool


def _read(dataset):
    """Recognises a dataset: a `_Pass`."""
    indices, digests, num_batches = [], [], 0
    for x, record, start in _batches(dataset):
        indices.append(_indices(record, start))
        digests.append(_digests(x, record.label))
        num_batches += 1
    if not num_batches:
        raise ValueError("The dataset is empty.")
    indices, digests = np.concatenate(indices), np.concatenate(digests)
    order = np.argsort(indices, kind="stable")
    indices, digests = indices[order], digests[order]
    repeated = indices[1:][indices[1:] == indices[:-1]]
    if repeated.size:
        raise ValueError(
            f"The index {repeated[0]} appears twice in one pass over the "
            "dataset. Repeat the result instead, and give each example an "
            "index of its own."
        )
    whole = hashlib.sha256(indices.tobytes() + digests.tobytes())
    is_indexed = unpack(dataset.element_spec[1]).index is not None
    return _Pass(indices, digests, whole.digest(), num_batches, is_indexed)


def _batches(dataset):
    """Yields inputs, record and number of the first example of batches."""
    start = 0
    for x, y, *_ in dataset:
        record = unpack(y)
        yield x, record, start
        start += keras.tree.flatten(x)[0].shape[0]


def _indices(record, start):
    """The examples' numbers `[batch]`, int64, counted on from `start`."""
    if record.index is not None:
        return np.ravel(record.index).astype(np.int64)
    size = keras.tree.flatten(record.label)[0].shape[0]
    return np.arange(start, start + size, dtype=np.int64)


def _digests(x, label):
    """A digest for each example, bytes `[batch, 16]`."""
    arrays = [np.asarray(t) for t in keras.tree.flatten((x, label))]
    kinds = str([(a.dtype.str, a.shape[1:]) for a in arrays]).encode()
    digests = []
    for rows in zip(*arrays, strict=True):
        digest = hashlib.blake2b(kinds, digest_size=_DIGEST_BYTES)
        for row in rows:
            digest.update(np.ascontiguousarray(row).tobytes())
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    return np.stack(digests)


def _observe(dataset, seen, teachers, missing, folder, verbose):
    """Runs the teachers and writes what matches observe.

    Args:
        dataset: The dataset.
        seen: Its `_Pass`.
        teachers: List of teachers.
        missing: Key -> match.
        folder: Where a folder for each key is to be.
        verbose: Whether to show progress.
    """
    layers = [name for m in missing.values() for name in m.teacher_layers]
    differentiable = any(m.needs_input_gradient for m in missing.values())

    specs = dataset.element_spec
    specs = [specs[0], unpack(specs[1]).label]

    @tf.function(autograph=False, input_signature=specs)
    def observe(x, label):
        trace = trace_of(
            teachers,
            x,
            layers=list(dict.fromkeys(layers)),
            labels=label,
            differentiable=differentiable,
        )
        return {key: m.observe_whole(trace) for key, m in missing.items()}

    progress = keras.utils.Progbar(seen.num_batches, verbose=verbose)
    with contextlib.ExitStack() as stack:
        writers = {
            key: stack.enter_context(_writer(folder / key, len(seen.indices)))
            for key in missing
        }
        for x, record, start in _batches(dataset):
            rows = _rows(seen.indices, _indices(record, start))
            _require_same(seen, rows, _digests(x, record.label))
            for key, observed in observe(x, record.label).items():
                writers[key].write(rows, observed)
            progress.add(1)
    for teacher in teachers:
        teacher._clear_losses()


def _require_same(seen, rows, digests):
    """Raises if a second pass over the data gives other examples."""
    differs = np.any(seen.digests[rows] != digests, axis=-1)
    if not differs.any():
        return
    known = {digest.tobytes() for digest in seen.digests}
    if all(digest.tobytes() in known for digest in digests):
        raise ValueError(
            "The dataset has another order on a second pass, so an example "
            "cannot be known by its position. Shuffle what with_teacher "
            "returns instead, or give each example an index: "
            "tfkd.data.load(..., index=True)."
        )
    raise ValueError(
        f"Example {seen.indices[rows[differs][0]]} has other values on a "
        "second pass over the dataset: it is augmented. What a teacher makes "
        "of one copy does not hold for the next. Leave out the augmentation, "
        "or leave the teacher in the training step."
    )


def _rows(known, indices):
    """Where examples stand among the known ones, which are ascending."""
    rows = np.minimum(np.searchsorted(known, indices), len(known) - 1)
    unknown = indices[known[rows] != indices]
    if unknown.size:
        raise ValueError(
            f"The dataset gives the example {unknown[0]}, which was not there "
            "when it was read first."
        )
    return rows


@contextlib.contextmanager
def _writer(folder, num_examples):
    """A `_Writer` whose files appear as `folder` once all is written."""
    unfinished = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    )
    try:
        writer = _Writer(unfinished, num_examples)
        yield writer
        writer.close()
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Writer:
    """Writes one observation: a layout, and a file or two for each tensor.

    Args:
        folder: An empty folder.
        num_examples: Rows of each file.
    """

    def __init__(self, folder, num_examples):
        self.folder = folder
        self.num_examples = num_examples
        self.layout = None
        self.files = {}

    def write(self, rows, observed):
        """Writes a batch.

        Args:
            rows: Where its examples go, `[batch]`.
            observed: Nested dicts and tuples of tensors `[batch, ...]`.
        """
        tensors = keras.tree.flatten(observed)
        if self.layout is None:
            numbers = iter(range(len(tensors)))
            self.layout = {
                "structure": keras.tree.map_structure(
                    lambda _: next(numbers), observed
                ),
                "dtypes": [tensor.dtype.name for tensor in tensors],
            }
        for number, tensor in enumerate(tensors):
            values = tensor.numpy()
            if tensor.dtype.is_floating:
                values, scale = _packed(values)
                self._put(f"{number}.scale.npy", rows, scale)
            self._put(f"{number}.npy", rows, values)

    def close(self):
        """Writes what is still in memory."""
        for file in self.files.values():
            file.flush()
        text = json.dumps(self.layout)
        (self.folder / "layout.json").write_text(text)

    def _put(self, name, rows, values):
        if name not in self.files:
            self.files[name] = np.lib.format.open_memmap(
                self.folder / name,
                mode="w+",
                dtype=values.dtype,
                shape=(self.num_examples, *values.shape[1:]),
            )
        file = self.files[name]
        if file.shape[1:] != values.shape[1:]:
            raise ValueError(
                "What a match observes has another shape in each batch: "
                f"{file.shape[1:]} and {values.shape[1:]} for an example. "
                "Pad the inputs to one length, or leave the match out of "
                "`matches`; the teacher then runs for it alone."
            )
        file[rows] = values


def _packed(values):
    """Floats as float16 in units of a power of two for each example.

    Args:
        values: `[batch, ...]`.

    Returns:
        The values divided by their scale, float16 `[batch, ...]`, the
        largest of an example between 2^14 and 2^15; and the scale, float32
        `[batch, 1, ...]`.

    Raises:
        ValueError: If a value is not finite.
    """
    wide = values.astype(np.float64)
    axes = tuple(range(1, wide.ndim))
    largest = np.max(np.abs(wide), axis=axes, initial=0.0, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError(
            "The teacher gives NaN or infinity on some example. Check its "
            "weights and the units of the inputs."
        )
    exponent = np.clip(np.frexp(largest)[1] - 15, -126, 127)
    scale = np.ldexp(1.0, exponent)
    return (wide / scale).astype(np.float16), scale.astype(np.float32)


class _Kept:
    """Reads one observation.

    Args:
        folder: What a `_Writer` wrote.
    """

    def __init__(self, folder):
        layout = json.loads((folder / "layout.json").read_text())
        self.structure = _tuples(layout["structure"])
        self.dtypes = [tf.as_dtype(name) for name in layout["dtypes"]]
        self.files = []
        for number, dtype in enumerate(self.dtypes):
            names = [f"{number}.npy"]
            names += [f"{number}.scale.npy"] if dtype.is_floating else []
            self.files.append(
                [np.load(folder / name, mmap_mode="r") for name in names]
            )

    def at(self, rows):
        """The observation of some examples, inside a pipeline.

        Args:
            rows: Where they stand, `[batch]`, int64.

        Returns:
            Nested dicts and tuples of tensors `[batch, ...]`.
        """
        tensors = []
        for dtype, files in zip(self.dtypes, self.files, strict=True):
            parts = tf.numpy_function(
                lambda rows, files=files: [file[rows] for file in files],
                [rows],
                [tf.as_dtype(file.dtype) for file in files],
                stateful=False,
            )
            for part, file in zip(parts, files, strict=True):
                part.set_shape([rows.shape[0], *file.shape[1:]])
            values = tf.cast(parts[0], dtype)
            if dtype.is_floating:
                values *= tf.cast(parts[1], dtype)
            tensors.append(values)
        return keras.tree.map_structure(tensors.__getitem__, self.structure)


def _tuples(structure):
    """The structure with tuples for the lists that JSON made of them."""
    if isinstance(structure, dict):
        return {key: _tuples(value) for key, value in structure.items()}
    if isinstance(structure, list):
        return tuple(_tuples(value) for value in structure)
    return structure


def _joined(dataset, seen, kept):
    """The dataset with what is kept in its records.

    Args:
        dataset: The dataset.
        seen: Its `_Pass`.
        kept: Key -> `_Kept`.
    """

    def join(x, y, *weights):
        record = unpack(y)
        indices = tf.cast(tf.reshape(record.index, [-1]), tf.int64)
        rows = tf.numpy_function(
            lambda indices: _rows(seen.indices, indices),
            [indices],
            tf.int64,
            stateful=False,
        )
        rows.set_shape(keras.tree.flatten(x)[0].shape[:1])
        teacher = {key: files.at(rows) for key, files in kept.items()}
        teacher = {**(record.teacher or {}), **teacher}
        return x, record._replace(teacher=teacher).pack(), *weights

    if not seen.is_indexed:
        dataset = dataset.scan(tf.constant(0, tf.int64), _count)
    return (
        dataset.map(
            join, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        .apply(tf.data.experimental.assert_cardinality(seen.num_batches))
        .prefetch(tf.data.AUTOTUNE)
    )


def _count(start, batch):
    """The number after a batch, and the batch with the examples' numbers."""
    x, y, *weights = batch
    end = start + tf.shape(keras.tree.flatten(x)[0], tf.int64)[0]
    record = unpack(y)._replace(index=tf.range(start, end))
    return end, (x, record.pack(), *weights)


def _require_dataset(dataset):
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            "Invalid value for argument `dataset`. Expected a "
            f"tf.data.Dataset. Received: dataset={dataset!r}"
        )
    specs = dataset.element_spec
    if not isinstance(specs, tuple) or len(specs) < 2:
        raise ValueError(
            "Invalid value for argument `dataset`. Expected batches (x, y). "
            f"Received: element_spec={specs}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The dataset never ends. Repeat what with_teacher returns instead."
        )


def _built(teacher):
    """The list of teachers, all of them built."""
    teachers = as_teachers(teacher)
    if not teachers or not all(model.built for model in teachers):
        raise ValueError(
            "Invalid value for argument `teacher`. Expected a built Keras "
            f"model, or a list of some. Received: teacher={teacher!r}"
        )
    return teachers


def _observing(matches):
    """Those matches that observe a teacher, checked."""
    observing = []
    matches = getattr(matches, "matches", matches)
    for match in matches if isinstance(matches, list | tuple) else [None]:
        if not isinstance(match, BaseMatch):
            raise ValueError(
                "Invalid value for argument `matches`. Expected a list of "
                f"matches. Received: matches={matches!r}"
            )
        if not match.observes_teacher:
            continue
        if match.observation() is None:
            raise ValueError(
                f"Match '{match.name}' draws anew in each step what it "
                "observes of the teacher, so nothing can be kept. Leave it "
                "out of `matches`; the teacher then runs for it alone. A "
                'JacobianMatch of="label", "top" or "all" can be kept.'
            )
        observing.append(match)
    if not observing:
        raise ValueError("No match observes a teacher.")
    return observing


def _folder(cache_dir):
    """The folder of all files."""
    if cache_dir is not None:
        return pathlib.Path(cache_dir)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(caches).expanduser() / "tfkd"


def _hexadecimal(digest):
    return digest[:_DIGEST_BYTES].hex()
