"""One run or several, from a recipe to their folders."""
