"""Runs that may be killed at any moment and go on: --resume."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil

import tensorflow as tf

# Options that say nothing about what is trained.
_WHERE = ("output", "overwrite", "resume")
# What an interrupted run of one network may go on with, after it diverged.
_CHANGEABLE = {"train": "learning_rate"}


def add_argument(parser):
    """Adds --resume.

    Args:
        parser: A `common.Parser`.
    """
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep checkpoints in OUTPUT.unfinished, and go on from those of "
        "an earlier run that was killed, by the same command; without one, "
        "start. Makes TensorFlow's operations deterministic, so that the "
        "interruption changes no bit. Needs --output",
    )


def is_complete(parser, options, script):
    """Whether the run that --resume would go on with is there already.

    Ends the script if it is one of other options.

    Args:
        parser: The script's `common.Parser`.
        options: An `argparse.Namespace`.
        script: Name of the script.

    Returns:
        A bool; False without --resume.
    """
    if not options.resume:
        return False
    if not options.output:
        parser.error("argument --resume: needs --output, to find the run again")
    output = pathlib.Path(options.output)
    begun = _unfinished(output)
    with parser.checking("--resume"):
        earlier = _read(begun / "run.json")
        if output.is_dir():
            config = _read(output / "config.json")
            earlier = config and (earlier or config)
        elif not output.is_file():
            return False
        if options.overwrite or earlier is None:
            return False
        _require_same(output, earlier, _description(options, script))
    # The process was killed after its last act but one.
    shutil.rmtree(begun, ignore_errors=True)
    return True


@contextlib.contextmanager
def keeping(parser, options, script, chief=True):
    """The folder of a run's checkpoints, which is gone when the body ends.

    If the body raises, the folder stays, unless there is no checkpoint in it.

    Args:
        parser: The script's `common.Parser`.
        options: An `argparse.Namespace`.
        script: Name of the script.
        chief: Whether this process is the one that writes. Others only read
            there, so that the folder must be one that all see.

    Yields:
        A `pathlib.Path`, or None without --resume.
    """
    if not options.resume:
        yield None
        return
    folder = _unfinished(pathlib.Path(options.output))
    if not chief:
        tf.config.experimental.enable_op_determinism()
        yield folder
        return
    with contextlib.ExitStack() as stack:
        with parser.checking("--resume"):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone(folder))
            ours = _description(options, script)
            earlier = _read(folder / "run.json")
            if earlier is None:
                _write(folder / "run.json", ours)
            else:
                _require_same(folder, earlier, ours, _CHANGEABLE.get(script))
                _write(folder / "run.json", ours)
                sweep(options.output)
        tf.config.experimental.enable_op_determinism()
        try:
            yield folder
        except BaseException:
            if not any(folder.rglob("*.checkpoint")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(output):
    """Where the checkpoints of a run are, beside its output."""
    output = pathlib.Path(os.path.abspath(output))
    return output.with_name(f"{output.name}.unfinished")


@contextlib.contextmanager
def _alone(folder):
    """Refuses a second process in a folder."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is at work in '{folder}'. Wait for it, or "
                "choose another --output."
            ) from None
        yield


def _description(options, script):
    """What two runs must have in common, as JSON gives it back."""
    described = {
        name: value
        for name, value in vars(options).items()
        if name not in _WHERE
    }
    given = described.get("teacher") or described.get("source") or ""
    digest = None
    if os.path.isfile(given):
        content = pathlib.Path(given).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
    ours = {"script": script, "options": described, "digest": digest}
    return json.loads(json.dumps(ours))


def _require_same(place, earlier, ours, but=None):
    """Raises with the options in which two runs differ, all but one."""
    if earlier.get("script") != ours["script"]:
        raise ValueError(
            f"'{place}' is of {earlier.get('script')}.py. Choose another "
            "--output."
        )
    theirs = earlier.get("options", {})
    differing = [
        f"--{name.replace('_', '-')} {_shown(theirs.get(name))}, not "
        f"{_shown(ours['options'].get(name))}"
        for name in dict.fromkeys((*theirs, *ours["options"]))
        if name not in (*_WHERE, but)
        and theirs.get(name) != ours["options"].get(name)
    ]
    if differing:
        raise ValueError(
            f"'{place}' was begun with {'; '.join(differing)}. Give the same "
            "options, or choose another --output, or delete it."
        )

    if earlier.get("digest", ours["digest"]) != ours["digest"]:
        raise ValueError(
            f"'{place}' was begun with another content of the network's file. "
            "Bring that back, or choose another --output."
        )


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path):
    """The dict in a JSON file, or None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"'{path}' is damaged ({error}). Delete '{path.parent}' to start "
            "anew."
        ) from error
    return content if isinstance(content, dict) else {}


def _write(path, content):
    """Writes JSON that is whole or not there."""
    new = path.with_name(f".new-{path.name}")
    with new.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


def sweep(output):
    """Removes what a killed process left of an output.

    Args:
        output: Path of the file or folder that it was to write.
    """
    output = pathlib.Path(os.path.realpath(output))
    for left in output.parent.glob(f".new-????????-{output.name}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
