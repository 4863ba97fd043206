"""What this machine is and does: memory bandwidth and matrix products, measured; written as an accelerator's file."""

from engines.machine.bandwidth import read_bandwidth
from engines.machine.cores import available_cores, parse_cores
from engines.machine.describe import describe_cpu, describe_gpu, has_gpu, yaml_of

__all__ = ["available_cores", "describe_cpu", "describe_gpu", "has_gpu", "parse_cores", "read_bandwidth", "yaml_of"]
