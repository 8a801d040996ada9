"""`SimilarityPreserving` against its formula, weights and limits."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import SimilarityPreserving

SHAPES = [
    ((5, 4), (5, 4)),
    ((7, 30), (7, 3)),
    ((4, 6, 6, 2), (4, 3, 3, 5)),
    ((3, 4, 4, 8), (3, 4, 4, 8)),
]


def test_value_by_hand():
    """Rows (1, 0), (0, 1) against (1, 1) / sqrt 2 twice.

    Each row differs by 2 - sqrt 2 squared; twice that, over 4.
    """
    value = SimilarityPreserving()([[1, 0], [0, 1]], [[3, 0], [3, 0]])
    np.testing.assert_allclose(value, 2 * (2 - np.sqrt(2)) / 4, rtol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shapes, dtype):
    teacher, student = normal(*shapes, dtype=dtype)
    expected = reference_baselines.similarity_preserving(teacher, student)
    actual = SimilarityPreserving().call(teacher, student)
    assert actual.shape == (shapes[0][0],)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES[:3])
def test_gradients_equal_central_differences(shapes):
    assert_central(SimilarityPreserving().call, *normal(*shapes))


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e15])
def test_knows_no_scale(scale):
    teacher, student = normal((5, 4), (5, 4), dtype="float32")
    np.testing.assert_allclose(
        SimilarityPreserving()(teacher, np.float32(scale) * student),
        SimilarityPreserving()(teacher, student),
        rtol=1e-5,
    )


def test_knows_no_rotation():
    """Nor a reflection: X X^T = X Q Q^T X^T."""
    teacher, student = normal((5, 4), (5, 4))
    rotation, _ = np.linalg.qr(normal((4, 4), seed=1)[0])
    np.testing.assert_allclose(
        SimilarityPreserving().call(teacher, student @ rotation),
        SimilarityPreserving().call(teacher, student),
        rtol=1e-10,
    )


def test_batch_of_one_has_nothing_to_compare():
    """Its only similarity is 1 on either side."""
    teacher, student = normal((1, 4), (1, 4))
    assert SimilarityPreserving()(teacher, student) == 0.0
    (_, slope) = gradients(SimilarityPreserving().call, teacher, student)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)


def test_example_without_features_has_no_similarities():
    """Its row and column are 0: of the rest, (3, 4) / 5 and (4, 3) / 5 say."""
    teacher, student = normal((4, 3), (4, 3))
    student[2] = 0.0
    np.testing.assert_allclose(
        SimilarityPreserving().call(teacher, student),
        reference_baselines.similarity_preserving(teacher, student),
        rtol=1e-10,
    )
    for slope in gradients(SimilarityPreserving().call, teacher, student):
        assert np.all(np.isfinite(slope))


def test_nan_comes_out():
    teacher, student = normal((4, 3), (4, 3))
    student[2, 1] = np.nan
    assert np.isnan(SimilarityPreserving()(teacher, student))
