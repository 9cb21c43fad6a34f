"""Tables, figures and the HTML report, from a run's records alone: nothing here imports torch.

`table` holds the numbers, `figures` the pictures, `html` the page that shows both; `reading` turns folders into values.
"""
