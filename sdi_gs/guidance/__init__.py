# SPDX-License-Identifier: Apache-2.0
"""What a picture should have been: score distillation and all that it is made of."""

from .distillation import Guidance, GuidanceConfig, Guided, ScoreDistillation, TimeConfig
from .prompts import Conditions, PromptConfig, PromptSet, Subject
from .viewpoints import Viewpoints

__all__ = [
    "Conditions",
    "Guidance",
    "GuidanceConfig",
    "Guided",
    "PromptConfig",
    "PromptSet",
    "ScoreDistillation",
    "Subject",
    "TimeConfig",
    "Viewpoints",
]
