"""The metrics on cases worked out by hand, their intervals, and how scores become rows."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from neti.training.evaluation.config import MetricsConfig
from neti.training.evaluation.report import Report, require_replaceable
from neti.training.evaluation.rows import Kind, Row, ScoredSet, metric_rows, unequal_sets
from neti.training.evaluation.scores import (
    DIVERSITY,
    IMAGE,
    TEXT,
    PlaceholderRule,
    compared_text,
    diversity,
    identity_scores,
    image_scores,
    text_scores,
)
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError
from neti.utils.statistics import Bootstrap

PROTOCOL = {
    "judge": "tiny",
    "judge_digest": "sha256:00",
    "pooling": "projected",
    "resizing": "pil",
    "placeholder": "removed",
    "dino": None,
}


def unit_rows(rows: int, width: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_case_worked_out_by_hand() -> None:
    training = np.array([[1.0, 0.0], [0.0, 1.0]])
    generated = np.array([[1.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(image_scores(generated, training), [0.5, 0.7])  # (1+0)/2, (0.6+0.8)/2
    np.testing.assert_allclose(text_scores(generated, np.array([0.0, 1.0])), [0.0, 0.8])
    assert diversity(generated) == pytest.approx(0.4)  # 1 - 0.6
    assert diversity(generated[:1]) is None
    assert diversity(np.repeat(generated[1:], 3, axis=0)) == pytest.approx(0.0)


def test_image_similarity_is_the_mean_of_all_pairwise_cosines() -> None:
    generated, training = unit_rows(7, 16, 0), unit_rows(5, 16, 1)
    cosines = [float(g.astype(float) @ t.astype(float)) for g in generated for t in training]
    assert image_scores(generated, training).mean() == pytest.approx(sum(cosines) / 35, abs=1e-12)


def test_diversity_is_over_pairs_of_different_images() -> None:
    features = unit_rows(6, 16, 2).astype(float)
    pairs = [features[i] @ features[j] for i in range(6) for j in range(i)]
    assert diversity(features) == pytest.approx(1 - np.mean(pairs), abs=1e-7)


def test_the_placeholder_is_removed_or_replaced() -> None:
    prompt = "A photo of {} on a beach"
    assert compared_text(prompt, PlaceholderRule.removed, "toy") == "A photo of  on a beach"
    assert compared_text(prompt, PlaceholderRule.replaced, "toy") == "A photo of toy on a beach"


def test_the_nearest_concept_is_the_one_whose_photos_are_most_similar_on_average() -> None:
    generated = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    concepts = {"cat": np.array([[1.0, 0.0], [1.0, 0.0]]), "dog": np.array([[0.0, 1.0], [0.6, 0.8]])}
    np.testing.assert_array_equal(identity_scores(generated, "cat", concepts), [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(identity_scores(generated, "dog", concepts), [0.0, 1.0, 1.0])


def scored(
    method: str, concept: str, truncation: int | None, prompts: tuple[str, ...], level: float = 0.5
) -> ScoredSet:
    scores = {IMAGE: np.array([level, level]), TEXT: np.array([0.2, 0.3]), DIVERSITY: np.array([0.1])}
    by_prompt = {prompt: (2, scores) for prompt in prompts}
    return ScoredSet(Kind.run, method, concept, truncation, 2 * len(prompts), scores, by_prompt)


def test_rows_over_concepts_need_all_concepts_of_the_method() -> None:
    sets = [scored("A", "cat", None, ("p",), 0.4), scored("A", "dog", None, ("p",), 0.6), scored("A", "cat", 8, ("p",))]
    rows = metric_rows([*sets, scored("B", "cat", None, ("p",))], Bootstrap())
    (over,) = [row for row in rows if row.concept is None]
    assert (over.method, over.truncation, over.concepts, over.images) == ("A", None, 2, 4)
    assert over.estimates[IMAGE].mean == pytest.approx(0.5)
    assert sum(row.prompt == "p" for row in rows) == 4
    (note,) = unequal_sets(sets)
    assert note.startswith("A, cat, 8 units: no images of dog")


def test_different_prompts_are_noted() -> None:
    (note,) = unequal_sets([scored("A", "cat", None, ("p", "q")), scored("B", "cat", None, ("p",))])
    assert note.startswith("B, cat, all units: no image of 'q'")
    assert not unequal_sets([scored("A", "cat", None, ("p",)), scored("B", "dog", None, ("q",))])


def report(sets: list[ScoredSet]) -> Report:
    return Report(PROTOCOL, {}, metric_rows(sets, Bootstrap()), [])


def test_the_table_is_aligned_and_leaves_prompts_to_those_who_ask() -> None:
    shown = report([scored("A long name", "cat", None, ("p", "q")), scored("B", "cat", 16, ("p", "q"))])
    lines = shown.table().splitlines()
    assert len(lines) == 4
    place = lines[0].index("image similarity") + len("image similarity")
    assert lines[2][:place].endswith("0.500 [0.500, 0.500]") and lines[3][:place].endswith("0.500 [0.500, 0.500]")
    assert len(shown.table(prompts=True).splitlines()) == 2 + 2 + 4


def test_every_file_tells_the_protocol(tmp_path: Path) -> None:
    shown = report([scored("A", "cat", 16, ("p, with a comma",))])
    shown.write_csv(tmp_path / "m.csv")
    shown.write_json(tmp_path / "m.json")
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        total, line = list(csv.DictReader(file))
    assert (total["prompt"], line["prompt"], line["truncation"]) == ("", "p, with a comma", "16")
    assert float(line["text_similarity"]) == 0.25 and line["diversity_low"] == "" and line["dino_similarity"] == ""
    assert {key: line[key] for key in ("judge", "placeholder")} == {"judge": "tiny", "placeholder": "removed"}
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["protocol"] == PROTOCOL
    assert record["rows"][1]["image_similarity"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_the_headline_is_over_concepts_where_there_are_several() -> None:
    shown = report([scored("A", "cat", None, ("p",)), scored("A", "dog", None, ("p",)), scored("B", "cat", 8, ("p",))])

    def place(row: Row) -> tuple[str, str | None, int | None]:
        return row.method, row.concept, row.truncation

    assert [place(row) for row in shown.headline] == [("B", "cat", 8), ("A", None, None)]


ENOUGH = ["--concepts", "toy | toy | data/toy", "--runs", "NeTI | toy | out"]


def test_entries_are_columns() -> None:
    config = parse_config(MetricsConfig, [*ENOUGH, "--prompt_only", "toy|plain"])
    assert config.concept_sources == [("toy", "toy", Path("data/toy"))]
    assert config.run_sources == [("NeTI", "toy", Path("out"))]
    assert config.prompt_only_sources == [("prompt only", "toy", Path("plain"))]


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(MetricsConfig, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.name} " in shown for field in dataclasses.fields(MetricsConfig))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (ENOUGH[:2], "no runs given; write runs: "),
        (ENOUGH[2:], "no concepts given; write concepts: "),
        ([*ENOUGH, "--runs", "NeTI | out"], "runs: 'NeTI | out' must read \"method | concept | folder"),
        ([*ENOUGH, "--runs", "NeTI |  | out"], "runs: 'NeTI |  | out' must read"),
        ([*ENOUGH, "--runs", "NeTI | cat | out"], "runs: 'cat' (out) is not among concepts: toy"),
        ([*ENOUGH, "--runs", "prompt only | toy | out"], "runs: 'prompt only' is the name of an upper bound"),
        ([*ENOUGH, "--prompt_only", "cat | out"], "prompt_only: 'cat' (out) is not among concepts: toy"),
        ([*ENOUGH, "--references", "cat | out"], "references: 'cat' (out) is not among concepts: toy"),
        ([*ENOUGH, "--references", '["toy | a", "toy | b"]'], "references: 'toy' is there twice"),
        ([*ENOUGH, "--masks", "cat | out"], "masks: 'cat' (out) is not among concepts: toy"),
        ([*ENOUGH, "--references", "toy"], "references: 'toy' must read \"concept | folder"),
        ([*ENOUGH, "--concepts", '["toy | toy | a", "toy | toy | b"]'], "concepts: 'toy' is there twice"),
        ([*ENOUGH, "--placeholder", "kept"], "placeholder = 'kept' (command line): must be one of: removed, replaced"),
        ([*ENOUGH, "--resizing", "torch"], "resizing = 'torch' (command line): must be one of: pil, tensor"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(MetricsConfig, argv)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(expected)


def test_results_that_could_not_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_replaceable(tmp_path / "new" / "deep")
    with pytest.raises(UserError, match=r"cannot write to output_dir .*file/x: Not a directory; choose another"):
        require_replaceable(tmp_path / "file" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is made"
