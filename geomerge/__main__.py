"""Command line as ``python -m geomerge``."""

from geomerge.cli.app import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
