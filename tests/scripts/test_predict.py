"""scripts/predict.py: what it says of images, what it refuses."""

import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import keras
import numpy as np
import predict
import pytest
import refusals
from PIL import Image

from tfkd import data
from tfkd.artefacts.sidecar import SIDECAR
from tfkd.data.digits import enlarge
from tfkd.export import export_student

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]


def sidecar(folder, **content):
    """Writes what lies beside a network, "white" too if it is given."""
    empty = {
        "class_names": None,
        "input_shape": None,
        "mean": None,
        "std": None,
        "normalization_inside": False,
    }
    (folder / SIDECAR).write_text(json.dumps(empty | content))


def pool_model(channels, size=(6, 4)):
    """Mean of each channel, as logits; of gray also its opposite."""
    x = keras.Input((*size, channels))
    y = keras.layers.GlobalAveragePooling2D()(x)
    if channels == 1:
        layer = keras.layers.Dense(2)
        y = layer(y)
        layer.set_weights([np.float32([[1.0, -1.0]]), np.zeros(2)])
    return keras.Model(x, y)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The mean color of 6x4 pixels, in all kinds, without a sidecar."""
    folder = tmp_path_factory.mktemp("networks")
    formats = ("keras", "saved_model", "tflite")
    export_student(pool_model(3), folder, formats=formats)
    (folder / SIDECAR).unlink(missing_ok=True)
    return folder


@pytest.fixture
def network(networks, tmp_path):
    """One of them, in a folder of its own."""
    (tmp_path / "network").mkdir()
    return shutil.copy(networks / "student.tflite", tmp_path / "network")


def save(path, pixels):
    Image.fromarray(np.uint8(pixels)).save(path)
    return str(path)


@pytest.fixture
def image(tmp_path):
    """Random pixels of the network's own size."""
    pixels = np.random.default_rng(0).integers(0, 256, [6, 4, 3])
    return save(tmp_path / "image.png", pixels), pixels


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits))
    return e / e.sum()


def told(capsys):
    """The JSON on stdout."""
    return json.loads(capsys.readouterr().out)


def probabilities(entry):
    """By label."""
    ordered = sorted(entry["classes"], key=lambda item: item["label"])
    return [item["probability"] for item in ordered]


def arguments(mean=MEAN, std=STD, white=1):
    return [
        *("--mean", *map(str, mean)),
        *("--std", *map(str, std)),
        *("--white", str(white)),
        "--json",
    ]


@pytest.mark.parametrize("name", ["keras", "saved_model", "tflite"])
def test_probabilities_are_those_of_numpy(name, networks, image, capsys):
    path, pixels = image
    file = networks / ("saved_model" if "_" in name else f"student.{name}")
    assert predict.main([str(file), "--images", path, *arguments()]) == 0
    (entry,) = told(capsys)
    logits = (pixels.mean(axis=(0, 1)) / 255 - MEAN) / STD
    assert entry["file"] == path
    np.testing.assert_allclose(probabilities(entry), softmax(logits), atol=1e-6)
    order = np.argsort(-logits)
    assert [item["label"] for item in entry["classes"]] == order.tolist()
    assert [item["class"] for item in entry["classes"]] == list(map(str, order))


