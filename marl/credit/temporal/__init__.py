"""When was it done: operators that tell steps apart."""
