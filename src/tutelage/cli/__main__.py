"""``python -m tutelage.cli``, as ``python -m tutelage``."""

from tutelage.cli import main

if __name__ == "__main__":
    main()