def test_prints_a_table_of_the_likeliest(network, image, capsys):
    sidecar(
        pathlib.Path(network).parent,
        class_names=["red", "green", "deep blue"],
        mean=[0.0],
        std=[1.0],
        white=1,
    )
    path, pixels = image
    other = save(pathlib.Path(path).parent / "b.bmp", pixels[..., ::-1])
    command = [network, "--images", path, other, "--top", "2"]
    assert predict.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line[1:-1].split("|")] for line in lines]
    assert cells[0] == ["file", "class", "probability %"]
    logits = pixels.mean(axis=(0, 1)) / 255
    expected = []
    for file, values in ((path, logits), (other, logits[::-1])):
        for label in np.argsort(-values)[:2]:
            name = ["red", "green", "deep blue"][label]
            percent = f"{100 * softmax(values)[label]:.1f}"
            expected.append([file, name, percent])
    assert cells[2:] == expected


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *itertools.product(("png", "bmp"), ("L", "RGB", "RGBA")),
        *itertools.product(("jpg",), ("L", "RGB")),
    ],
)
def test_any_file_of_one_color_is_that_color(
    suffix, mode, network, tmp_path, capsys
):
    """Of any size, and whatever is said of its transparency."""
    color = {"L": 90, "RGB": (200, 90, 30), "RGBA": (200, 90, 30, 7)}[mode]
    file = tmp_path / f"color.{suffix}"
    Image.new(mode, (31, 57), color).save(file, quality=100)
    assert predict.main([network, "--images", str(file), *arguments()]) == 0
    (entry,) = told(capsys)
    rgb = np.array([90] * 3 if mode == "L" else color[:3])
    # JPEG rounds colours to a level of 255.
    tolerance = 0.01 if suffix == "jpg" else 1e-6
    np.testing.assert_allclose(
        probabilities(entry),
        softmax((rgb / 255 - MEAN) / STD),
        atol=tolerance,
    )


def test_an_image_is_resized_as_a_whole(network, tmp_path, capsys):
    """Left half red, right half blue: their means stay."""
    pixels = np.zeros([60, 200, 3])
    pixels[:, :100, 0] = pixels[:, 100:, 2] = 255
    file = save(tmp_path / "halves.png", pixels)
    predict.main([network, "--images", file, *arguments([0], [1])])
    (entry,) = told(capsys)
    np.testing.assert_allclose(
        probabilities(entry), softmax([0.5, 0, 0.5]), atol=1e-5
    )


def test_crop_takes_the_middle(tmp_path, capsys):
    """Of 160x320, the middle 140 of either edge are kept (224/256)."""
    pool_model(3, (14, 14)).save(tmp_path / "square.keras")
    pixels = np.zeros([160, 320, 3])
    pixels[..., 0] = 255
    pixels[10:150, 90:230] = [0, 255, 0]
    file = save(tmp_path / "middle.png", pixels)
    command = [
        *(str(tmp_path / "square.keras"), "--images", file),
        *arguments([0], [1]),
    ]
    predict.main(command)
    whole = probabilities(told(capsys)[0])
    predict.main([*command, "--crop"])
    middle = probabilities(told(capsys)[0])
    # Antialiasing mixes something of what is beside into the border.
    np.testing.assert_allclose(middle, softmax([0, 1, 0]), atol=0.03)
    green = 140**2 / (160 * 320)
    expected = softmax([1 - green, green, 0])
    np.testing.assert_allclose(whole, expected, atol=0.002)


def test_gray_networks_see_gray_as_it_is(tmp_path, capsys):
    """And colours by their luminance."""
    pool_model(1).save(tmp_path / "gray.keras")
    gray = save(tmp_path / "gray.png", np.full([6, 4], 200))
    red = save(tmp_path / "red.png", np.full([9, 9, 3], (255, 0, 0)))
    command = [str(tmp_path / "gray.keras"), "--images", gray, red]
    predict.main([*command, *arguments([0], [1])])
    first, second = told(capsys)
    np.testing.assert_allclose(
        probabilities(first), softmax([200 / 255, -200 / 255]), atol=1e-7
    )
    np.testing.assert_allclose(
        probabilities(second), softmax([0.2989, -0.2989]), atol=1e-3
    )
    predict.main([*command, *arguments([0], [1]), "--invert"])
    inverted, _ = told(capsys)
    np.testing.assert_allclose(
        probabilities(inverted), softmax([55 / 255, -55 / 255]), atol=1e-7
    )


