"""The images on which variants disagree."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from made_runs import MadeVariant, accuracies, make_study
from PIL import Image

from convatlas.data.prepared import PreparedData
from convatlas.reporting.disagreements import SIDE, disagreements, entropies, majorities
from convatlas.reporting.predictions import Predictions
from convatlas.reporting.reading import read_study
from convatlas.reporting.report import write_report


def made(*answers, labels, **options):
    return MadeVariant(
        test=accuracies(*[0.5] * len(answers)), answers=dict(enumerate(answers)), labels=labels, **options
    )


def found(tmp_path, variants):
    return disagreements(read_study(*make_study(tmp_path, variants)).groups[0])


def test_the_entropy_of_answers_is_that_of_their_shares():
    answers = np.array([[7, 1, 1], [7, 2, 1], [7, 2, 2], [7, 1, 3]], dtype=np.int32)
    assert entropies(answers) == pytest.approx([0, math.log(2), 1.5 * math.log(2)])


def test_a_variant_says_what_most_of_its_seeds_say_and_of_equals_the_first():
    predicted = {"a": {0: [1, 1], 1: [2, 2], 2: [2, 3]}, "b": {5: [4, 4]}}
    arrays = {
        key: {seed: np.array(said, dtype=np.int32) for seed, said in seeds.items()} for key, seeds in predicted.items()
    }
    majority, votes = majorities(Predictions(np.arange(2), np.zeros(2), arrays))
    assert majority.tolist() == [[2, 1], [4, 4]]
    assert votes.shape == (4, 2)


def test_the_images_with_the_most_disagreement_come_first(tmp_path):
    labels = [0, 1, 2, 3]
    variants = {
        "a": made([0, 1, 2, 3], labels=labels, title="A"),
        "b": made([0, 1, 5, 5], labels=labels, title="B"),
        "c": made([0, 9, 6, 5], labels=labels, title="C"),
    }
    shown = found(tmp_path, variants)
    assert [image.position for image in shown.images] == [2, 1, 3]
    assert (shown.disputed, shown.total, shown.variants) == (3, 4, 3)
    _, second, third = shown.images
    assert [(a.title, a.right, a.names) for a in second.votes] == [
        ("class 1", True, "A and B"),
        ("class 9", False, "C"),
    ]
    assert [(a.title, a.right, a.names) for a in third.votes] == [
        ("class 5", False, "B and C"),
        ("class 3", True, "A"),
    ]


def test_of_equal_disagreement_the_one_that_seeds_dispute_more_comes_first(tmp_path):
    labels = [0, 0]
    variants = {"a": made([0, 0], [0, 0], [0, 3], labels=labels), "b": made([1, 1], [1, 1], [1, 2], labels=labels)}
    assert [image.position for image in found(tmp_path, variants).images] == [1, 0]


def test_many_names_are_counted(tmp_path):
    variants = {f"v{n}": made([n == 9], labels=[0], title=f"V{n}") for n in range(10)}
    [image] = found(tmp_path, variants).images
    assert image.votes[0].names == "V0, V1, V2 and 6 others"


def test_without_two_variants_that_name_classes_there_is_nothing_to_show(tmp_path):
    assert found(tmp_path / "one", {"a": made([0], labels=[0]), "b": MadeVariant(test={})}) is None
    boxes = {key: MadeVariant(test={0: {"map_50": 0.5}}, task="detection", monitor="val/map_50") for key in "ab"}
    assert found(tmp_path / "boxes", boxes) is None


def test_the_pictures_are_those_of_the_prepared_test_split(tmp_path, prepared_digits):
    split = PreparedData.open(prepared_digits).split("test")
    labels = split.labels.tolist()
    wrong = [(label + 1) % 10 if n == 17 else label for n, label in enumerate(labels)]
    variants = {
        "a": made(labels, labels=labels, prepared=prepared_digits),
        "b": made(wrong, labels=labels, prepared=prepared_digits),
    }
    [image] = found(tmp_path, variants).images
    assert (image.position, image.title, image.image.width, image.image.height) == (17, str(labels[17]), SIDE, SIDE)
    picture = Image.open(io.BytesIO(base64.b64decode(image.image.uri.partition(",")[2]))).convert("L")
    middles = np.asarray(picture, dtype=int)[SIDE // 16 :: SIDE // 8, SIDE // 16 :: SIDE // 8]
    assert np.abs(middles - split.images[17, 0]).max() < 30


@pytest.mark.parametrize("prepared", [False, True])
def test_without_those_images_the_section_stands_and_says_so(tmp_path, prepared_digits, prepared):
    folder = prepared_digits if prepared else tmp_path / "nowhere"
    variants = {key: made([n], labels=[5], prepared=folder) for n, key in enumerate("ab")}
    write_report(*make_study(tmp_path, variants), tmp_path / "report")
    page = " ".join((tmp_path / "report" / "index.html").read_text().split())
    remedy = "Without the prepared data there are no pictures here; `python -m convatlas.prepare data=digits`"
    other = "The data prepared for digits are not those of these runs."
    assert (other if prepared else remedy) in page
    assert "<strong>class 5</strong>" in page
    assert 'alt="Test image' not in page


def test_variants_that_agree_are_told_so(tmp_path):
    variants = {key: made([0, 1], labels=[0, 1]) for key in "ab"}
    write_report(*make_study(tmp_path, variants), tmp_path / "report")
    assert (
        "All 2 variants predict the same class for each of the 2 test images"
        in (tmp_path / "report" / "index.html").read_text()
    )
