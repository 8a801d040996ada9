"""What the tests of the networks share."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def randomized():
    """A function that takes every variable of a model off its start.

    Fresh normalisations are almost the identity, and would hide where they
    stand.
    """
    return _randomized


def _randomized(model):
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "bias", "moving_mean")):
            variable.assign(0.3 * rng.normal(size=variable.shape))
    return model
