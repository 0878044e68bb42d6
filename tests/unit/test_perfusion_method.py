"""Perfusion as a method: what is learned and what is locked, its file, and its edit inside the attention layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from perfusion_concepts import make_perfusion
from torch import Tensor

from neti.models.attention.layers import Layer
from neti.models.attention.projection import join_projections
from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.backbone.frame import Frame
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import save_embedding
from neti.models.conditioning.conditioning import Conditioning, condition, plain_condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import Method, NeTI, NeTIConfig, Perfusion, Start, TextualInversion, WordVectorsConfig
from neti.models.methods.perfusion.config import PerfusionConfig
from neti.models.methods.perfusion.covariance import find_covariance
from neti.models.methods.perfusion.projection import PerfusionProjection
from neti.training.coach.objective import Batch, Objective
from neti.training.coach.optimizer import make_optimizer
from neti.training.config.run import OptimConfig
from neti.utils.errors import UserError

T0 = torch.tensor([500])
PROMPT = "a photo of a {} and a dog"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(backbone: Backbone, count: int = 2, seed: int = 1) -> Batch:
    draw = seeded(seed)
    return Batch(
        latents=torch.randn(count, 4, 8, 8, generator=draw),
        noise=torch.randn(count, 4, 8, 8, generator=draw),
        timesteps=torch.randint(1000, (count,), generator=draw),
        tokens=tokenize(backbone.tokenizer, ["a photo of a {}", "the {} on a table"] * (count // 2), ["{}"]),
        generators=[seeded(i) for i in range(count)],
    )


def encode(backbone: Backbone, concepts: dict[str, Method], prompt: str = PROMPT) -> Conditioning:
    tokens = tokenize(backbone.tokenizer, [prompt], list(concepts), required=False)
    vectors = {name: concept.vectors(T0) for name, concept in concepts.items()}
    with torch.no_grad():
        return condition(backbone.text, tokens, vectors, backbone.frame)


def denoise(backbone: Backbone, concepts: dict[str, Method], prompt: str = PROMPT) -> Tensor:
    projection = join_projections([concept.projection() for concept in concepts.values()])
    with torch.no_grad():
        return Denoiser(backbone, projection)(
            torch.randn(1, 4, 8, 8, generator=seeded(4)), T0, encode(backbone, concepts, prompt)
        )


def changed(concept: Perfusion, seed: int = 9) -> Perfusion:
    """The concept as if it had been trained: other values, another word, another key."""
    with torch.no_grad():
        for tensor in (concept.value_targets, concept.word, concept.key):
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=seeded(seed))
    return concept.eval()


def attention(backbone: Backbone, layer: Layer) -> Any:
    return backbone.unet.get_submodule(layer.path)


class TestWhatIsLearned:
    def test_values_and_word_and_nothing_else(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        frozen = [
            {name: tensor.clone() for name, tensor in part.state_dict().items()}
            for part in (tiny_backbone.unet, tiny_backbone.text_encoder)
        ]
        objective = Objective(method.train(), tiny_backbone)
        optimizer, _ = make_optimizer(method, OptimConfig(), 0.03)
        for step in range(3):
            objective(make_batch(tiny_backbone, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        after = method.state_dict()
        assert torch.equal(after["key_targets"], before["key_targets"]), "bit for bit"
        assert not method.key_targets.requires_grad and method.key_targets.grad is None
        for name in ("value_targets", "word", "key"):
            assert not torch.equal(after[name], before[name]), name
        assert all(part.diff().abs().max() > 0 for part in (after["value_targets"] - before["value_targets"]).split(16))
        for part, saved in zip((tiny_backbone.unet, tiny_backbone.text_encoder), frozen, strict=True):
            for name, tensor in part.state_dict().items():
                assert torch.equal(tensor, saved[name]), name
            assert not any(p.requires_grad or p.grad is not None for p in part.parameters())

    def test_keys_are_learned_when_asked_for(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone, lock="trained")
        Objective(method, tiny_backbone)(make_batch(tiny_backbone)).backward()
        assert method.key_targets.grad is not None and method.key_targets.grad.abs().sum() > 0
        method.eval()
        assert method.lock == "trained" and method.drawn_with(lock="global").lock == "global"
        with pytest.raises(
            UserError, match=r"lock local: the concept was trained with lock trained; .* trained or global"
        ):
            method.drawn_with(lock="local")

    def test_values_and_word_have_their_own_rates(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        optimizer, _ = make_optimizer(method, OptimConfig(), 0.03)
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        assert rates[id(method.value_targets)] == pytest.approx(0.03)
        assert rates[id(method.word)] == pytest.approx(0.006)

    def test_the_gradient_is_that_of_the_loss(self, tiny_backbone: Backbone) -> None:
        """Central differences through the text encoder, both projections and the gate."""
        method = make_perfusion(tiny_backbone, key_decay=1.0).train()  # the key stands still, or it would follow
        objective, batch = Objective(method, tiny_backbone), make_batch(tiny_backbone)
        objective(batch).backward()
        for parameter in (method.word, method.value_targets):
            assert parameter.grad is not None
            step = 0.02 * parameter.detach().norm() * torch.nn.functional.normalize(parameter.grad, dim=0)
            with torch.no_grad():
                losses = []
                for sign in (1, -2):
                    parameter += sign * step
                    losses.append(objective(batch).double())
                parameter += step
            assert float(losses[0] - losses[1]) == pytest.approx(float((parameter.grad * 2 * step).sum()), rel=0.02)


class TestTheRunningKey:
    def conditioning(self, encodings: Tensor, slots: list[list[int]]) -> Conditioning:
        keys = encodings.expand(16, -1, -1, -1)
        return Conditioning(keys, keys, torch.tensor(slots))

    def test_it_has_its_closed_form(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        start = method.key.clone()
        encodings = torch.randn(2, 3, 32, generator=seeded(1))
        slots = [[0, 1, 0], [0, 0, 1]]
        for _ in range(7):
            method.observe(self.conditioning(encodings, slots))
        mean = (encodings[0, 1] + encodings[1, 2]) / 2
        torch.testing.assert_close(method.key, 0.99**7 * start + (1 - 0.99**7) * mean, atol=1e-6, rtol=0)

    def test_the_order_inside_a_batch_does_not_matter(self, tiny_backbone: Backbone) -> None:
        one, other = make_perfusion(tiny_backbone), make_perfusion(tiny_backbone)
        encodings = torch.randn(2, 3, 32, generator=seeded(1))
        one.observe(self.conditioning(encodings, [[0, 1, 0], [0, 0, 1]]))
        other.observe(self.conditioning(encodings.flip(0), [[0, 0, 1], [0, 1, 0]]))
        torch.testing.assert_close(one.key, other.key)

    def test_only_training_moves_it(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone)
        start = method.key.clone()
        objective = Objective(method.train(), tiny_backbone)
        objective.eval()
        objective(make_batch(tiny_backbone))
        assert torch.equal(method.key, start)
        objective.train()
        objective(make_batch(tiny_backbone))
        assert not torch.equal(method.key, start)

    def test_no_gradient_goes_through_it(self, tiny_backbone: Backbone) -> None:
        method = make_perfusion(tiny_backbone).train()
        Objective(method, tiny_backbone)(make_batch(tiny_backbone)).backward()
        assert not method.key.requires_grad and method.key.grad is None


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
        plain: dict[str, Method] = {"{}": _textual_inversion(tiny_backbone, method.word)}
        assert torch.equal(denoise(tiny_backbone, {"{}": method}), denoise(tiny_backbone, plain))
        changed(method)
        with torch.no_grad():
            method.value_targets += 0.3
        assert not torch.allclose(denoise(tiny_backbone, {"{}": method}), denoise(tiny_backbone, plain))
        plain = {"{}": _textual_inversion(tiny_backbone, method.word)}
        assert torch.equal(denoise(tiny_backbone, {"{}": method.drawn_with(scale=0.0)}), denoise(tiny_backbone, plain))

    def test_residual_with_a_closed_gate_is_the_frozen_model(self, tiny_backbone: Backbone) -> None:
        method = changed(make_perfusion(tiny_backbone, gate_mode="residual"))
        plain: dict[str, Method] = {"{}": _textual_inversion(tiny_backbone, method.word)}
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


class TestSeveralConcepts:
    @pytest.fixture
    def two(self, tiny_backbone: Backbone) -> dict[str, Perfusion]:
        return {
            "{mug}": changed(make_perfusion(tiny_backbone), 1),
            "{cat}": changed(make_perfusion(tiny_backbone, word="cat"), 2).drawn_with(beta=0.6),
        }

    def test_two_in_one_prompt(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        """Values of a layer against the definition: both keys projected out at once, each target behind a gate."""
        concepts: dict[str, Method] = {**two}
        text = encode(tiny_backbone, concepts, "a {mug} next to a {cat}")
        layer = tiny_backbone.frame.layers[9]
        module = attention(tiny_backbone, layer)
        projection = join_projections([concept.projection() for concept in two.values()])
        with torch.no_grad():
            _, v = projection.project(module, layer, text.keys[0], text.values[0], text.slots)  # type: ignore[arg-type]
        mug, cat = two.values()
        inverse = mug.covariance.inverse.double()  # type: ignore[union-attr]
        keys = torch.stack([mug.key, cat.key]).double()
        e, products = text.values[0].double(), keys @ inverse @ keys.T
        left = e - torch.linalg.solve(products, (e @ inverse @ keys.T).mT).mT @ keys
        expected = left @ module.to_v.weight.double().T
        for j, (concept, beta) in enumerate([(mug, 0.70), (cat, 0.6)]):
            s = e @ inverse @ keys[j] / products[j, j]
            gate = torch.sigmoid((s - beta) / 0.15)
            expected = expected + gate[..., None] * concept.target("value", layer).detach().double()
        torch.testing.assert_close(v.double(), expected, atol=5e-6, rtol=0)

    def test_the_order_in_the_prompt_does_not_matter(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        prompt = "a {mug} next to a {cat}"
        forwards = denoise(tiny_backbone, {**two}, prompt)
        backwards = denoise(tiny_backbone, dict(reversed(two.items())), prompt)
        torch.testing.assert_close(forwards, backwards, atol=1e-5, rtol=0)

    def test_approx_is_another_projection(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        prompt = "a {mug} next to a {cat}"
        approx: dict[str, Method] = {name: concept.drawn_with(overlap="approx") for name, concept in two.items()}
        assert not torch.allclose(denoise(tiny_backbone, approx, prompt), denoise(tiny_backbone, {**two}, prompt))

    @pytest.mark.parametrize("perfusion_first", [True, False])
    def test_beside_a_concept_of_another_method(
        self, tiny_backbone: Backbone, two: dict[str, Perfusion], perfusion_first: bool
    ) -> None:
        """A concept without a projection is a token like any other; the slots stay right."""
        embedding = tiny_backbone.word_embedding("cat")
        neti = NeTI.create(NeTIConfig(hidden_dim=8), tiny_backbone.frame, Start(embedding, seeded())).eval()
        pair: list[tuple[str, Method]] = [("{mug}", two["{mug}"]), ("{neti}", neti)]
        concepts = dict(pair if perfusion_first else reversed(pair))
        projection = join_projections([concept.projection() for concept in concepts.values()])
        assert isinstance(projection, PerfusionProjection)
        assert list(projection.concepts) == [1 if perfusion_first else 2]
        assert torch.isfinite(denoise(tiny_backbone, concepts, "a {mug} next to a {neti}")).all()

    def test_a_global_lock_beside_a_local_one(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        """Keys: the global concept's token is its super category's, and only the local concept is edited into them."""
        concepts: dict[str, Method] = {"{mug}": two["{mug}"].drawn_with(lock="global"), "{cat}": two["{cat}"]}
        projection = join_projections([concept.projection() for concept in concepts.values()])
        assert isinstance(projection, PerfusionProjection)
        assert list(projection._editing["key"]) == [2] and list(projection._editing["value"]) == [1, 2]

    def test_what_cannot_be_one_edit_is_refused(
        self, tiny_backbone: Backbone, two: dict[str, Perfusion], tmp_path: Path
    ) -> None:
        mug, cat = two.values()

        def join(*concepts: Perfusion) -> None:
            join_projections([concept.projection() for concept in concepts])

        with pytest.raises(UserError, match="the same key: one Perfusion concept can stand in a prompt under one name"):
            join(mug, mug)
        residual = changed(make_perfusion(tiny_backbone, word="cat", gate_mode="residual"))
        with pytest.raises(UserError, match=r"differ in gate_mode \(paper and residual\)"):
            join(mug, residual)
        with pytest.raises(UserError, match="differ in edit_plain"):
            join(mug, cat.drawn_with(edit_plain=False))
        covariance = replace(mug.covariance, matrix=2 * mug.covariance.matrix)  # type: ignore[type-var, union-attr]
        covariance.save(tmp_path / "other.safetensors")  # type: ignore[union-attr]
        other = changed(make_perfusion(tiny_backbone, word="cat", covariance=str(tmp_path / "other.safetensors")))
        with pytest.raises(UserError, match="differ in covariance"):
            join(mug, other)


class TestTheConceptFile:
    def test_its_size_on_stable_diffusion_1(self) -> None:
        widths = [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3
        layers = tuple(Layer(i, f"layer {i}", "", 1, width, i) for i, width in enumerate(widths))
        tensors = Perfusion(PerfusionConfig(), Frame(layers, (768,), 77)).state_dict()
        assert sum(tensor.numel() * 4 for tensor in tensors.values()) == 105_984
        assert {name: tensor.numel() for name, tensor in tensors.items()} == {
            "word": 768,
            "key": 768,
            "key_targets": 12_480,
            "value_targets": 12_480,
        }

    def save(self, method: Perfusion, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """As a concept file with its covariance beside it, and nothing else to find it by."""
        assert method.covariance is not None
        method.covariance.save(folder / "covariance.safetensors")
        Concept(method, "<toy>", "teddy").save(folder / "toy.safetensors", dtype)
        return folder / "toy.safetensors"

    def test_it_gives_back_the_same_bits(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = changed(make_perfusion(tiny_backbone))
        loaded = Concept.load(self.save(method, tmp_path), backbone=tiny_backbone).method
        assert isinstance(loaded, Perfusion)
        assert replace(loaded.config, covariance=method.config.covariance) == method.config, "without the path"
        for name, tensor in method.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(denoise(tiny_backbone, {"{}": loaded}), denoise(tiny_backbone, {"{}": method}))

    def test_half_of_it_draws_nearly_the_same(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = changed(make_perfusion(tiny_backbone))
        loaded = Concept.load(self.save(method, tmp_path, torch.float16)).method
        full = denoise(tiny_backbone, {"{}": method})
        torch.testing.assert_close(denoise(tiny_backbone, {"{}": loaded}), full, atol=1e-2, rtol=0)

    def test_another_covariance_is_refused(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = make_perfusion(tiny_backbone).eval()
        path = self.save(method, tmp_path)
        covariance = method.covariance
        assert covariance is not None
        replace(covariance, matrix=covariance.matrix + torch.eye(32)).save(tmp_path / "covariance.safetensors")
        find_covariance.cache_clear()
        loaded = Concept.load(path).method
        with pytest.raises(UserError, match=r"is missing: there is only another one, covariance.safetensors"):
            loaded.projection()


def test_it_is_more_than_an_embedding(tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an edit of the attention layers too; it cannot be exported"):
        save_embedding(Concept(make_perfusion(tiny_backbone).eval(), "<toy>", "teddy"), tmp_path / "toy.bin")
    assert not list(tmp_path.iterdir())


def test_settings_that_it_does_not_have_are_refused(tiny_backbone: Backbone) -> None:
    method = make_perfusion(tiny_backbone).eval()
    with pytest.raises(UserError, match="setting truncation: a concept of method 'perfusion' has beta, tau, lock"):
        method.drawn_with(truncation=3)
    with pytest.raises(UserError, match=r"tau = -1\.0: must be above 0"):
        method.drawn_with(tau=-1.0)
    with pytest.raises(UserError, match="'sideways' is not a valid Lock"):
        method.drawn_with(lock="sideways")
    other = _textual_inversion(tiny_backbone, method.word)
    with pytest.raises(UserError, match="setting beta: a concept of method 'textual_inversion' has key_lock"):
        other.drawn_with(beta=0.5)


def test_the_covariance_must_be_of_the_text_encoder(
    tiny_backbone: Backbone, make_tiny_backbone: Callable[..., Backbone]
) -> None:
    with torch.no_grad():
        tiny_backbone.text_encoder.final_layer_norm.weight *= 2
    with pytest.raises(UserError, match="measured on another text encoder"):
        make_perfusion(tiny_backbone)


def test_a_plan_needs_no_unet_weights(tiny_backbone_folder: Path) -> None:
    sketch = Backbone.from_pretrained(str(tiny_backbone_folder), components=("text_encoder",))
    method = make_perfusion(sketch)
    assert method.key.any() and not method.value_targets.any()


def test_it_compiles_as_one_graph(tiny_backbone: Backbone) -> None:
    """One layer of it: a training step of the whole U-Net takes a minute to compile."""
    method = make_perfusion(tiny_backbone).train()
    layer, text = tiny_backbone.frame.layers[0], encode(tiny_backbone, {"{}": method})
    module, projection = attention(tiny_backbone, layer), method.projection()

    def project(keys: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        return projection.project(module, layer, keys, keys, slots)

    compiled = torch.compile(project, fullgraph=True, backend="eager")
    for _ in range(2):
        expected = project(text.keys[0], text.slots)  # type: ignore[arg-type]
        torch.testing.assert_close(compiled(text.keys[0], text.slots), expected)
        with torch.no_grad():
            method.key += 0.1  # followed by the compiled one too


def _textual_inversion(backbone: Backbone, word: Tensor) -> TextualInversion:
    return TextualInversion.create(WordVectorsConfig(), backbone.frame, Start(word.detach())).eval()
