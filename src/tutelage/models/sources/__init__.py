"""One module for each source of models."""
