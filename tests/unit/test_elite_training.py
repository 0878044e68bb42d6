"""Training an encoder: the frozen rest, the two stages, the losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_elite import tiny_encoder

from neti.models.backbone.denoiser import Denoiser
from neti.models.backbone.text import TextStack
from neti.models.conditioning.conditioning import ConceptVectors, condition, plain_condition
from neti.models.conditioning.prompts import SLOT
from neti.models.conditioning.tokens import tokenize
from neti.models.methods.elite.encoder import Encoder
from neti.models.methods.elite.projection import ELITEProjection
from neti.training.elite.config import GLOBAL, LOCAL, Stage
from neti.training.elite.objective import EncoderObjective, Noised, states_distance
from neti.training.elite.samples import Collated


@pytest.fixture
def encoder(tiny_backbone) -> Encoder:
    """A tiny encoder whose matrices are the U-Net's own."""
    made = tiny_encoder(tiny_backbone.frame.layers, tiny_backbone.frame.text_width)
    for mapper in (made.of_words, made.of_patches):
        mapper.copy_from(tiny_backbone.unet, tiny_backbone.frame.layers)
    return made


def noised(words: int, batch: int = 2) -> Noised:
    torch.manual_seed(4)
    mask = (torch.rand(batch, 1, 32, 32) > 0.3).float()
    samples = Collated(
        target=torch.rand(batch, 3, 64, 64),
        valid=torch.ones(batch, 1, 64, 64),
        image=torch.rand(batch, 3, 32, 32),
        object=torch.rand(batch, 3, 32, 32) * mask,
        mask=mask,
        texts=["a photo of a {}", "the {} on a beach"][:batch],
        words=words,
        numbers=list(range(batch)),
        skipped=0,
        nouns=["red mug", "plain old teddy"][:batch],
    )
    latents, noise = torch.randn(2, batch, 4, 8, 8)
    return Noised(samples, latents, noise, torch.tensor([10, 700][:batch]))


def objective(encoder: Encoder, backbone, stage: Stage, **settings: float) -> EncoderObjective:
    return EncoderObjective(encoder, backbone, stage, **{"regularisation": 0.01, **settings})  # type: ignore[arg-type]


def test_with_the_unets_own_matrices_and_no_concept_nothing_changes(tiny_backbone, encoder):
    conditioning = plain_condition(tiny_backbone.text, ["a photo of a cat"], tiny_backbone.frame)
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor(300)
    plain = Denoiser(tiny_backbone)
    edited = Denoiser(tiny_backbone, ELITEProjection(encoder.of_words))
    assert torch.equal(edited(latents, timestep, conditioning), plain(latents, timestep, conditioning))


def test_strength_zero_is_the_global_encoder_alone(tiny_backbone, encoder):
    torch.manual_seed(0)
    frame, latents, timestep = tiny_backbone.frame, torch.randn(1, 4, 8, 8), torch.tensor(300)
    tokens = tokenize(tiny_backbone.tokenizer, ["a photo of a {}"], {SLOT: 1})
    words, image = torch.randn(1, 1, 1, frame.text_width), torch.randn(1, 16, frame.text_width)

    def predicted(strength: float | None) -> torch.Tensor:
        of_patches = None if strength is None else encoder.of_patches
        projection = ELITEProjection(encoder.of_words, of_patches, image_tokens=16, strength=strength or 0.0)
        concept = ConceptVectors(words, image=None if strength is None else image)
        conditioning = condition(tiny_backbone.text, tokens, {SLOT: concept}, frame)
        return Denoiser(tiny_backbone, projection)(latents, timestep, conditioning)

    assert torch.equal(predicted(0.0), predicted(None))
    assert (predicted(0.8) - predicted(None)).abs().max() > 1e-5


def test_words_are_injected_and_the_tail_shifts(tiny_backbone):
    prompt, n = "a photo of a {} on a beach " + "very " * 80, 5
    plain = tokenize(tiny_backbone.tokenizer, ["a photo of a {} on a beach " + "very " * 80], {SLOT: 1})
    shifted = tokenize(tiny_backbone.tokenizer, [prompt], {SLOT: n})
    (p,) = plain.slots[SLOT][0].nonzero().flatten().tolist()
    assert shifted.slots[SLOT][0].nonzero().flatten().tolist() == list(range(p, p + n))
    assert torch.equal(shifted.ids[0, :p], plain.ids[0, :p])
    assert torch.equal(shifted.ids[0, p + n : 76], plain.ids[0, p + 1 : 76 - n + 1])  # position 76 is the end token
    assert shifted.ids.shape == plain.ids.shape == (1, 77)
    seen = {}

    class Recording(TextStack):  # what reaches the text encoder
        def states(self, embeddings, chunk_rows=None):
            seen["embeddings"] = embeddings
            return super().states(embeddings, chunk_rows)

    words = torch.randn(1, 1, n, tiny_backbone.frame.text_width)
    condition(Recording(tiny_backbone.text.towers), shifted, {SLOT: ConceptVectors(words)}, tiny_backbone.frame)
    table = tiny_backbone.text.embeddings(shifted.ids)
    assert torch.equal(seen["embeddings"][0, p : p + n], words[0, 0])
    outside = ~shifted.slots[SLOT][0]
    assert torch.equal(seen["embeddings"][0, outside], table[0, outside])


