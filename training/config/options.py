"""The choices that settings of a training run offer by name."""

from __future__ import annotations

from ...utils.config.choices import Choice


class MethodName(Choice):
    """The personalisation methods: a mapper of timestep and layer, one vector, one per layer, or a rank-one edit."""

    neti = "neti"
    textual_inversion = "textual_inversion"
    xti = "xti"
    perfusion = "perfusion"


class StartFrom(Choice):
    """Where a new concept starts: at the super category's word, or at the one ELITE's encoder gives for its photos."""

    word = "word"
    elite = "elite"


class Tracker(Choice):
    """Where the metrics go, beside `metrics.jsonl`, which is always written; `all` is every tracker installed."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    comet_ml = "comet_ml"
    all = "all"
    none = "none"


class ConceptDtype(Choice):
    """Precision of the tensors in a saved concept file; training itself is always float32."""

    fp32 = "fp32"
    fp16 = "fp16"


class LearnableProperty(Choice):
    """What the images share: an object ("a photo of a {}", 27 templates) or a style ("... in the style of {}", 19)."""

    object = "object"
    style = "style"


class MaskSource(Choice):
    """Where masks come from: nowhere, files beside the photos or in a folder of their own, the photos' transparency."""

    none = "none"
    folder = "folder"
    alpha = "alpha"


class OutsideMask(Choice):
    """What is learned outside the mask: nothing, or what the frozen model itself predicts for the super category."""

    ignore = "ignore"
    frozen = "frozen"


class Templates(Choice):
    """Texts of images without captions: all of `learnable_property`, or the nine short ones of Perfusion (objects)."""

    full = "full"
    short = "short"


class SuperCategoryRule(Choice):
    """The super category must be one token of the text encoder, or stands for the mean of its tokens' embeddings."""

    single = "single"
    mean = "mean"


class NormRule(Choice):
    """Rescale word and bypass half of the mapper's output together (the public code), or the word half alone."""

    joint = "joint"
    base = "base"


class MixedPrecision(Choice):
    """Precision of the frozen models; the mapper and its positional encoding stay in float32."""

    no = "no"
    fp16 = "fp16"
    bf16 = "bf16"


class LRSchedule(Choice):
    """Learning-rate schedules of diffusers.optimization.get_scheduler."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"
