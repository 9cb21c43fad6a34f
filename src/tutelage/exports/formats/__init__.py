"""One module per format: ``write(source, to)`` makes the file or folder, ``reopen(to)`` runs it as others would."""
