"""The harness in which every speed claim of the project is made: ``python -m bench``."""
