"""The command line: a module for each group of commands."""

from tutelage.cli.app import main as main
