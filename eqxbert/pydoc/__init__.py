"""Python's documentation, and a small model of it that was made by nothing but this library."""

from .search import MODEL as MODEL, Found as Found, SearchIndex as SearchIndex, search as search
