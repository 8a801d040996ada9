"""`validation_from="test"`: nothing is held out of the training images."""

import numpy as np
import pytest

import tfkd.data


def load(**overrides):
    return tfkd.data.load("digits", batch_size=64, **overrides)


def images(*pipelines):
    return {
        image.tobytes()
        for pipeline in pipelines
        for x, _ in pipeline.as_numpy_iterator()
        for image in x
    }


def test_all_images_but_those_of_the_test_are_trained_on():
    held_out, whole = load(), load(validation_from="test")
    assert images(whole.train) == images(held_out.train, held_out.validation)
    assert images(whole.test) == images(held_out.test)
    assert whole.num_train == held_out.num_train + held_out.num_validation
    assert whole.num_validation == whole.num_test == held_out.num_test
    for ours, theirs in zip(whole.validation, whole.test, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_units_are_those_of_other_networks():
    held_out, whole = load(), load(validation_from="test")
    assert (whole.mean, whole.std) == (held_out.mean, held_out.std)


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="`validation_from`"):
        load(validation_from="validation")
