"""Pieces of a training run: parameter groups, schedules, phases, saved state. Not a trainer."""

from wsss_blocks.training.cached_gradients import cached_gradient_backward
from wsss_blocks.training.key_maps import ToCoCheckpoint, read_toco_checkpoint
from wsss_blocks.training.linear_probe import LinearProbe, linear_probe
from wsss_blocks.training.param_groups import param_groups
from wsss_blocks.training.phases import Phases
from wsss_blocks.training.run_state import Stateful, load_run_state, save_run_state
from wsss_blocks.training.schedule import polynomial_schedule
from wsss_blocks.training.weights import LoadReport, load_weights, save_weights

__all__ = [
    "LinearProbe",
    "LoadReport",
    "Phases",
    "Stateful",
    "ToCoCheckpoint",
    "cached_gradient_backward",
    "linear_probe",
    "load_run_state",
    "load_weights",
    "param_groups",
    "polynomial_schedule",
    "read_toco_checkpoint",
    "save_run_state",
    "save_weights",
]
