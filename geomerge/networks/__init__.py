"""Networks as functions of one weight vector, and architectures."""
