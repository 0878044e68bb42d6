"""Every YAML file in input_configs parses as what it is for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from neti.models.generation.config import InferenceConfig
from neti.models.methods.perfusion.config import PerfusionOptions
from neti.training.app.config import AppConfig
