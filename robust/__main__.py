"""`python -m robust` is the `robust` command."""

from robust.cli import main

if __name__ == "__main__":
    main()
