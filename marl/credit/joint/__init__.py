"""Which agent's which action: operators that tell both apart at once."""
