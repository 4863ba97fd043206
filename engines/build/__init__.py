"""Running a build plan: stages, TensorRT-LLM's commands, the LLM API's model; imports `planning` and `checkpoint`."""
