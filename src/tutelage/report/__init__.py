"""The results of runs as a table, figures and an HTML page, from their records alone: nothing here imports torch."""