@pytest.mark.parametrize("stage", [GLOBAL, LOCAL])
def test_a_step_changes_the_stages_own_mapper_and_nothing_else(tiny_backbone, encoder, stage):
    trained, frozen = (encoder.of_words, encoder.of_patches)[:: 1 if stage is GLOBAL else -1]
    frozen.requires_grad_(False)
    aim = objective(encoder, tiny_backbone, stage)
    modules = {"trained": trained, "frozen": frozen, "vision": encoder.vision}
    modules |= {"unet": tiny_backbone.unet, "text": tiny_backbone.text_encoder, "vae": tiny_backbone.vae}
    before = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
    assert set(aim.parameters()) == set(trained.parameters())
    optimizer = torch.optim.SGD(aim.parameters(), lr=1.0)
    aim(noised(words=5 if stage is GLOBAL else 1)).backward()
    optimizer.step()
    for name, module in modules.items():
        changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[name][k])}
        if name == "trained":
            assert changed == set(module.state_dict()) and len(changed) == 132
        else:
            assert not changed, name


def test_in_stage_local_only_w0_is_read(tiny_backbone, encoder):
    aim = objective(encoder, tiny_backbone, LOCAL, regularisation=0.0)
    loss = aim(noised(words=1))
    with torch.no_grad():
        for i in range(1, 5):
            encoder.of_words.get_submodule(f"mapping_{i}")[-1].bias.normal_()
        assert torch.equal(aim(noised(words=1)), loss)
        encoder.of_words.mapping_0[-1].bias.normal_()
        assert not torch.equal(aim(noised(words=1)), loss)


def test_the_words_regulariser_is_their_mean_absolute_value(tiny_backbone, encoder):
    batch = noised(words=5)
    without, with_it = (objective(encoder, tiny_backbone, GLOBAL, regularisation=r)(batch) for r in (0.0, 0.5))
    words = encoder.words(batch.samples.image)
    torch.testing.assert_close(with_it - without, 0.5 * words.abs().sum() / words.numel())


def test_the_patches_regulariser_is_the_layers_mean_absolute_value(tiny_backbone, encoder):
    batch = noised(words=1)
    without, with_it = (objective(encoder, tiny_backbone, LOCAL, regularisation=r)(batch) for r in (0.0, 0.5))
    patches = encoder.patches(batch.samples.object, batch.samples.mask)
    tensors = encoder.of_patches.state_dict()
    values = [patches @ tensors[name].T for name in tensors if name.endswith("_to_v.weight")]
    assert len(values) == 16
    expected = 0.5 * sum(value.abs().mean() for value in values) / 16
    torch.testing.assert_close(with_it - without, expected)


def test_the_local_loss_sums_channels_where_the_target_is_a_picture(tiny_backbone, encoder):
    aim, batch = objective(encoder, tiny_backbone, LOCAL, regularisation=0.0), noised(words=1)
    everywhere = aim(batch)
    batch.samples.valid[..., 32:] = 0
    left = aim(batch)
    other = Noised(batch.samples, batch.latents, batch.noise, batch.timesteps)
    other.samples.valid[...] = 0
    other.samples.valid[..., 32:] = 1
    torch.testing.assert_close((left + aim(other)) / 2, everywhere)
    aim_of_words = objective(encoder, tiny_backbone, GLOBAL, regularisation=0.0)
    assert everywhere > 2 * aim_of_words(noised(words=1))  # four channels are summed here and averaged there


def test_noise_emphasis_leaves_the_mean_weight_at_one(tiny_backbone, encoder):
    weights = objective(encoder, tiny_backbone, GLOBAL, noise_emphasis=0.5).weights
    assert weights.mean() == pytest.approx(1) and weights[900] > weights[100]
    assert torch.equal(objective(encoder, tiny_backbone, GLOBAL).weights, torch.ones(1000))


def test_the_name_is_the_target_of_w0(tiny_backbone, encoder):
    """With the name's own prediction as the whole target, only what w0 says otherwise is an error."""
    batch, settings = noised(words=1), {"regularisation": 0.0, "name_target": 1.0}
    aim = objective(encoder, tiny_backbone, GLOBAL, **settings)
    named = [text.replace("{}", noun) for text, noun in zip(batch.samples.texts, batch.samples.nouns, strict=True)]
    with torch.no_grad():
        noisy = aim.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        conditioning = plain_condition(tiny_backbone.text, named, tiny_backbone.frame)
        wanted = Denoiser(tiny_backbone)(noisy, batch.timesteps, conditioning)
    batch = replace(batch, noise=batch.noise.clone())
    plain = objective(encoder, tiny_backbone, GLOBAL, regularisation=0.0)
    plain._target = lambda _: wanted
    torch.testing.assert_close(aim(batch), plain(batch))
    assert aim(batch) < objective(encoder, tiny_backbone, GLOBAL, regularisation=0.0)(batch)


def test_states_are_compared_with_those_of_a_longer_name():
    own, named = torch.randn(2, 2, 6, 3)
    start, lengths = torch.tensor([1, 2]), torch.tensor([3, 1])
    named[0, 3:] = own[0, 1:4]  # three tokens: the last stands two further on, and so does what follows
    named[1, 2:] = 2 * own[1, 2:]
    assert states_distance(own, named, start, lengths).abs() < 1e-6
    named[0, 3] = -own[0, 1]
    assert states_distance(own, named, start, lengths) == pytest.approx(1.0)  # 2, in one of two samples
    named[0, 3], named[1, 4] = own[0, 1], -own[1, 4]
    assert states_distance(own, named, start, lengths) == pytest.approx(2 / 5)  # one of 2 + 3 tokens behind


def test_the_names_states_weigh_as_said(tiny_backbone, encoder):
    losses = [objective(encoder, tiny_backbone, GLOBAL, name_states=w)(noised(words=1)) for w in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(losses[2] - losses[0], 3 * (losses[1] - losses[0]))
    assert losses[1] > losses[0] + 0.01
    five = [objective(encoder, tiny_backbone, GLOBAL, name_states=w)(noised(words=5)) for w in (0.0, 1.0)]
    assert torch.equal(*five)  # where the other words stand too, w0 need not say it all
