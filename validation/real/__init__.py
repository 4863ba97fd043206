"""The whole chain on a server that nobody here wrote: vLLM on this machine's CPU (`make real`).

Calibrate, predict, measure, plan and verify, every figure measured. See docs/how-to/prove-it-on-your-laptop.md.
"""
