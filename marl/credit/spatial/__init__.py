"""Who did it: operators that tell agents apart."""
