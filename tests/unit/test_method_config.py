"""Every setting of a concept's method reaches the method."""

from __future__ import annotations

from dataclasses import asdict

from neti.models.methods import NeTIConfig
from neti.training.coach.plan import method_config
from neti.training.config.options import NormRule
from neti.training.config.run import ModelConfig, PESigmas

CHANGED = ModelConfig(
    use_nested_dropout=False,
    nested_dropout_prob=0.25,
    normalize_mapper_output=False,
    target_norm=0.7,
    use_positional_encoding=False,
    pe_sigmas=PESigmas(0.1, 3.0),
    num_pe_frequencies=64,
    num_pe_time_anchors=5,
    output_bypass=False,
    bypass_alpha=0.1,
    mapper_hidden_dim=64,
    norm_rule=NormRule.base,
    use_time=False,
    key_lock=True,
)


def test_defaults_are_the_methods_own() -> None:
    assert method_config(ModelConfig()) == NeTIConfig()


def test_every_changed_setting_arrives() -> None:
    plain, changed = asdict(NeTIConfig()), asdict(method_config(CHANGED))
    same = {name for name in plain if plain[name] == changed[name]}
    assert same == {"use_layer", "target_norm_2"}, "both axes off is an error; a second encoder has its own norm"
    assert not method_config(ModelConfig(use_layer=False)).use_layer
    assert (changed["sigma_t"], changed["sigma_l"], changed["bypass_alpha"]) == (0.1, 3.0, 0.1)
