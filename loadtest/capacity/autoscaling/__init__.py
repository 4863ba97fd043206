"""Autoscalers simulated against the demand's day: control laws, the replicas' response, the comparison."""
