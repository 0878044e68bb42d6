"""Plans: what the files in input_configs ask for, mistakes in a plan, the jobs, their names and their hashes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_plan import read_plan, write_plan

from neti.models.conditioning.prompts import PAPER_PROMPTS
from neti.training.config.run import RunConfig
from neti.training.jobs.job import matching
from neti.training.studies.reproduction.check import check_plan, describe_plan
from neti.training.studies.reproduction.config import ReproductionConfig
from neti.training.studies.reproduction.page.sizes import sd14_bytes
from neti.training.studies.reproduction.plan import (
    Choice,
    Contents,
    Drawing,
    Plan,
    Task,
    Training,
    learned_from,
    with_needed,
    work_of,
)
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CHOSEN = {"neti": Choice(1e-2, 1), "xti": Choice(1e-2, 2)}


@pytest.fixture
def folder(tmp_path: Path, tiny_backbone_folder: Path) -> Path:
    write_plan(tmp_path, tiny_backbone_folder)
    return tmp_path


@pytest.fixture
def plan(folder: Path) -> ReproductionConfig:
    return read_plan(folder / "plan.yaml")


def trainings(tasks: list[Task]) -> list[Training]:
    return [task for task in tasks if isinstance(task, Training)]


def drawings(tasks: list[Task]) -> list[Drawing]:
    return [task for task in tasks if isinstance(task, Drawing)]


def contents(config: ReproductionConfig) -> Contents:
    folders = {folder for task in trainings(Plan(config).main(CHOSEN)) for folder in learned_from(task)}
    return Contents("model", "metric model", {folder: f"pictures of {folder.name}" for folder in folders})


@pytest.mark.parametrize("name", ["miniature", "sd14"])
def test_the_plans_of_this_project(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = read_plan(Path(f"input_configs/reproduction_{name}.yaml"))
    assert set(config.prompts) <= set(PAPER_PROMPTS)
    tasks = [*Plan(config).search(), *Plan(config).main(Plan(config).longest())]
    for training in trainings(tasks):
        assert training.config.optim.learning_rate == training.rate
    models = {task.method: task.config.model for task in trainings(tasks)}
    base = models["neti"]
    variants = {
        "textual_inversion": {"method": "textual_inversion"},
        "xti": {"method": "xti"},
        "no_bypass": {"output_bypass": False},
        "no_nested_dropout": {"use_nested_dropout": False},
        "no_positional_encoding": {"use_positional_encoding": False},
        "time_only": {"use_layer": False},
        "space_only": {"use_time": False},
        "norm_base": {"norm_rule": "base"},
        "compact": {"mapper_hidden_dim": 24, "num_pe_frequencies": 64, "num_pe_time_anchors": 3},
        "narrow": {"mapper_hidden_dim": 24},
        "few_frequencies": {"num_pe_frequencies": 64},
    }
    for method in models.keys() & variants:
        assert models[method] == replace(base, **variants[method]), method  # type: ignore[arg-type]
    assert {"neti", "xti", "textual_inversion", "no_bypass", "no_nested_dropout"} <= models.keys()
    if name == "miniature":
        check_plan(config)


def test_the_compact_preset_keeps_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is that of a real file with all it holds, written for text width 768 and 16 layers."""
    monkeypatch.chdir(ROOT)
    recipe = ["--config_path", "input_configs/train.yaml"]
    compact = parse_config(RunConfig, [*recipe, "--config_path", "input_configs/presets/compact.yaml"])
    assert 90_000 < sd14_bytes(compact) <= 100_000
    whole = sd14_bytes(parse_config(RunConfig, recipe))
    assert whole == pytest.approx(2 * (563_616 + 2 * 1024 * 2), rel=0.01), "1024 x 2 frequencies stay in float32"


def test_the_search_tries_every_pair_on_every_tuning_concept(plan: ReproductionConfig) -> None:
    tasks = Plan(plan).search()
    assert [(t.method, t.rate, t.checkpoints[-1]) for t in trainings(tasks)] == [
        ("neti", 1e-2, 2),
        ("xti", 1e-2, 2),
        ("xti", 1e30, 2),
    ]
    assert [d.step for d in drawings(tasks)] == [0, 1, 2, 2, 2], "the word, then every number of steps"
    assert {d.images.name for d in drawings(tasks)} == {"short"}
    assert [sum(amount for kind, amount in map(work_of, tasks) if kind == k) for k in ("steps", "images")] == [6, 5]


