"""The plan of many trainings: concepts from folders and CSV files, keys that hold all that counts, mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_judge import picture
from tiny_many import write_many

from neti.training.jobs.many import ManyTrainings
from neti.training.jobs.many_config import ManyConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

NAMES = ["bear", "cube"]


@pytest.fixture
def plan(tmp_path: Path, tiny_backbone_folder: Path) -> Path:
    return write_many(tmp_path, tiny_backbone_folder, NAMES)


def trainings(plan: Path, *arguments: str) -> ManyTrainings:
    return ManyTrainings(parse_config(ManyConfig, ["--config_path", str(plan), *arguments]))


def table(plan: Path, text: str) -> str:
    path = plan.parent / "list.csv"
    path.write_text(text)
    return str(path)


def test_concepts_of_a_folder(plan: Path) -> None:
    jobs = trainings(plan, "--super_category", "toy").jobs
    assert [job.name for job in jobs] == NAMES
    data = jobs[1].task.config.data
    assert (data.placeholder_token, data.super_category_token) == ("<cube>", "toy")
    assert data.train_data_dir == plan.parent / "photos" / "cube"
    assert jobs[0].task.config.data.super_category_token == "toy"
    assert trainings(plan).jobs[0].task.config.data.super_category_token == "teddy", "that of train_config"


def test_concepts_of_a_csv_file(plan: Path) -> None:
    rows = (
        "name,folder,super_category,placeholder,optim.max_train_steps\none,photos/bear,cat,<x>,7\ntwo,photos/cube,,,\n"
    )
    one, two = trainings(plan, "--concepts", table(plan, rows)).jobs
    assert (one.name, one.task.config.data.placeholder_token, one.work) == ("one", "<x>", ("steps", 7))
    assert one.task.config.data.super_category_token == "cat" and two.task.config.data.super_category_token == "teddy"
    assert (two.task.config.data.placeholder_token, two.work) == ("<two>", ("steps", 2))
    assert two.task.config.data.train_data_dir == plan.parent / "photos" / "cube", "beside the file"


def test_a_key_holds_what_the_concept_depends_on_and_nothing_else(plan: Path, tiny_backbone_folder: Path) -> None:
    def keys(*arguments: str) -> list[str]:
        return [job.key for job in trainings(plan, *arguments).jobs]

    plain = keys()
    assert keys("--output_dir", str(plan.parent / "other"), "--device", "auto", "--jobs.workers", "3") == plain
    assert not set(keys("--placeholder", "<my-{name}>")) & set(plain)
    picture(77).save(plan.parent / "photos" / "bear" / "new.png")
    changed = keys()
    assert changed[0] != plain[0] and changed[1] == plain[1]
    write_many(plan.parent, tiny_backbone_folder, NAMES, steps=3)
    assert not set(keys()) & set(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder\nphotos/bear\n", "must name the columns name and folder; no name"),
        ("name,folder\nbear,photos/bear\nbear,photos/cube\n", "line 3 'bear': the name is there twice"),
        ("name,folder\nbear/..,photos/bear\n", "line 2 'bear/..': a concept's name is letters, digits"),
        ("name,folder\nbear,\n", "line 2 'bear': has no folder"),
        ("name,folder\nbear,photos/nowhere\n", "nowhere does not exist"),
        ("name,folder\nbear,photos/bear,more\n", "line 2: has more values than the first line has columns"),
        ("name,folder,optim.speed\nbear,photos/bear,1\n", "bear: unknown key optim.speed"),
        ("name,folder,log.exp_dir\nbear,photos/bear,x\n", "bear: the column log.exp_dir is what the plan decides"),
        ("name,folder,placeholder\nbear,photos/bear,two words\n", "bear: data.placeholder_token"),
        ("name,folder\n", "holds no concept"),
    ],
)
def test_a_mistake_in_the_list_is_told_before_anything_is_done(plan: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        trainings(plan, "--concepts", table(plan, text))
    assert message in str(caught.value)
    assert not (plan.parent / "out").exists()


def test_the_mistakes_of_all_rows_are_told_together(plan: Path) -> None:
    rows = "name,folder\n" + "".join(f"c{k},photos/nowhere{k}\n" for k in range(30))
    with pytest.raises(UserError) as caught:
        trainings(plan, "--concepts", table(plan, rows))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 10 more"


def test_a_placeholder_for_all_is_refused(plan: Path) -> None:
    with pytest.raises(UserError, match=r"placeholder = '<toy>' has no \{name\}"):
        trainings(plan, "--placeholder", "<toy>")


def test_the_table_of_somebody_else_stays(plan: Path) -> None:
    (plan.parent / "out").mkdir()
    (plan.parent / "out" / "table.csv").write_text("mine")
    with pytest.raises(UserError, match="was not written by this script"):
        trainings(plan)
