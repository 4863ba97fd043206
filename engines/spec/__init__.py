"""What the models and the GPUs are, how numbers are stored, what memory that takes. Every constant has its source."""