def test_the_main_part_has_what_the_claims_need(plan: ReproductionConfig) -> None:
    tasks = Plan(replace(plan, train_seeds=(0, 1))).main(CHOSEN)
    assert len(tasks) == len({task.name for task in tasks}) == len(set(tasks))
    assert [(task.method, task.concept.name) for task in trainings(tasks)][:3] == [
        ("neti", "bear"),
        ("neti", "cube"),
        ("xti", "bear"),
    ], "method by method"
    of_bear = [task.name for task in tasks if task.concept.name == "bear" and "seed1" not in task.name]
    neti, xti = "main.neti.bear.seed0.rate0.01", "main.xti.bear.seed0.rate0.01"
    assert of_bear == [
        "word.bear.full",
        f"{neti}.train",
        f"{neti}.step1.full",
        f"{neti}.step1.short",
        f"{neti}.step2.short",
        f"{neti}.step1.truncation4.full",
        f"{neti}.step1.bypass_off.full",
        f"{xti}.train",
        f"{xti}.step2.full",
        f"{xti}.step2.short",
    ]
    assert {t.seed for t in trainings(tasks)} == {0, 1}
    assert {t.config.optim.seed for t in trainings(tasks) if t.seed == 1} == {1}
    assert {task.name for task in Plan(plan).main(CHOSEN)} <= Plan(plan).possible_names()


def test_a_method_without_a_curve_trains_for_its_chosen_steps_alone(folder: Path, tiny_backbone_folder: Path) -> None:
    path = write_plan(folder, tiny_backbone_folder, methods=["no_bypass | 1e-2 | 1 2 4 | --model.output_bypass false"])
    plan = Plan(read_plan(path))
    [first, *_] = trainings(plan.main({"no_bypass": Choice(1e-2, 2)}))
    assert first.checkpoints == (2,) and not first.config.model.output_bypass
    assert plan.longest() == {"no_bypass": Choice(1e-2, 4)}


def test_a_method_is_drawn_otherwise(folder: Path, tiny_backbone_folder: Path) -> None:
    path = write_plan(folder, tiny_backbone_folder, drawn=["locked | neti | key_lock=true truncation=4 step=2"])
    config = read_plan(path)
    check_plan(config)
    plan = Plan(config, contents(config))
    found = [task for task in drawings(plan.main(CHOSEN)) if task.variant]
    assert [task.settings for task in found] == [(("key_lock", True),)] * 2 and found[0].truncation == 4
    assert found[0].name == "main.neti.bear.seed0.rate0.01.step2.locked.truncation4.full"
    plain = replace(found[0], settings=(), variant="")
    assert plan.images_key(found[0]) != plan.images_key(plain)


def test_a_method_may_learn_from_other_photos_and_from_masks(folder: Path, tiny_backbone_folder: Path) -> None:
    arguments = f"--data.train_data_dir {folder}/other/{{concept}} --data.masks folder --data.masks_dir {folder}/x"
    path = write_plan(folder, tiny_backbone_folder, methods=[f"xti | 1e-2 | 2 | --model.method xti {arguments}"])
    config = read_plan(path)
    [first, *_] = trainings(Plan(config).main(CHOSEN))
    assert learned_from(first) == [folder / "other" / "bear", folder / "x"]
    with pytest.raises(UserError, match="other/ball does not exist"):
        check_plan(config)


def test_without_tuning_concepts_nothing_is_chosen(folder: Path, tiny_backbone_folder: Path) -> None:
    plan = Plan(read_plan(write_plan(folder, tiny_backbone_folder, tuning_concepts=[], methods=["xti | 1e-2 | 1 2"])))
    assert plan.search() == [] and plan.longest() == {"xti": Choice(1e-2, 2)}


def test_a_key_holds_everything_a_result_depends_on_and_nothing_else(folder: Path, tiny_backbone_folder: Path) -> None:
    def keys(known: Contents | None = None, **changes: object) -> list[str]:
        config = read_plan(write_plan(folder, tiny_backbone_folder, **changes))
        plan = Plan(config, known or contents(config))
        tasks = plan.main(CHOSEN)
        training, drawing = trainings(tasks)[0], drawings(tasks)[2]  # behind both words
        return [plan.key(training), plan.images_key(drawing), plan.key(drawing)]

    plain = keys()
    assert keys() == plain
    elsewhere = {"work_dir": str(folder / "other"), "page": "x.md", "batch_size": 2, "device": "auto"}
    assert keys(**elsewhere, bootstrap_samples=500, train_seeds=[0, 1], jobs={"workers": 5}) == plain
    measured = keys(placeholder="replaced")
    assert measured[:2] == plain[:2] and measured[2] != plain[2], "measured anew, not drawn"
    here = contents(read_plan(folder / "plan.yaml"))
    for other in (replace(here, metric_model="other"), replace(here, compared="other references")):
        assert keys(other)[:2] == plain[:2] and keys(other)[2] != plain[2]
    more = keys(seeds=[0, 1])
    assert more[:2] == plain[:2] and more[2] != plain[2], "the images that are there are kept"
    drawn = keys(num_denoising_steps=3)
    assert drawn[0] == plain[0] and drawn[1] != plain[1] and drawn[2] != plain[2]
    trained = keys(methods=["neti | 1e-2 | 1 2 | --model.bypass_alpha 0.1", "xti | 1e-2 | 2 | --model.method xti"])
    assert not set(trained) & set(plain)
    assert not set(keys(replace(here, folders=dict.fromkeys(here.folders, "other photos")))) & set(plain)
    assert not set(keys(replace(here, model="other"))) & set(plain)


