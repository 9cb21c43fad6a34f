"""A search for settings on the validation set, and what of its gain is noise."""
