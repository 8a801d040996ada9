"""Processes that train until they end or are killed, for tests of resuming."""

import multiprocessing
import os
import pathlib
import random
import sys
import time

import numpy as np


def run(target, *arguments, kill_after=None, seed=None):
    """Runs a function in a process of its own.

    Args:
        target: Function of a module, of `*arguments` and `report`, which it
            calls whenever something happened.
        *arguments: Its arguments.
        kill_after: After so many reports and up to 30 ms more, the process
            gets SIGKILL; None: it is left to its end.
        seed: Of the milliseconds.

    Returns:
        The exit code; -9 if it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "tfkd"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(target, arguments, sender))
    process.start()
    sender.close()
    reports = 0
    while True:
        try:
            receiver.recv_bytes()
        except EOFError:
            break
        reports += 1
        if reports == kill_after:
            time.sleep(random.Random(seed).uniform(0, 0.03))
            process.kill()
            break
    process.join()
    receiver.close()
    return process.exitcode


def _child(target, arguments, sender):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    target(*arguments, report=lambda: sender.send_bytes(b"."))


def train_everything(folder, result, seed, *, report):
    """A training with all that has a state, whose end is written to a file."""
    import keras
    import tensorflow as tf
    from test_callbacks import Checkpoints, digits, distiller, state

    tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy("mixed_float16")
    made = distiller(seed)
    data = digits(index=True, augment=True)
    made.fit(
        data.train,
        epochs=6,
        verbose=0,
        callbacks=[_reporter(report), Checkpoints(folder, data=data)],
    )
    np.savez(result, *state(made))


def leave(code, *, report):
    """Ends with an exit code."""
    report()
    sys.exit(code)


def run_script(name, argv, *, report):
    """A script's main, which reports each step."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scripts"))
    import common

    script = __import__(name)
    stop = common.StopOnDivergence
    seen = stop.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        report()
        seen(self, batch, logs)

    stop.on_train_batch_end = on_train_batch_end
    sys.exit(script.main(argv))


def _reporter(report):
    import keras

    return keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: report()
    )
