"""`classes=`: some of the classes, with labels of their own."""

import numpy as np
import pytest

import tfkd.data


def load(classes=None, **overrides):
    arguments = {"batch_size": 64, **overrides}
    return tfkd.data.load("digits", classes=classes, **arguments)


def examples(pipeline):
    """Images as bytes -> label."""
    return {
        image.tobytes(): int(label)
        for x, y in pipeline.as_numpy_iterator()
        for image, label in zip(x, y, strict=True)
    }


@pytest.fixture(scope="module")
def whole():
    return load()


def test_labels_are_renumbered_in_the_given_order(whole):
    some = load([7, 5, 9])
    assert some.num_classes == 3
    assert some.class_names == ("7", "5", "9")
    for split in ("train", "validation", "test"):
        old = examples(getattr(whole, split))
        new = examples(getattr(some, split))
        assert new == {
            image: (7, 5, 9).index(label)
            for image, label in old.items()
            if label in (7, 5, 9)
        }
        assert len(new) == getattr(some, f"num_{split}")


def test_halves_are_disjoint_in_the_units_and_splits_of_the_whole(whole):
    low, high = load(range(5)), load([5, 6, 7, 8, 9])
    assert low.mean == high.mean == whole.mean
    assert low.std == high.std == whole.std
    for split in ("train", "validation", "test"):
        halves = [set(examples(getattr(half, split))) for half in (low, high)]
        assert not set.intersection(*halves)
        assert set.union(*halves) == set(examples(getattr(whole, split)))


def test_order_of_evaluation_is_that_of_the_whole(whole):
    labels = np.concatenate([y for _, y in whole.test])
    some = np.concatenate([y for _, y in load([5, 6]).test])
    np.testing.assert_array_equal(
        some, labels[(labels == 5) | (labels == 6)] - 5
    )


def test_subsets_and_indices_are_those_of_the_selection():
    data = load([5, 6, 7, 8, 9], examples_per_class=10, index=True, seed=4)
    assert data.num_train == 50
    records = [y for _, y in data.train.as_numpy_iterator()]
    labels = np.concatenate([y["label"] for y in records])
    indices = np.concatenate([y["index"] for y in records])
    np.testing.assert_array_equal(np.bincount(labels), [10] * 5)
    np.testing.assert_array_equal(np.sort(indices), range(50))


def test_too_few_examples_name_the_class_by_its_old_name():
    with pytest.raises(ValueError, match=r"at most 122.*class '8'"):
        load([5, 8], examples_per_class=123)


def test_arrays_of_labels_will_do():
    assert load(np.array([3, 1])).class_names == ("3", "1")


@pytest.mark.parametrize(
    "classes",
    [[], [10], [-1], [1, 1], [1.0], [True], "12", 3, {1: 2}, [[1, 2]], ["1"]],
)
def test_other_selections_are_refused(classes):
    with pytest.raises(ValueError, match=r"`classes`.*integers in \[0, 10\)"):
        load(classes)
