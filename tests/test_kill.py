"""SIGKILL at ten random moments: what goes on ends like what was left alone."""

import random

import keras
import killed
import numpy as np
import pytest

KILLS = 5


def kill_and_finish(target, *arguments, reports):
    """Kills a process `KILLS` times, then lets the next one end.

    Args:
        target: As of `killed.run`.
        *arguments: Of the target.
        reports: At most so many before a kill: little more than an epoch.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # Shown if the test fails.
    rng = random.Random(seed)
    for _ in range(KILLS):
        code = killed.run(
            target,
            *arguments,
            kill_after=rng.randint(1, reports),
            seed=rng.random(),
        )
        assert code == -9
    assert killed.run(target, *arguments) == 0


def test_a_killed_training_ends_bit_for_bit_like_another(tmp_path):
    """With all that has a state; 4 steps an epoch.

    Dropout, shuffled and augmented images, projections, a projector, the
    banks of CRD, moments of Adam and the scale of the loss.
    """
    target = killed.train_everything
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    assert killed.run(target, tmp_path / "a", whole, 6) == 0
    kill_and_finish(target, tmp_path / "b", part, 6, reports=5)
    with np.load(whole) as one, np.load(part) as other:
        assert len(one.files) == len(other.files) > 40
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_killed_script_writes_the_same_network(tmp_path):
    """3 steps an epoch, the rate falling to the end."""
    argv = ["--smoke", "--network", "vgg4", "--examples-per-class", "4"]
    argv += ["--epochs", "6", "--batch-size", "16", "--resume", "--output"]
    whole, part = tmp_path / "whole.keras", tmp_path / "part.keras"
    run = killed.run_script
    assert killed.run(run, "train", [*argv, str(whole)]) == 0
    kill_and_finish(run, "train", [*argv, str(part)], reports=4)
    assert sorted(tmp_path.iterdir()) == [part, whole]
    one, other = map(keras.saving.load_model, (whole, part))
    for ours, theirs in zip(
        one.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_process(code):
    assert killed.run(killed.leave, code) == code