def test_jobs_are_found_by_name_and_come_with_what_they_need(plan: ReproductionConfig) -> None:
    with_keys = Plan(plan, contents(plan))
    jobs = with_keys.jobs(with_keys.main(CHOSEN))
    [drawing] = matching(jobs, "*.bear.*.truncation4.*")
    assert [job.name for job in with_needed([drawing], jobs)] == ["main.neti.bear.seed0.rate0.01.train", drawing.name]
    assert matching(jobs, "*.nobody.*") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": ["bear | teddy"]}, "concepts: 'bear | teddy' must read \"name | super-category word | folder"),
        ({"methods": ["neti | | 1"]}, "methods: 'neti | | 1' must read \"name | learning rates | steps |"),
        ({"methods": ["neti | fast | 1"]}, "a learning rate or a number of steps that is no number"),
        ({"methods": ["neti | 0 | 1"]}, "must have learning rates and steps above 0"),
        ({"methods": ["neti | 1e-3 | 2 1"]}, "must have rising steps"),
        ({"methods": ["Ne/Ti | 1e-3 | 2"]}, "small letters, digits and _, not 'Ne/Ti'"),
        ({"methods": ["neti | 1e-3 | 2", "neti | 1e-2 | 2"]}, "methods and drawn: 'neti' is there twice"),
        (
            {"methods": ["neti | 1e-3 | 2 | --optim.learning_rate=1"]},
            "sets optim.learning_rate, which the plan decides",
        ),
        ({"methods": ["neti | 1e-3 | 2 | --optim.learning-rate 1"]}, "sets optim.learning_rate, which the plan"),
        ({"methods": ["neti | 1e-3 | 2 | --resume latest"]}, "sets resume, which the plan decides"),
        ({"methods": ["neti | 1e-3 | 2 | --help"]}, "asks for --help"),
        ({"only": "nobody*"}, "only = 'nobody*' matches no job; a job's name is such as main.neti.bear."),
        ({"redo": "nobody*"}, "redo = 'nobody*' matches no job"),
        ({"seeds": [0, 0]}, "seeds: 0 is there twice"),
        ({"references": ["nobody | ."]}, "references: 'nobody' is not among the concepts"),
        ({"references": ["bear | ./nowhere"]}, "nowhere does not exist; check references"),
        ({"tuning_concepts": []}, "methods: xti has several learning rates; tuning_concepts, to choose on, is empty"),
        ({"drawn": ["x | neti"]}, "drawn: 'x | neti' must read \"name | method | settings"),
        ({"drawn": ["x | neti | lock"]}, "has 'lock', which must read key=value"),
        ({"drawn": ["xti | neti | key_lock=true"]}, "methods and drawn: 'xti' is there twice"),
        ({"drawn": ["x | nobody | key_lock=true"]}, "drawn: 'nobody' is not among the methods"),
        ({"drawn": ["x | neti | step=3"]}, "drawn: x: 3 is not among the steps of neti"),
        ({"drawn": ["x | neti | beta=1"]}, "drawn: x: beta is no setting of a concept of neti"),
        ({"tuning_concepts": ["bear | teddy | ."]}, "concepts and tuning_concepts: 'bear' is there twice"),
        ({"place_prompts": ["{} in snow"]}, "place_prompts: '{} in snow' is not among the prompts"),
        ({"prompts": ["a bear"]}, "prompts: 'a bear' has no {}"),
        ({"methods": ["neti | 1e-3 | 2 | --model.colour red"]}, "methods: neti: unknown key model.colour"),
        ({"truncations": [16]}, "truncations = [16]: neti has 16 units"),
        ({"scheduler": "magic"}, "scheduler 'magic': must be one of"),
        ({"concepts": ["bear | teddy | ./nowhere"]}, "the folder of pictures nowhere does not exist; check concepts"),
        (
            {"methods": ["neti | 1e-3 | 2", "xti | 1e-3 | 2 | --model.pretrained_model_name_or_path x"]},
            "they name several base models",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    folder: Path, tiny_backbone_folder: Path, changes: dict[str, object], message: str
) -> None:
    path = write_plan(folder, tiny_backbone_folder, **changes)
    with pytest.raises(UserError) as caught:
        check_plan(read_plan(path))
    assert message in str(caught.value)


def test_a_plan_says_what_it_will_not_test(plan: ReproductionConfig) -> None:
    description = describe_plan(plan, 1)
    assert "no method is called textual_inversion" in description and "no method is called neti" not in description
    assert "search         8 jobs: 3 trainings, 6 steps; 5 images" in description


def test_a_page_of_somebody_else_stays(folder: Path) -> None:
    plan = read_plan(folder / "plan.yaml")
    plan.page.parent.mkdir(parents=True)
    plan.page.write_text("mine")
    with pytest.raises(UserError, match="was not written by this script"):
        check_plan(plan)