def test_digits_from_files_get_the_answers_of_the_dataset(tmp_path, capsys):
    """Files of 0 to 255, while the dataset has 0 to 16."""
    from sklearn.datasets import load_digits

    digits = data.load("digits", batch_size=1)
    train = digits.train.unbatch().batch(10_000).get_single_element()
    x, y = (part.numpy() for part in train)
    means = np.stack([x[y == c].mean(axis=0) for c in range(10)])
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    means = means.reshape(10, -1)
    model.set_weights([0.02 * means.T, -0.01 * np.square(means).sum(axis=1)])
    model.save(tmp_path / "digits.keras")
    files = []
    for i in range(8):
        pixels = enlarge(load_digits().images[i : i + 1], 4)[0]
        pixels = np.round(pixels * 255 / 16)
        files.append(save(tmp_path / f"{i}.png", pixels))
    command = [str(tmp_path / "digits.keras"), "--images", *files, "--json"]
    assert predict.main([*command, "--dataset", "digits"]) == 0
    entries = told(capsys)
    pixels = enlarge(load_digits().images[:8], 4)[..., np.newaxis]
    logits = model((pixels - digits.mean) / digits.std)
    for entry, row in zip(entries, logits, strict=True):
        best = entry["classes"]
        assert len(best) == 3
        assert best[0]["class"] == str(np.argmax(row))
        # Half a level of 255 at most.
        assert best[0]["probability"] == pytest.approx(
            softmax(row).max(), abs=0.01
        )


def test_the_network_knows_its_units_best(network, image, capsys):
    """Its own sidecar goes before --dataset; options before both."""
    path, pixels = image
    folder = pathlib.Path(network).parent
    colors = pixels.mean(axis=(0, 1))
    command = [network, "--images", path, "--json"]
    sidecar(folder, mean=[100.0], std=[50.0])
    predict.main(command)
    expected = softmax((colors - 100) / 50)
    np.testing.assert_allclose(
        probabilities(told(capsys)[0]), expected, atol=1e-5
    )
    predict.main([*command, *arguments()])
    np.testing.assert_allclose(
        probabilities(told(capsys)[0]),
        softmax((colors / 255 - MEAN) / STD),
        atol=1e-6,
    )
    sidecar(folder, normalization_inside=True, white=2)
    predict.main(command)
    np.testing.assert_allclose(
        probabilities(told(capsys)[0]), softmax(colors * 2 / 255), atol=1e-6
    )


def test_class_names_are_given_or_numbers(network, image, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    command = [network, "--images", image[0], *arguments()]
    predict.main([*command, "--classes", str(names)])
    (entry,) = told(capsys)
    for item in entry["classes"]:
        assert item["class"] == ["red", "green", "blue"][item["label"]]
    names.write_text("red\ngreen\n")
    line = refusal([*command, "--classes", str(names)], capsys)
    assert "--classes: expected 3 class names" in line


def test_probabilities_stay_what_they_are(tmp_path, image, capsys):
    """Of a network that ends in a softmax, if the script is told."""
    x = keras.Input((6, 4, 3))
    y = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(x, y).save(tmp_path / "softmax.keras")
    path, pixels = image
    command = [str(tmp_path / "softmax.keras"), "--images", path]
    expected = softmax((pixels.mean(axis=(0, 1)) / 255 - MEAN) / STD)
    for options, values in (
        (["--outputs", "probabilities"], expected),
        ([], softmax(expected)),
    ):
        assert predict.main([*command, *arguments(), *options]) == 0
        out, err = capsys.readouterr()
        np.testing.assert_allclose(
            probabilities(json.loads(out)[0]), values, atol=1e-6
        )
        assert ("seems to return probabilities" in err) == (not options)


def test_names_the_files_that_are_no_images(network, image, tmp_path, capsys):
    """The others are classified; also when the first is the bad one."""
    path, pixels = image
    content = pathlib.Path(path).read_bytes()
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, [64, 64, 3])
    Image.fromarray(np.uint8(noise)).save(stream, "JPEG")
    bad = {
        "text.png": b"no image",
        "empty.png": b"",
        "half.png": content[: len(content) // 2],
        "half.jpg": stream.getvalue()[: len(stream.getvalue()) // 2],
        "header.bmp": b"BM" + bytes(60),
    }
    for name, damaged in bad.items():
        (tmp_path / name).write_bytes(damaged)
    (tmp_path / "folder.png").mkdir()
    names = [*bad, "folder.png", "missing.png"]
    files = [str(tmp_path / name) for name in names]
    command = [network, "--images", *files, path, *arguments()[:-1]]
    assert predict.main(command) == 1
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:]] == [path] * 3
    assert len(err.splitlines()) == len(files)
    for file, line in zip(files, err.splitlines(), strict=True):
        assert f"error: {file}: " in line
    assert predict.main([*command, "--json"]) == 1
    *faulty, good = told(capsys)
    assert [entry["file"] for entry in faulty] == files
    assert all(set(entry) == {"file", "error"} for entry in faulty)
    assert good["file"] == path
    assert predict.main([network, "--images", files[0], *arguments()]) == 1
    assert len(told(capsys)) == 1


