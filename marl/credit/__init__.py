"""The catalogue of credit operators, and the chain that composes them."""
