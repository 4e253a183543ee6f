"""``python -m bridge`` is ``whalebridge``."""

from bridge.cli import main

if __name__ == "__main__":
    main()
