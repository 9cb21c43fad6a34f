"""Settings of a fit, of data and of an objective as plain data, with their bounds and defaults. No torch."""
