"""Where runs are trained, and until when."""
