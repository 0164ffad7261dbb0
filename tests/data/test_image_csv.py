"""Pictures whose classes stand in a table."""

from __future__ import annotations

import pytest
from picture_files import encoded, photograph
from raw_files import tree

from convatlas.core.errors import UserError
from convatlas.data.sources.image_csv import load


def write(root, text: str, names=("a", "b", "c"), folder: str = "images"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (root / folder / f"{name}.png").write_bytes(encoded(photograph(number)))
    (root / "labels.csv").write_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,dog\nb.png,cat\nc.png,dog\n",
        "label;image_id\ndog;a\ncat;b\ndog;c\n",
        "picture,cat,dog\na.png,0,1\nb.png,1,0\nc,0.0,1.0\n",
        "\ufeffid\tcat\tdog\na\t\t1\nb\t1\t\nc\t\t1\n",
    ],
)
def test_classes_in_one_column_or_one_hot(tmp_path, text):
    write(tmp_path, text)
    before = tree(tmp_path)
    raw = load(tmp_path)
    assert (raw.classes, raw.labels.tolist()) == (["cat", "dog"], [1, 0, 1])
    assert [path.name for path in raw.images.paths] == ["a.png", "b.png", "c.png"]
    assert (raw.official_split, raw.left_out) == (None, [])
    assert tree(tmp_path) == before


def test_a_column_of_splits_and_columns_by_name(tmp_path):
    write(tmp_path, "n,picture,label,part\n1,a.png,x,Train\n2,b.png,y,valid\n3,c.png,x,TEST\n", folder=".")
    raw = load(tmp_path, split_column="part", file_column="picture")
    assert raw.official_split.tolist() == ["train", "train", "test"]
    assert raw.classes == ["x", "y"]


def test_rows_and_pictures_that_cannot_be_used_are_listed(tmp_path):
    rows = "file,label\na.png,x\na.png,y\n../b.png,x\ngone.png,x\nc.png,\n,x\n"
    write(tmp_path, rows)
    assert load(tmp_path).left_out == [
        ("a.png", "the table names it twice"),
        ("../b.png", "its name leads out of the folder"),
        ("gone.png", "there is no such picture (.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)"),
        ("c.png", "it has no class"),
        ("labels.csv, line 7", "it names no picture"),
        ("images/b.png", "labels.csv does not name it"),
        ("images/c.png", "labels.csv does not name it"),
    ]


def test_a_row_with_two_classes_is_left_out(tmp_path):
    write(tmp_path, "file,x,y\na.png,1,1\nb.png,0,1\nc.png,2,0\n")
    raw = load(tmp_path)
    assert raw.labels.tolist() == [1]
    assert [name for name, reason in raw.left_out if "not 1 in one column" in reason] == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("file,label\n", {}, r"no row of .*labels\.csv can be used"),
        ("file\na.png\n", {}, r"labels\.csv: its first line must name two columns"),
        ("file,file\na.png,x\n", {}, r"its first line must name two columns or more, each once"),
        ("file,a\na.png,x\n", {}, r"no column has the classes; set data\.source\.label_column"),
        ("file,label\na.png,x\n", {"label_column": "lable"}, r"label_column=lable: .* it has file, label"),
        ("file,label\na.png,x\n", {"images": "pictures"}, r"data\.source\.images=pictures: there is no folder"),
        ("file,label\na.png,x\n", {"file": "table.csv"}, r"table\.csv"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, text, options, sentence):
    write(tmp_path, text)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, **options)
