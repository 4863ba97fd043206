"""The cost of one iteration: from data sheets, from measured tables, or fitted to a deployment."""

from engines.steptime.calibrated import Calibrated
from engines.steptime.gpu_time import METHOD as GPU_TIME_METHOD
from engines.steptime.gpu_time import RequestGpuTime, request_gpu_time
from engines.steptime.power import PowerModel, StepEnergy, power_model_for, why_no_power
from engines.steptime.roofline import Roofline
from engines.steptime.scaled import scaled, uniform
from engines.steptime.shape import DecodeLine, StepCost, StepShape, StepTime, attended_tokens
from engines.steptime.source import cached_step_time, favoured_source, step_time_for, step_time_of, step_time_words
from engines.steptime.uncertainty import INTERVAL_SHARE, NONE, Z_95, Slowdown, StepTimeInterval, uncertainty

__all__ = [
    "GPU_TIME_METHOD",
    "INTERVAL_SHARE",
    "NONE",
    "Z_95",
    "Calibrated",
    "DecodeLine",
    "PowerModel",
    "RequestGpuTime",
    "Roofline",
    "Slowdown",
    "StepCost",
    "StepEnergy",
    "StepShape",
    "StepTime",
    "StepTimeInterval",
    "attended_tokens",
    "cached_step_time",
    "favoured_source",
    "power_model_for",
    "request_gpu_time",
    "scaled",
    "step_time_for",
    "step_time_of",
    "step_time_words",
    "uncertainty",
    "uniform",
    "why_no_power",
]
