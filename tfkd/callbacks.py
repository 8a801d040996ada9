"""Callbacks for trainings that are killed, and for those that diverge."""

import contextlib
import json
import logging
import math
import os
import pathlib
import random
import re
import threading
import zipfile
import zlib
from typing import NamedTuple

import keras
import numpy as np

from tfkd.export import replacing
from tfkd.strategies import is_chief, of_all_workers

_FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"epoch-(\d{5,})\.checkpoint")
_UNFINISHED = ".new-*.checkpoint"


class DivergedError(RuntimeError):
    """The loss or the outputs of a network are not finite."""


class Checkpoints(keras.callbacks.Callback):
    """Keeps a training's state after each epoch, and goes on from it.

    At the end of an epoch all is written that the next one depends on:
    weights, moving statistics, projectors and memory banks, the optimizer
    with its moments and loss scale, the states of random seeds (of dropout,
    of projections, and of Python's and NumPy's own generators) and the
    history. `fit` with the same folder then begins after the last finished
    epoch: with the same student, teacher, matches, compile arguments, data
    and number of epochs it ends like the training that was not interrupted,
    bit for bit where TensorFlow's operations are deterministic
    (`tf.config.experimental.enable_op_determinism()`).

    A checkpoint is one file. It is written under a temporary name, brought
    to the disk and renamed, so that a process killed at any moment leaves
    those before as they were. The last two are kept. One that is damaged, or
    of another training, is named in a warning, gets the suffix `.refused`,
    and the one before is used. An epoch after which the loss or a weight is
    not finite leaves none, so that two good ones stay.

    To go back after a divergence, compile with a lower learning rate: one
    that differs from the earlier training's is taken, else that of the
    checkpoint, which a callback may have lowered.

    Of several workers (`tf.distribute.MultiWorkerMirroredStrategy`) the chief
    writes, and all read: give all a folder that they see.

    Not kept is what other callbacks remember, as the patience of
    `EarlyStopping`, and the seeds of operations that have none of their own.

    Args:
        folder: Of the checkpoints of this one training. It is made if it is
            missing.
        data: The `tfkd.data.Dataset` whose `train` is given to `fit`, so that
            each epoch has its own order in whatever process; or None.

    Attributes:
        history: A dict for each finished epoch: `epoch`, counted from 1, and
            the logs of Keras, with what callbacks before this one added.
        last: Path of the last checkpoint that was written or used, or None.

    Raises:
        OSError: In `fit`: before the first epoch if the folder cannot be
            written to, after an epoch if the disk is full, say. Checkpoints
            before it are as they were.
        ValueError: In `fit`, if the folder holds checkpoints of another
            training alone, or of more epochs than `fit` is to train, or if
            workers do not see the same folder.

    Example:

    >>> checkpoints = tfkd.callbacks.Checkpoints("run", data=data)
    >>> distiller.fit(data.train, epochs=100, callbacks=[checkpoints])
    """

    def __init__(self, folder, *, data=None):
        super().__init__()
        if not isinstance(folder, str | os.PathLike) or not str(folder):
            raise ValueError(
                "Invalid value for argument `folder`. Expected the path of a "
                f"folder. Received: folder={folder!r}"
            )
        if data is not None and not hasattr(data, "set_epoch"):
            raise ValueError(
                "Invalid value for argument `data`. Expected what "
                "tfkd.data.load returns, not a pipeline of it. Received: "
                f"data={data!r}"
            )
        self.folder = pathlib.Path(folder)
        self.history = []
        self.last = None
        self._data = data
        self._restored = 0
        self._writes = True
        self._rate = None

    # === Keras ===

    def on_train_begin(self, logs=None):
        """Goes on from the last good checkpoint, if there is one."""
        self.history, self.last, self._restored = [], None, 0
        model = self.model
        self._writes = is_chief(model.distribute_strategy)
        self._rate = _rate(model.optimizer)
        if self._writes:
            _require_writable(self.folder)
        # Before the first step, for a fresh optimizer has no moments to fill.
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        found = self._newest()
        self._require_agreement(found)
        if found is None:
            return
        if found.epoch > self.params["epochs"]:
            raise ValueError(
                f"'{found.path}' is of epoch {found.epoch}, but fit is to end "
                f"after epoch {self.params['epochs']}. Choose another folder, "
                "or more epochs."
            )
        for variable, value in zip(
            _variables(model), found.values, strict=True
        ):
            variable.assign(value)
        self._restore_rate(found.rate)
        _set_generators(found.generators)
        self.history = found.history
        self.last = found.path
        self._restored = found.epoch
        model._initial_epoch = found.epoch  # As Keras' own BackupAndRestore.

    def on_epoch_begin(self, epoch, logs=None):
        """Gives the epoch its order."""
        self._after_beginning()
        if self._data is not None:
            self._data.set_epoch(epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Writes a checkpoint."""
        logs = {name: _number(value) for name, value in (logs or {}).items()}
        self.history.append({"epoch": epoch + 1, **logs})
        fault = _fault(self.model, logs)
        if fault:
            logging.getLogger("tfkd").warning(
                "No checkpoint of epoch %d: %s", epoch + 1, fault
            )
            return
        path = self.folder / f"epoch-{epoch + 1:05}.checkpoint"
        error = None
        if self._writes:
            try:
                _write(path, self.model, epoch + 1, self.history, self._rate)
            except OSError as raised:
                error = raised
        # Workers wait for the chief, and end with it.
        strategy = self.model.distribute_strategy
        failed = of_all_workers(strategy, int(error is not None))
        if any(failed):
            good = f"'{self.last}'" if self.last else "none before it"
            raise OSError(
                f"The checkpoint of epoch {epoch + 1} cannot be written to "
                f"'{self.folder}': {error or 'the chief says why'}. The last "
                f"good one is {good}. Make room for it, then fit again to go "
                "on from there."
            ) from error
        self.last = path
        if self._writes:
            for old, _ in self._files()[_KEPT:]:
                old.unlink(missing_ok=True)

    def on_train_end(self, logs=None):
        """Leaves the model and the data as they are without this callback."""
        self._after_beginning()
        if self._data is not None:
            self._data.set_epoch(None)

    def _require_agreement(self, found):
        """Raises if workers would go on from different epochs."""
        strategy = self.model.distribute_strategy
        epochs = of_all_workers(strategy, found.epoch if found else 0)
        if len(set(epochs)) > 1:
            raise ValueError(
                f"Workers find checkpoints of different epochs in "
                f"'{self.folder}': {epochs}. Choose a folder that all see."
            )

    def _restore_rate(self, begun_with):
        """Takes the learning rate that is compiled now, if it is a new one.

        Else that of the checkpoint stays, which a callback may have lowered.
        """
        optimizer = self.model.optimizer
        if self._rate in (None, begun_with, _rate(optimizer)):
            self._rate = begun_with
        else:
            optimizer.learning_rate = self._rate

    def _after_beginning(self):
        """Once fit has read where to begin, brings back Keras' history."""
        if not self._restored:
            return
        self.model._initial_epoch = 0
        kept = self.model.history
        kept.epoch = [row["epoch"] - 1 for row in self.history]
        kept.history = {}
        for row in self.history:
            for name, value in row.items():
                if name != "epoch":
                    kept.history.setdefault(name, []).append(value)
        self._restored = 0

    # === Files ===

    def _files(self):
        """Pairs of path and epoch of all checkpoints, the newest first."""
        found = []
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        for path in paths:
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((path, int(match[1])))
        return sorted(found, key=lambda pair: -pair[1])

    def _newest(self):
        """The newest `_Checkpoint` that is good, or None."""
        if self._writes:
            for unfinished in self.folder.glob(_UNFINISHED):
                unfinished.unlink(missing_ok=True)  # Of a killed process.
        refused, found = {}, None
        for path, epoch in self._files():
            try:
                found = _read(path, self.model)
                if found.epoch != epoch:
                    raise _ForeignError(f"it is of epoch {found.epoch}")
                break
            except (_ForeignError, _DamagedError) as error:
                found, refused[path] = None, error
        foreign = [
            f"'{path}': {error}"
            for path, error in refused.items()
            if isinstance(error, _ForeignError)
        ]
        if foreign and found is None:
            raise ValueError(
                f"'{self.folder}' holds checkpoints of another training. "
                f"{'; '.join(foreign)}. Choose another folder, or delete them."
            )
        for path, error in refused.items():
            aside = path.with_name(f"{path.name}.refused")
            if self._writes:
                os.replace(path, aside)
            logging.getLogger("tfkd").warning(
                "Refused the checkpoint '%s' (%s), which is now '%s'. "
                "Training goes on from %s",
                path,
                error,
                aside.name,
                f"'{found.path}'" if found else "its beginning",
            )
        return found


class StopOnDivergence(keras.callbacks.Callback):
    """Stops when the loss is NaN or infinite, and says which term made it so.

    It looks at the running means that Keras shows after each step, in a
    thread of its own unless another callback wants them at once: no step
    waits for it. Put it before other callbacks that act at an epoch's end.

    Args:
        checkpoints: The `Checkpoints` of this training, whose last file the
            error names; or None.

    Raises:
        DivergedError: In `fit`. It names the terms that are not finite, the
            step, and the checkpoint to go back to.

    Example:

    >>> checkpoints = tfkd.callbacks.Checkpoints("run", data=data)
    >>> stop = tfkd.callbacks.StopOnDivergence(checkpoints)
    >>> distiller.fit(data.train, callbacks=[stop, checkpoints])
    """

    # Keras calls it from several threads, if all callbacks allow it.
    async_safe = True

    def __init__(self, checkpoints=None):
        super().__init__()
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self._found = None
        self._epoch = 0
        self._steps_before = 0

    def advice(self):
        """What to do after a divergence, a sentence that names a checkpoint."""
        last = getattr(self._checkpoints, "last", None)
        back = "Start anew"
        if last:
            back = f"Go back to '{last}', the last checkpoint,"
        elif self._checkpoints is not None:
            back = "There is no checkpoint yet: start anew"
        return f"{back} with a lower learning rate or weight."

    def on_train_begin(self, logs=None):
        """Forgets an earlier training."""
        self._found = None

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where the epoch begins."""
        self._epoch = epoch
        self._steps_before = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss."""
        if math.isfinite((logs or {}).get("loss", 0.0)):
            return
        with self._lock:
            if self._found is None or batch < self._found[0]:
                self._found = batch, logs
        self.model.stop_training = True

    def on_test_begin(self, logs=None):
        """Raises before a validation."""
        self._raise()

    def on_epoch_end(self, epoch, logs=None):
        """Raises."""
        self._raise()

    def _raise(self):
        if self._found is None:
            return
        batch, logs = self._found
        raise DivergedError(
            f"The loss is {logs['loss']} at step "
            f"{self._steps_before + batch + 1} (epoch {self._epoch + 1}, step "
            f"{batch + 1} of it): {self._culprits(logs)}. {self.advice()}"
        )

    def _culprits(self, logs):
        """The terms that are not finite, in words."""
        terms = dict(getattr(self.model, "terms", {}))
        bad = {
            title: logs[name]
            for name, title in terms.items()
            if name in logs and not math.isfinite(logs[name])
        }
        if not bad:
            return "no term of it alone is" if terms else "see its definition"
        text = ", ".join(f"{title} is {value}" for title, value in bad.items())
        if len(bad) == len(terms) > 1:
            text += ", all terms at once: weights overflowed the step before"
        return text


# === One checkpoint ===


class _DamagedError(Exception):
    """A file that is no whole checkpoint."""


class _ForeignError(Exception):
    """A whole checkpoint that does not fit."""


class _Checkpoint(NamedTuple):
    path: pathlib.Path
    epoch: int
    history: list
    generators: dict
    rate: float | None
    values: list


def _variables(model):
    """All state of a training, in an order that is always the same."""
    return [*model.variables, *model.optimizer.variables]


def _rate(optimizer):
    """The learning rate that an optimizer remembers; None for a schedule."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = inner._learning_rate
    if not isinstance(rate, keras.Variable):
        return None
    return float(keras.ops.convert_to_numpy(rate))


def _identity(model):
    """What a checkpoint and the model must have in common.

    Names of variables are left out: Keras counts them up in a process.
    """
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    return {
        "model": type(model).__name__,
        "optimizer": "/".join(
            type(each).__name__ for each in (optimizer, inner) if each
        ),
        "matches": [
            f"{match.name}: {match.how}"
            for match in getattr(model, "matches", ())
        ],
        "variables": [
            [list(variable.shape), str(variable.dtype)]
            for variable in _variables(model)
        ],
    }


def _write(path, model, epoch, history, rate):
    """Writes a checkpoint that is whole or not there.

    Raises:
        OSError: If it cannot be written.
    """
    state = {
        "format": _FORMAT,
        "epoch": epoch,
        "history": history,
        "generators": _generators(),
        "learning_rate": rate,
        "identity": _identity(model),
    }
    with replacing(path) as temporary, temporary.open("wb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("state.json", json.dumps(state))
            for number, variable in enumerate(_variables(model)):
                value = keras.ops.convert_to_numpy(variable)
                archive.writestr(str(number), value.tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    _sync(path.parent)


def _read(path, model):
    """Reads a checkpoint whole before anything is changed.

    Raises:
        _DamagedError: If the file is no whole checkpoint.
        _ForeignError: If it is one of another training.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_stored(archive)
            state = json.loads(archive.read("state.json"))
            if state["format"] != _FORMAT:
                raise _ForeignError(f"its format is {state['format']}")
            _require_same(state["identity"], _identity(model))
            _check_state(state)
            values = [
                _value(archive, str(number), variable)
                for number, variable in enumerate(_variables(model))
            ]
            return _Checkpoint(
                path,
                state["epoch"],
                state["history"],
                state["generators"],
                state["learning_rate"],
                values,
            )
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        OSError,
    ) as error:
        raise _DamagedError(f"it is damaged: {error}") from error


