"""What Triton and TensorRT-LLM call things: tensors, parameters, configuration; imports `settings` alone."""
