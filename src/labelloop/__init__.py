"""labelloop: models make labels; checked labels make models."""

__version__ = "0.1.0"
