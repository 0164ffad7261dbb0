"""The pictures of mistakes, and of what tells two variants apart, are of the right images."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_runs import MadeVariant, accuracies, make_study

from convatlas.data.prepared import PreparedData
from convatlas.reporting.mistakes import apart, mistakes
from convatlas.reporting.reading import read_study


def test_the_surest_mistake_comes_first_and_what_one_net_alone_gets_right(tmp_path, prepared_digits):
    split = PreparedData.open(prepared_digits).split("test")
    labels = split.labels.tolist()

    def answers(*wrong):
        return {0: [(label + 1) % 10 if place in wrong else label for place, label in enumerate(labels)]}

    made = {
        "first": MadeVariant(test=accuracies(0.8), answers=answers(3, 5, 8), labels=labels, prepared=prepared_digits),
        "best": MadeVariant(test=accuracies(0.9), answers=answers(8, 9), labels=labels, prepared=prepared_digits),
    }
    study_file, runs = make_study(tmp_path, made, seeds=[0])
    for name in made:  # a probability of each prediction, as runs keep it
        file = runs / "overview" / name / "seed=0" / "predictions.parquet"
        table = pq.read_table(file)
        sure = np.linspace(0.2, 0.9, len(labels))
        pq.write_table(table.append_column("confidence", pa.array(sure)), file)
    group = read_study(study_file, runs).groups[0]
    first, _ = mistakes(group)
    assert first.words == f"3 of {len(labels)} images wrong, seed 0"
    assert [line.partition(",")[0] for _, line in first.pictures] == [
        f"{labels[place]} → {(labels[place] + 1) % 10}" for place in (8, 5, 3)
    ]
    alone, other = apart(group)
    assert (alone.variant.key, alone.words) == ("best", "2 images that it gets right and first does not")
    assert [line for _, line in alone.pictures] == [f"{labels[n]}, not {(labels[n] + 1) % 10}" for n in (3, 5)]
    assert [image.title.partition(":")[0] for image, _ in other.pictures] == ["Test image 9"]
