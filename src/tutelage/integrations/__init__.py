"""Distillation inside the trainers of other libraries: each module imports its own, and nothing here imports them."""
