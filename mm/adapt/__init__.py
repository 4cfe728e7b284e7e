"""A finished run taken to another field: its data, adapters on its weights, and what that costs."""
