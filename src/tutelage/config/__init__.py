"""Recipes: their schema, how they are read and overridden, and the messages about what is wrong in them."""

from tutelage.config.files import dump as dump
from tutelage.config.files import keys_of as keys_of
from tutelage.config.files import override as override
from tutelage.config.files import read as read
from tutelage.config.schema import Comparison as Comparison
from tutelage.config.schema import Recipe as Recipe
from tutelage.config.schema import parse as parse
