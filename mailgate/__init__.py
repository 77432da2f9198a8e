"""The rooms that one message walks through; ``mail_gateway.py`` shows the walk itself."""

__version__ = "0.1.0"
