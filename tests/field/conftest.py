"""A terminal that tests can look at."""

from terminals import terminal as terminal
