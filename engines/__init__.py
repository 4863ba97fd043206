"""Ground floor: what the model and the GPU are, what fits, what a step costs; building an engine, emulating one."""
