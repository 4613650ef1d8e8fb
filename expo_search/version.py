"""The version of this package, which wheels are built with. Not read from metadata, which takes a tenth of a second."""

__version__ = "0.2.0"
