"""Perfusion's edit inside the attention layers: the equation, the gates, locks and modes."""

from __future__ import annotations

import pytest
import torch
from perfusion_concepts import (
    PROMPT,
    T0,
    attention,
    changed,
    denoise,
    encode,
    make_batch,
    make_perfusion,
    seeded,
    textual_inversion,
)

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.conditioning.conditioning import plain_condition
from neti.models.methods import Method
from neti.training.coach.objective import Objective


class TestTheEditInTheLayers:
    def test_every_layer_computes_equation_3(self, tiny_backbone: Backbone) -> None:
        """K and V of all 16 layers, against the definition in float64, with the inference gate."""
        method = changed(make_perfusion(tiny_backbone))
        conditioning = encode(tiny_backbone, {"{}": method})
        inverse = method.covariance.inverse.double()  # type: ignore[union-attr]
        key, energy = method.key.double(), method.key.double() @ inverse @ method.key.double()
        e = conditioning.keys[0].double()
        s = e @ inverse @ key / energy
        g = torch.sigmoid((s - 0.70) / 0.15)
        offset = 0
        projection = method.projection()
        for layer in tiny_backbone.frame.layers:
            module = attention(tiny_backbone, layer)
            with torch.no_grad():
                got = projection.project(module, layer, *(conditioning.keys[0],) * 2, conditioning.slots)
            for linear, targets, h in zip(
                (module.to_k, module.to_v), (method.key_targets, method.value_targets), got, strict=True
            ):
                target = targets.detach()[offset : offset + layer.width].double()
                expected = (e - s[..., None] * key) @ linear.weight.double().T + g[..., None] * target
                torch.testing.assert_close(h.double(), expected, atol=2e-6, rtol=0)
            offset += layer.width

    def test_training_uses_its_own_gate(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        assert (method.beta, method.tau) == (0.75, 0.10)
        assert (method.eval().beta, method.tau) == (0.70, 0.15)
        drawn = method.drawn_with(beta=0.5, tau=0.2)
        assert (drawn.beta, drawn.tau, method.beta) == (0.5, 0.2, 0.70)
        assert drawn.word is method.word and drawn.value_targets is method.value_targets

    def test_it_starts_as_the_super_category_word(self, tiny_backbone: Backbone) -> None:
        """Word and targets are the word's own, so that a layer's output is off by (g - s) W i* and nothing else."""
        method = make_perfusion(tiny_backbone).eval()
        assert torch.equal(method.word, tiny_backbone.word_embedding("teddy"))
        conditioning = encode(tiny_backbone, {"{}": method})
        plain = plain_condition(tiny_backbone.text, [PROMPT.replace("{}", "teddy")], tiny_backbone.frame)
        torch.testing.assert_close(conditioning.keys, plain.keys)
        edit = method.projection()._edit("value", torch.device("cpu"))
        s = edit.similarities(conditioning.keys[0])
        g = torch.sigmoid((s - method.beta) / method.tau)
        for layer in tiny_backbone.frame.layers[::5]:
            module = attention(tiny_backbone, layer)
            with torch.no_grad():
                k, v = method.projection().project(module, layer, *(conditioning.keys[0],) * 2, conditioning.slots)
                for h, linear in ((k, module.to_k), (v, module.to_v)):
                    change = h - linear(conditioning.keys[0])
                    torch.testing.assert_close(change, (g - s) * linear(method.key), atol=2e-6, rtol=0)

    def test_without_concepts_the_model_is_bit_for_bit_the_same(self, tiny_backbone: Backbone) -> None:
        before = denoise(tiny_backbone, {}, "a photo of a dog")
        with_concept = denoise(tiny_backbone, {"{}": changed(make_perfusion(tiny_backbone))})
        assert not torch.allclose(with_concept, before)
        assert torch.equal(denoise(tiny_backbone, {}, "a photo of a dog"), before)

    def test_what_is_kept_in_eval_mode_is_what_train_mode_computes(self, tiny_backbone: Backbone) -> None:
        method = changed(make_perfusion(tiny_backbone, beta=0.70, tau=0.15))
        drawn = denoise(tiny_backbone, {"{}": method})
        assert torch.equal(denoise(tiny_backbone, {"{}": method.train()}), drawn)
        projection = method.eval().projection()
        for _ in range(2):
            again = Denoiser(tiny_backbone, projection)
            with torch.no_grad():
                out = again(torch.randn(1, 4, 8, 8, generator=seeded(4)), T0, encode(tiny_backbone, {"{}": method}))
            assert torch.equal(out, drawn)
        assert len(projection._kept_rows) == 32, "once per layer, for keys and values"

    def test_a_projection_made_for_training_follows_the_key(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        layer = tiny_backbone.frame.layers[0]
        module, text = attention(tiny_backbone, layer), encode(tiny_backbone, {"{}": method})
        projection = method.projection()
        with torch.no_grad():
            first = projection.project(module, layer, text.keys[0], text.values[0], text.slots)[1]  # type: ignore[arg-type]
            method.key += 1
            second = projection.project(module, layer, text.keys[0], text.values[0], text.slots)[1]  # type: ignore[arg-type]
        assert not torch.equal(first, second)

    def test_plain_prompts_are_edited_unless_told_otherwise(self, tiny_backbone: Backbone) -> None:
        method = changed(make_perfusion(tiny_backbone))
        plain, layer = encode(tiny_backbone, {}, "a photo"), tiny_backbone.frame.layers[3]
        module, slots = attention(tiny_backbone, layer), torch.zeros(1, 77, dtype=torch.long)
        for edit_plain in (True, False):
            projection = method.drawn_with(edit_plain=edit_plain).projection()
            with torch.no_grad():
                value = projection.project(module, layer, plain.keys[0], plain.keys[0], slots)[1]
                assert torch.equal(value, module.to_v(plain.keys[0])) == (not edit_plain)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_stays_near(self, tiny_backbone: Backbone, dtype: torch.dtype) -> None:
        method = changed(make_perfusion(tiny_backbone))
        layer = tiny_backbone.frame.layers[6]
        text = encode(tiny_backbone, {"{}": method})
        with torch.no_grad():
            expected = method.projection().project(
                attention(tiny_backbone, layer), layer, *(text.keys[0],) * 2, text.slots
            )  # type: ignore[arg-type]
            tiny_backbone.unet.to(dtype)
            half = text.keys[0].to(dtype)
            got = method.projection().project(attention(tiny_backbone, layer), layer, half, half, text.slots)  # type: ignore[arg-type]
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0)


class TestLocks:
    def test_the_local_lock_keeps_the_concepts_key_at_the_super_categorys(self, tiny_backbone: Backbone) -> None:
        """However values and word were trained: K of i* is the gate times W_K of the super category's encoding."""
        method = changed(make_perfusion(tiny_backbone))
        layer = tiny_backbone.frame.layers[2]
        key = method.key[None, None]
        with torch.no_grad():
            k, _ = method.projection().project(
                attention(tiny_backbone, layer), layer, key, key, torch.ones(1, 1, dtype=torch.long)
            )
        start = make_perfusion(tiny_backbone)
        expected = torch.sigmoid(torch.tensor(0.3 / 0.15)) * start.target("key", layer)
        torch.testing.assert_close(k[0, 0], expected, atol=2e-6, rtol=0)
        assert torch.equal(start.target("key", layer), method.target("key", layer))

    def test_the_global_lock_reads_all_keys_from_the_super_categorys_prompt(self, tiny_backbone: Backbone) -> None:
        method = changed(make_perfusion(tiny_backbone)).drawn_with(lock="global")
        conditioning = encode(tiny_backbone, {"{}": method})
        plain = plain_condition(tiny_backbone.text, [PROMPT.replace("{}", "teddy")], tiny_backbone.frame)
        torch.testing.assert_close(conditioning.keys, plain.keys)
        assert not torch.allclose(conditioning.values[0, 0, 6:], plain.values[0, 0, 6:])
        layer = tiny_backbone.frame.layers[5]
        module = attention(tiny_backbone, layer)
        with torch.no_grad():
            k, v = method.projection().project(
                module,
                layer,
                conditioning.keys[0],
                conditioning.values[0],
                conditioning.slots,  # type: ignore[arg-type]
            )
            assert torch.equal(k, module.to_k(conditioning.keys[0])), "the frozen layer's own"
            assert not torch.allclose(v, module.to_v(conditioning.values[0]))

    def test_a_super_category_of_several_tokens_is_locked_to_their_mean(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone, word="teddy photo").eval().drawn_with(lock="global")
        conditioning = encode(tiny_backbone, {"{}": method})
        torch.testing.assert_close(conditioning.keys, conditioning.values)  # untrained: word and lock are the same

    def test_training_knows_no_global_lock(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone, lock="global").train()
        assert method.lock == "local" and method.vectors(T0).key_words is None
        assert method.eval().lock == "global" and method.vectors(T0).key_words == "teddy"


class TestModes:
    def test_explicit_needs_no_covariance_and_starts_as_the_frozen_model(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone, gate_mode="explicit", covariance=None).eval()
        assert method.covariance is None and not method.value_targets.any()
        plain: dict[str, Method] = {"{}": textual_inversion(tiny_backbone, method.word)}
        assert torch.equal(denoise(tiny_backbone, {"{}": method}), denoise(tiny_backbone, plain))
        changed(method)
        with torch.no_grad():
            method.value_targets += 0.3
        assert not torch.allclose(denoise(tiny_backbone, {"{}": method}), denoise(tiny_backbone, plain))
        plain = {"{}": textual_inversion(tiny_backbone, method.word)}
        assert torch.equal(denoise(tiny_backbone, {"{}": method.drawn_with(scale=0.0)}), denoise(tiny_backbone, plain))

    def test_residual_with_a_closed_gate_is_the_frozen_model(self, tiny_backbone: Backbone) -> None:
        method = changed(make_perfusion(tiny_backbone, gate_mode="residual"))
        plain: dict[str, Method] = {"{}": textual_inversion(tiny_backbone, method.word)}
        assert not torch.allclose(denoise(tiny_backbone, {"{}": method}), denoise(tiny_backbone, plain))
        closed = denoise(tiny_backbone, {"{}": method.drawn_with(beta=1e4)})
        assert torch.equal(closed, denoise(tiny_backbone, plain))

    @pytest.mark.parametrize("mode", ["residual", "explicit"])
    def test_the_variants_train_too(self, tiny_backbone: Backbone, mode: str) -> None:
        method = make_perfusion(tiny_backbone, gate_mode=mode).train()
        objective = Objective(method, tiny_backbone)
        objective(make_batch(tiny_backbone)).backward()
        assert method.value_targets.grad is not None and method.value_targets.grad.abs().sum() > 0
        assert method.word.grad is not None and method.word.grad.abs().sum() > 0
