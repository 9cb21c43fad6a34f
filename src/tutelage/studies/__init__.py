"""Grids of runs."""

from tutelage.studies.compare import compare as compare
