"""The methods, one file per family: their terms and presets. Files are named like those of the losses."""
