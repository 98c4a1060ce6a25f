"""Which parameter is updated how, and at which rate."""
