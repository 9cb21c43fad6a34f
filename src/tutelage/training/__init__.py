"""The training loop, evaluation and checkpoints. It names no method, model, data set or task."""