def test_many_images_are_read_in_parts(network, tmp_path, capsys):
    files = [
        save(tmp_path / f"{i}.png", np.full([2, 2, 3], (3 * i, 90, 0)))
        for i in range(70)
    ]
    predict.main([network, "--images", *files, files[3], *arguments()])
    entries = told(capsys)
    assert [entry["file"] for entry in entries] == files
    for i in (0, 31, 32, 69):
        logits = (np.array([3 * i, 90, 0]) / 255 - MEAN) / STD
        np.testing.assert_allclose(
            probabilities(entries[i]), softmax(logits), atol=1e-6
        )


def refusal(command, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(predict.main, command, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Pass --dataset NAME, on which it was trained, or --mean and"),
        (["--mean", "0"], "--mean: only together with --std"),
        (["--mean", "nan", "--std", "1"], "expected a finite number"),
        (["--mean", "0", "--std", "0"], "expected a finite number > 0"),
        (["--mean", "0", "0", "--std", "1"], "--mean: expected 1 or 3 numbers"),
        (["--white", "-1"], "expected a finite number > 0"),
        (["--top", "0"], "--top: expected an integer >= 1"),
        (["--dataset", "imagenet"], "argument --dataset: .*'imagenet'"),
        (["--dataset", "digits"], "--dataset: expected 3 class names"),
        (["--data-dir", "x"], "only with --dataset"),
        (["--crop", "--mean", "0", "--std", "1"], "no squares"),
        (["--head", "other"], "Expected one of 'global_average_pooling2d"),
    ],
)
def test_refuses_bad_options(options, message, networks, image, capsys):
    command = [networks / "student.keras", "--images", image[0], *options]
    assert re.search(message, refusal(command, capsys))


def test_refuses_bad_networks(image, tmp_path, capsys):
    x = keras.Input((5,))
    keras.Model(x, keras.layers.Dense(3)(x)).save(tmp_path / "vector.keras")
    x = keras.Input((None, None, 3))
    y = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(x, y).save(tmp_path / "any.keras")
    x = keras.Input((6, 4, 3))
    keras.Model(x, keras.layers.Conv2D(3, 1)(x)).save(tmp_path / "map.keras")
    (tmp_path / "empty.tflite").touch()
    for name, message in {
        "vector.keras": "Expected images (height, width, channels)",
        "any.keras": "takes images of any size",
        "map.keras": "Expected a number for each of several classes",
        "empty.tflite": "is no LiteRT model",
        "missing.onnx": "No artefact at",
    }.items():
        command = [tmp_path / name, "--images", image[0], *arguments()]
        assert message in refusal(command, capsys)
    assert "required: --images" in refusal([tmp_path / "any.keras"], capsys)


def test_a_network_that_standardises_itself_takes_no_mean(
    network, image, capsys
):
    sidecar(pathlib.Path(network).parent, normalization_inside=True)
    command = [network, "--images", image[0], *arguments()]
    assert "standardises images itself" in refusal(command, capsys)


def test_runs_as_a_command_without_noise(network, image):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "TF_CPP_MIN_LOG_LEVEL"
    }
    command = [sys.executable, predict.__file__, network]
    options = ["--images", image[0], "--mean", "0", "--std", "255"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 5
