from made_runs import ENVIRONMENT, MadeVariant, accuracies, make_study

from convatlas.reporting.origin import cautions, origin, sampling_note
from convatlas.reporting.reading import read_study


def test_a_clean_study_needs_no_caution(tmp_path):
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9, 0.8, 0.7))}))
    assert cautions(study) == []


def test_unfinished_runs_are_named(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.9), title="LeNet"), "b": MadeVariant(test={}, title="VGG")}
    found = cautions(read_study(*make_study(tmp_path, made)))
    assert found == ["5 of 6 runs have no result: LeNet (seed 1 and 2) and VGG (seed 0, 1 and 2)."]


def test_mixed_data_machines_and_unclean_code_are_named(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.9, 0.9, 0.9)),
        "b": MadeVariant(
            test=accuracies(0.9, 0.9, 0.9),
            fingerprint="sha256:bb",
            environment=ENVIRONMENT | {"dirty": True, "packages": {"torch": "2.9.0"}},
        ),
    }
    assert cautions(read_study(*make_study(tmp_path, made))) == [
        "3 runs used code with changes that are in no commit.",
        "The runs on digits saw 2 versions of it: do not compare their figures.",
        (
            "The runs on digits come from different machines, numbers of threads or versions of PyTorch: "
            "do not compare their times."
        ),
    ]


def test_kinds_of_processor_are_cautioned_against(tmp_path):
    kinds = [
        ENVIRONMENT | {"processor": "Xeon", "instructions": "AVX512"},
        ENVIRONMENT | {"processor": "EPYC", "instructions": "AVX2"},
        ENVIRONMENT,  # an older run, which does not say
    ]
    made = {
        str(number): MadeVariant(test=accuracies(0.9, 0.9, 0.9), environment=environment)
        for number, environment in enumerate(kinds)
    }
    found = cautions(read_study(*make_study(tmp_path, made)))
    assert (
        "The runs come from 2 kinds of hardware (Xeon, AVX512 and EPYC, AVX2): one seed has other bits on each, and "
        "small differences of scores may come from that."
    ) in found
    one = {"a": MadeVariant(test=accuracies(0.9, 0.9, 0.9), environment=kinds[0])}
    assert cautions(read_study(*make_study(tmp_path / "one", one))) == []


def test_single_seeds_are_cautioned_against(tmp_path):
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))}, seeds=[0]))
    assert cautions(study) == [
        "Every variant was trained once: its spread is not known, and small differences mean nothing."
    ]


def test_origin_counts_commits_and_merges_environments(tmp_path):
    other = ENVIRONMENT | {"commit": "beef", "dirty": True, "threads": 4}
    made = {"a": MadeVariant(test=accuracies(0.9)), "b": MadeVariant(test=accuracies(0.9, 0.9), environment=other)}
    found = origin(read_study(*make_study(tmp_path, made)))
    assert found.commits == ((ENVIRONMENT["commit"], 1), ("beef with changes", 2))
    assert found.fingerprints == (("digits", ("sha256:aa",)),)
    assert dict(found.environment) == {
        "python": "3.11.9",
        "platform": "Linux-x86_64",
        "processor_cores": "2",
        "threads": "2, 4",
    }
    assert found.packages == (("torch", "2.8.0"), ("timm", "1.0.20"))


def test_the_test_split_says_how_coarse_it_is(tmp_path):
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9), test_images=400)}))
    # one image of 400 is 0.25 points; sqrt(0.9 * 0.1 / 400) = 0.015
    note = sampling_note(study.groups[0])
    assert "400 images: one of them is 0.25 points" in note
    assert "by about 1.5 points (one standard error)" in note
