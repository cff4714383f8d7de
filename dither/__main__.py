"""`python -m dither` is `dither`. Without the packages of dither[lab] it says what it needs."""

import sys


def main() -> None:
    """Run the command line, or end with a sentence where a package of it is missing."""
    try:
        from dither.lab.cli import main as command

        command()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "dither":
            raise
        sys.exit(
            f"dither: the command needs the package {package}: pip install 'dither[lab]'; "
            "the library works without it"
        )


if __name__ == "__main__":
    main()
