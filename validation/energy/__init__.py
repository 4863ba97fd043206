"""The power model against measured watts: its fit, and its errors on models and GPUs that a fit did not see."""
