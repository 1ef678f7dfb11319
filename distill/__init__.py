"""On-policy context distillation: what a context in the prompt does, trained into the weights."""
