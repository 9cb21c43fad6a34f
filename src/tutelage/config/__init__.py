"""Recipes: their schema, how they are read and overridden, and what is said of their faults."""

from tutelage.config.schema import Comparison as Comparison
from tutelage.config.schema import Recipe as Recipe
from tutelage.config.schema import RecipeError as RecipeError
from tutelage.config.schema import dump as dump
from tutelage.config.schema import override as override
from tutelage.config.schema import parse as parse
from tutelage.config.schema import read as read
