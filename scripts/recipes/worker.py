"""A process that computes runs, one after the other, until it is told off.

It reads a line of JSON for each, the folder and the configuration, and
answers with a line each: null, or what went wrong. It ends with its input,
in the middle of a run too, so that it never outlives who started it.
"""

import json
import os
import pathlib
import queue
import sys
import threading
import traceback


def main():
    """Runs the worker."""
    # Only answers go to the parent, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    wanted = queue.Queue()
    threading.Thread(target=_listen, args=(wanted,), daemon=True).start()

    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
    import common
    import tensorflow as tf

    from recipes.runs import Runs

    # One each, whatever the number of workers: sums keep their order, so
    # the numbers do not depend on it.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    while True:
        folder, config = wanted.get()
        error = None
        try:
            with common.quiet():
                Runs(folder).compute(config)
        except Exception:
            error = traceback.format_exc()
        answers.write(json.dumps(error) + "\n")
        answers.flush()
        # Graphs of one run are of no use to the next.
        common.keras.backend.clear_session()


def _listen(wanted):
    for line in sys.stdin:
        wanted.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
