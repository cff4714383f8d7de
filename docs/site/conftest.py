"""pytest runs the examples of the pages of this folder; it imports none of its scripts."""

collect_ignore_glob = ["*.py", "_ext/*.py", "gallery/*.py"]
