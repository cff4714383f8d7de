"""`python -m dither` is `dither`. Without the packages of dither[lab] it says what it needs."""

import sys


def main() -> None:
    """Run the command line, or end with a sentence where its packages are missing."""
    try:
        from dither.lab.cli import main as command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "dither":
            raise
        sys.exit(
            f"dither: the command needs the package {error.name}: pip install 'dither[lab]'; "
            "the library works without it"
        )
    command()


if __name__ == "__main__":
    main()
