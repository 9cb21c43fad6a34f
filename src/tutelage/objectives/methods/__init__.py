"""The methods, one file per family: their terms and presets. Files are named as those of the losses."""
