"""The command line: a module for each group of commands."""

from tutelage.cli.entry import main as main