def _require_stored(archive):
    """Raises if a part would grow: few compressed bytes may be gigabytes."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"'{info.filename}' is compressed")


def _check_state(state):
    """Raises if what is put into place is not what `_write` writes."""
    epoch = state["epoch"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"its epoch is {epoch!r}")
    epochs = [row["epoch"] for row in state["history"]]
    if epochs != [*range(epoch + 1 - len(epochs), epoch + 1)]:
        raise ValueError("its history is not that of its epochs")
    if not isinstance(state["learning_rate"], float | None):
        raise ValueError("its learning rate is no number")
    python, numpy = _generator_states(state["generators"])
    random.Random().setstate(python)
    np.random.RandomState().set_state(numpy)


def _value(archive, name, variable):
    """One variable's value, checked by its size and the archive's sum."""
    dtype = keras.ops.convert_to_numpy(variable).dtype
    size = math.prod(variable.shape) * dtype.itemsize
    if archive.getinfo(name).file_size != size:
        raise ValueError(f"'{variable.path}' has another size")
    content = archive.read(name)
    return np.frombuffer(content, dtype).reshape(variable.shape)


def _require_same(theirs, ours):
    """Raises `_ForeignError` with the first difference."""
    for key in ("model", "optimizer", "matches"):
        if theirs[key] != ours[key]:
            raise _ForeignError(f"its {key}: {theirs[key]}; here: {ours[key]}")
    theirs, ours = theirs["variables"], ours["variables"]
    if len(theirs) != len(ours):
        raise _ForeignError(
            f"it holds {len(theirs)} variables, here are {len(ours)}"
        )
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise _ForeignError(
                f"its variable {number} is {their}, here it is {our}"
            )


def _fault(model, logs):
    """Why an epoch's state is not worth keeping, or None."""
    loss = logs.get("loss", 0.0)
    if not np.all(np.isfinite(loss)):
        return f"the loss is {loss}"
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable)
        if not np.all(np.isfinite(value.astype(np.float32))):
            return f"'{variable.path}' is not finite"
    return None


def _require_writable(folder):
    """Makes a folder and raises if nothing can be written there."""
    probe = folder / f".new-{os.getpid()}.checkpoint"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"Checkpoints cannot be written to '{folder}': {error}. Choose "
            "another folder, or make it writable."
        ) from error


def _sync(folder):
    """Brings a folder's names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _generators():
    """The states of Python's and NumPy's generators."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
    }


def _generator_states(states):
    """What `_generators` returned, as Python and NumPy take it."""
    version, internal, gauss = states["python"]
    return (version, tuple(internal), gauss), tuple(states["numpy"])


def _set_generators(states):
    python, numpy = _generator_states(states)
    random.setstate(python)
    np.random.set_state(numpy)


def _number(value):
    """A log as JSON can hold it: a number, or lists of them."""
    return np.asarray(value).tolist()
