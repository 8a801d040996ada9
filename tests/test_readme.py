"""What the README shows, runs; what it lists, is all there is."""

import pathlib
import re

import keras
import numpy as np
import tensorflow as tf

import tfkd

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def _code(start):
    """The first Python block with this text."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if start in block)


def test_the_ten_lines_run(tmp_path, monkeypatch):
    """As printed, but for one epoch and in another folder."""
    (tmp_path / "saved_models").mkdir()
    teacher = tfkd.models.build(
        "vgg9", num_classes=10, input_shape=(32, 32, 1), width=0.0625
    )
    teacher.save(tmp_path / "saved_models" / "teacher.keras")
    monkeypatch.chdir(tmp_path)
    code = _code("distiller.fit").replace("epochs=100", "epochs=1, verbose=0")
    names = {}
    exec(compile(code, "README", "exec"), names)
    exported = tf.saved_model.load(tmp_path / "saved_models" / "student")
    x = np.ones([3, 32, 32, 1], "float32")
    np.testing.assert_allclose(
        exported.serve(x), names["student"](x), rtol=1e-4, atol=1e-5
    )


def test_the_example_of_a_loss_works():
    names = {"keras": keras, "tf": tf}
    exec(compile(_code("AbsoluteError"), "README", "exec"), names)
    loss = names["AbsoluteError"]()
    y_true, y_pred = np.array([[1.0, 2.0]]), np.array([[0.0, 5.0]])
    assert float(loss(y_true, y_pred)) == 4.0


def test_the_table_of_methods_is_complete():
    section = README.split("## Methods")[1].split("\n## ")[0]
    names = re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)
    assert tuple(names) == tfkd.methods.NAMES


def test_the_table_of_losses_is_complete():
    section = README.split("## Where and how")[1].split("\n## ")[0]
    names = set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE))
    assert names == {*tfkd.losses.__all__} - {"DistributionLoss"}
