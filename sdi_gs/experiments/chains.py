# SPDX-License-Identifier: Apache-2.0
"""What tables compare: every method (Table 1), and methods that differ step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class Variant:
    """A method with settings of its own."""

    label: str
    guidance: str
    settings: tuple[str, ...] = ()  # key=value


# SDS is published at 100 where SDI has 7.5 (DreamFusion, arXiv 2209.14988); mini, whose pictures
# burn at smaller scales, has 1.5 for SDI.
STRONG = {"mini": 20.0, "sdi": 100.0}
EVERY = {"mini": 15, "sdi": 1000}  # steps between two pictures of a shape that comes about


def methods(names: Sequence[str]) -> tuple[Variant, ...]:
    """Table 1: the methods as they are."""
    return tuple(Variant(name, name) for name in names)


def chain(name: str, family: str) -> tuple[Variant, ...]:
    """The variants of one of :data:`CHAINS` with the scales of a family of presets."""
    small = family == "mini"
    if name == "janus" and not small:
        raise UserError("janus compares the models mini and mini_mv: write --family mini")
    few = "resolution=32" if small else "resolution=64"
    random_t = (
        "guidance.t.high={start: 0.98, end: 0.98}",
        "guidance.t.low={start: 0.02, end: 0.02}",
    )
    scale = 2.0 if small else 7.5
    negative = f"noise.cfg_scale={-scale}"
    wide = ("guidance.t.high={start: 0.98, end: 0.98}", "guidance.t.low={start: 0.1, end: 0.1}")
    convex, flat = (f"terms.convexity={{start: {w}, end: {w}}}" for w in (0.1, 0.0))
    falling = ("guidance.t.high={start: 0.98, end: 0.25}", "guidance.t.low=null")
    return {
        "fig1_3d": (
            Variant("sds, strong guidance", "sds", (f"guidance.cfg_scale={STRONG[family]:g}",)),
            Variant("sdi", "sdi"),
        ),
        "fig4_3d": tuple(
            Variant(name, name, (f"output.preview_every={EVERY[family]}",))
            for name in ("sdi", "sds")
        ),
        "fig8": (
            Variant("sds, fewer pixels", "sds", (few,)),
            Variant("sds", "sds"),
            Variant("+ falling t", "sds_annealed"),
            Variant("+ inversion: sdi", "sdi"),
            Variant("sdi, fewer pixels", "sdi", (few,)),
            Variant("sdi, random t", "sdi", random_t),
        ),
        "fig11": tuple(
            Variant(f"{n} inversion steps", "sdi", (f"noise.steps_per_unit={n}",))
            for n in (2, 3, 4, 5, 8, 10, 16, 20, 30)
        ),
        "fig9_3d": (
            Variant("random, new in each step", "sds_annealed"),
            Variant("random, fixed", "fixed_noise"),
            Variant("fixed point", "fixed_point"),
            Variant("Anderson", "sdi", (f"noise={{kind: anderson, cfg_scale: {scale}}}",)),
            Variant("gradient descent", "gradient_descent"),
            Variant("inversion", "sdi", (negative,)),
        ),
        "fig10_3d": tuple(
            Variant(
                f"inversion {back:g}, forward {forth:g}",
                "sdi",
                (f"noise.cfg_scale={back}", f"guidance.cfg_scale={forth}"),
            )
            for back, forth in (
                (scale, scale),
                (0.0, 0.0),
                (1.0, 1.0),
                (0.0, scale),
                (-scale, scale),
            )
        ),
        "table2": (Variant("ism", "lucid_dreamer"), Variant("sdi", "sdi")),
        "since": tuple(
            Variant(name, name)
            for name in (
                "sdi",
                "pfd",
                "mv_sdi",
                "sctd",
                "gcs",
                "asd",
                "sds_bridge",
                "rfds",
                "rfds_rev",
                "cfd",
                "fsd",
                "gsd",
            )
        ),
        "fig14": (
            Variant("ism", "ism"),
            Variant("+ larger t", "ism", wide),
            Variant("+ falling t", "ism", falling),
            Variant("+ negative inversion", "ism", (*falling, negative)),
            Variant("+ all of kappa: sdi", "sdi", (*falling, negative)),
        ),
        "janus": tuple(
            Variant(f"{model}, {label}", guidance, (f"model.source={model}",))
            for guidance, label in (("sdi", "sdi"), ("sds_annealed", "annealed sds"))
            for model in ("mini", "mini_mv")
        ),
        "aids": (
            Variant("sdi", "sdi"),
            Variant("no entropy", "sdi", ("noise.entropy=0",)),
            Variant(
                "threestudio's Perp-Neg" if small else "no Perp-Neg",
                "sdi",
                ("prompts.perp_neg=threestudio" if small else "prompts.perp_neg=none",),
            ),
            Variant(
                "stable-dreamfusion's Perp-Neg", "sdi", ("prompts.perp_neg=stable-dreamfusion",)
            ),
            Variant("convexity", "sdi", (convex,)),
            Variant("all of them", "sdi", ("prompts.perp_neg=threestudio", convex))
            if small
            else Variant("none of them", "sdi", ("noise.entropy=0", "prompts.perp_neg=none", flat)),
        ),
    }[name]


CHAINS = {
    "fig1_3d": "Fig. 1 d-e: SDS with the strong guidance that it is known for, and SDI",
    "fig4_3d": "Fig. 4, middle row: how x0, which is the rendering, comes about on a field",
    "fig8": "Fig. 8: from DreamFusion to SDI, change by change",
    "fig9_3d": "Fig. 9, left: what each choice of kappa makes in 3D",
    "fig10_3d": "Fig. 10, right: guidance while inverting and denoising, in 3D",
    "fig11": "Fig. 11: the number of inversion steps, by time and quality",
    "fig14": "Fig. 14: from interval score matching to SDI",
    "table2": "Table 2: interval score matching, to the letter of its code, and SDI",
    "since": "SDI and the methods that came after it",
    "janus": "one view at a time or four together: faces of things with two different sides",
    "aids": "App. A: the entropy term, both sets of Perp-Neg's constants and convexity, one by one",
}

EXAMPLES = {
    "janus": [
        "a gray cat", "a yellow duck", "a gray elephant", "a purple helicopter",
        "a pink airplane", "a red car", "a brown bear", "a green turtle",
    ],
}  # fmt: skip
"""What a chain is about where no sentence is given, if that is not :data:`EXAMPLE`."""

REPRESENTATION = {"fig4_3d": "instant_ngp"}
"""What a chain is drawn on where nothing is said, if that is not ``gaussians``."""

SHORT, EXAMPLE = 150, "a red mug"
"""Steps of a run of mini, and its sentence, where nothing else is said: a chain takes minutes."""
