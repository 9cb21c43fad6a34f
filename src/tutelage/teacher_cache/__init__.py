"""A teacher's outputs on disk, keyed so that those of another teacher, other data or other views cannot be used."""
