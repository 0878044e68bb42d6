"""What a method does not have is refused, not ignored."""

from __future__ import annotations

import dataclasses

import pytest
from run_configs import REQUIRED, problem

from neti.training.config.options import MethodName, NormRule
from neti.training.config.run import METHOD_GROUPS, ModelConfig, PESigmas, RunConfig
from neti.utils.config.parsing import parse_config


def test_a_wrong_method_is_told_by_the_parser() -> None:
    message = "must be one of: neti, textual_inversion, xti, perfusion"
    assert problem("--model.method", "TI") == f"model.method = 'TI' (command line): {message}"


@pytest.mark.parametrize("method", [name for name in MethodName if name != "neti"])
def test_settings_of_neti_are_not_ignored_by_other_methods(method: MethodName) -> None:
    argv = [*REQUIRED, "--model.method", method.value]
    assert parse_config(RunConfig, [*argv, "--model.revision", "main"]).model.method is method
    assert parse_config(RunConfig, [*argv, "--model.use_time", "true"]).model.use_time, "a default changes nothing"
    changes = {
        "use_nested_dropout": False,
        "nested_dropout_prob": 0.25,
        "normalize_mapper_output": False,
        "target_norm": 0.5,
        "use_positional_encoding": False,
        "pe_sigmas": PESigmas(0.1, 2.0),
        "num_pe_frequencies": 64,
        "num_pe_time_anchors": 5,
        "output_bypass": False,
        "norm_rule": NormRule.base,
        "bypass_alpha": 0.1,
        "mapper_hidden_dim": 64,
        "use_time": False,
        "use_layer": False,
    }
    common = {"pretrained_model_name_or_path", "revision", "mapper_checkpoint_path", "method", *METHOD_GROUPS}
    common |= {"num_vectors", "key_lock", "start_from", "encoder"}  # of some of the others too
    assert changes.keys() | common == {field.name for field in dataclasses.fields(ModelConfig)}, "none is forgotten"
    for key, value in changes.items():
        (line,) = ModelConfig(method=method, **{key: value}).problems()  # type: ignore[arg-type]
        assert f"model.method = {method} has no model.{key};" in line
    both = problem("--model.method", method.value, "--model.norm_rule", "base", "--model.output_bypass", "no")
    assert "model.output_bypass, model.norm_rule" in both


@pytest.mark.parametrize("method", list(MethodName))
def test_several_vectors_are_for_the_methods_that_have_them(method: MethodName) -> None:
    lines = ModelConfig(method=method, num_vectors=4).problems()
    if method in ("textual_inversion", "xti"):
        assert not lines
        from neti.training.coach.plan import method_config

        assert method_config(ModelConfig(method=method, num_vectors=4)).num_vectors == 4
    else:
        assert lines == [
            f"model.method = {method} has no model.num_vectors; leave it out, or write model.method: textual_inversion "
            "or xti"
        ]


def test_a_concept_must_depend_on_something() -> None:
    assert "both false" in problem("--model.use_time", "false", "--model.use_layer", "false")


@pytest.mark.parametrize("method", [name for name in MethodName if name != "perfusion"])
def test_settings_of_perfusion_are_not_ignored_by_other_methods(method: MethodName) -> None:
    line = problem("--model.method", method.value, "--model.perfusion.beta", "0.5")
    assert f"model.method = {method} has no model.perfusion; leave out what belongs to perfusion" in line
