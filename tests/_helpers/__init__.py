"""What several tests stand on: places, and helpers in the modules beside this one."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
SHARED = ROOT.parent / "shared"
"""Data that may lie beside the repository."""
KILLED_RUN = ROOT / "tests" / "_helpers" / "killed_run.py"
"""Runs that are killed at a chosen moment, in a process of their own."""
